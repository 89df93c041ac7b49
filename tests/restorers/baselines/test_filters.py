"""Classical filters: known values, shapes, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.baselines.filters import Bilateral, BitDepth, Gaussian, Mean, Median

FILTERS = [Median(), Mean(), Gaussian(), Bilateral(), BitDepth()]
SMOOTHERS = [Median(), Mean(), Gaussian(1.0), Bilateral(colour=10.0)]


def names(restorer: Any) -> str:
    return type(restorer).__name__


@pytest.mark.parametrize("restorer", FILTERS, ids=names)
@pytest.mark.parametrize("shape", [(3, 3, 12, 12), (2, 1, 9, 14), (1, 3, 6, 6)])
def test_shapes_range_and_nothing_detected(restorer: nn.Module, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape).round()
    restoration = restorer(images)
    assert restoration.images.shape == images.shape
    assert restoration.images.min() >= -1e-6 and restoration.images.max() <= 1 + 1e-6
    assert (restoration.score == 0).all() and not restoration.flagged.any() and restoration.level.isnan().all()


@pytest.mark.parametrize("restorer", FILTERS, ids=names)
def test_one_colour_stays_what_it_is_inside(restorer: nn.Module) -> None:
    images = torch.full((1, 3, 12, 12), 0.6)  # 9 of 15 grey levels
    assert torch.allclose(restorer(images).images[:, :, 3:-3, 3:-3], torch.tensor(0.6), atol=1e-6)


@pytest.mark.parametrize("restorer", SMOOTHERS, ids=names)
def test_noise_becomes_less(restorer: nn.Module) -> None:
    images = 0.5 + 0.1 * torch.randn(1, 3, 40, 40)
    assert restorer(images).images[:, :, 3:-3, 3:-3].std() < 0.6 * images.std()


def one_dot() -> Tensor:
    images = torch.zeros(1, 1, 9, 9)
    images[0, 0, 4, 4] = 1
    return images


def test_known_values_of_a_single_dot() -> None:
    assert Median()(one_dot()).images.abs().max() == 0
    assert torch.allclose(Mean()(one_dot()).images[0, 0, 3:6, 3:6], torch.full((3, 3), 1 / 9))
    bell = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * 0.6**2))
    bell = torch.outer(bell, bell) / bell.sum() ** 2
    assert torch.allclose(Gaussian(0.6)(one_dot()).images[0, 0, 2:7, 2:7], bell, atol=1e-5)
    assert torch.allclose(Bilateral()(one_dot()).images, one_dot(), atol=1e-6), "an edge stays"


def test_bits() -> None:
    levels = torch.linspace(0, 1, 1001).view(1, 1, 1, -1)
    for bits in (1, 3, 8):
        restored = BitDepth(bits)(levels).images
        assert len(restored.unique()) == 2**bits
        assert (restored - levels).abs().max() <= 0.5 / (2**bits - 1) + 1e-6


@pytest.mark.parametrize("restorer", [Mean(), Gaussian(), Bilateral()], ids=names)
def test_gradients_are_those_of_finite_differences(restorer: nn.Module) -> None:
    images = torch.rand(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda point: restorer.scored(point, "exact")[0], (images,))


def test_a_medians_gradient_goes_to_the_middle_pixel() -> None:
    images = torch.rand(1, 1, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(Median()(images).images[0, 0, 1, 1], images)
    assert (gradient * images).sum() == images.median() and gradient.sum() == 1


def test_rounding_to_bits_has_the_identitys_gradient() -> None:
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    values, _ = BitDepth(3).scored(images, "exact")
    assert torch.allclose(values, BitDepth(3)(images).images)
    assert torch.equal(torch.autograd.grad(values.sum(), images)[0], torch.ones_like(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Median(4), "a filter's size is odd and at least 3 pixels, got 4"),
        (lambda: Mean(1), "got 1"),
        (lambda: Bilateral(2), "got 2"),
        (lambda: Gaussian(0), "sigma must be positive, got 0"),
        (lambda: Bilateral(colour=0), "colour and space must be positive, got 0 and 1.0"),
        (lambda: BitDepth(0), "bits lie between 1 and 8, got 0"),
        (lambda: BitDepth(9), "bits lie between 1 and 8, got 9"),
    ],
)
def test_values_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
