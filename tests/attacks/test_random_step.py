"""Eq. (2) of the ISMN paper, and perturbation levels."""

from __future__ import annotations

import pytest
import torch

from gandefense.attacks.noise import gaussian_signed
from gandefense.attacks.random_step import perturbation_level, random_step
from tests.helpers.networks import Linear

EPS = 8 / 255


@pytest.mark.parametrize(
    ("difference", "level"),
    [
        (0.0, 0.0),
        (8 / 255, 16 / 255),
        (-0.25, 0.5),
        (1.0, 2.0),
    ],
)
def test_the_level_of_a_constant_difference_is_twice_its_size(difference: float, level: float) -> None:
    clean = torch.full((3, 3, 4, 4), 0.0 if difference >= 0 else 1.0)
    assert torch.allclose(perturbation_level(clean + difference, clean), torch.full((3,), level))


def test_the_level_is_a_root_mean_square_image_by_image() -> None:
    clean = torch.zeros(2, 1, 2, 2)
    images = torch.tensor([[[[0.3, -0.3], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.4]]]])
    assert torch.allclose(perturbation_level(images, clean), torch.tensor([2 * 0.3 / 2**0.5, 2 * 0.4 / 2]))


def test_the_level_of_gaussian_noise_is_its_standard_deviation_on_the_scale_of_the_paper() -> None:
    clean = torch.full((4, 3, 64, 64), 0.5)
    assert torch.allclose(perturbation_level(gaussian_signed(clean, 0.2), clean), torch.full((4,), 0.2), atol=0.01)


@pytest.mark.parametrize("eps", [0.0, EPS, 0.1])
@pytest.mark.parametrize("images", [torch.rand(8, 3, 8, 8), torch.zeros(8, 3, 8, 8), torch.ones(8, 3, 8, 8)])
def test_it_stays_within_the_budget_and_in_range(images: torch.Tensor, eps: float) -> None:
    network, labels = Linear(torch.randn(3, 8, 8)), torch.arange(8) % 2
    stepped = random_step(network, images, labels, eps)
    assert (stepped - images).abs().max() <= eps + 1e-6
    assert stepped.min() >= 0
    assert stepped.max() <= 1
    assert not stepped.requires_grad


def test_it_raises_the_loss_more_than_noise_of_the_same_budget_does() -> None:
    network = Linear(torch.randn(3, 8, 8))
    images, labels = torch.rand(64, 3, 8, 8) * 0.6 + 0.2, torch.zeros(64, dtype=torch.long)
    with torch.no_grad():
        noisy = images + EPS * torch.randn_like(images).sign()
        raised = (network(random_step(network, images, labels, EPS)) - network(images))[:, 1]
        by_noise = (network(noisy) - network(images))[:, 1]
    assert raised.mean() > 0
    assert raised.mean() > 4 * by_noise.mean().abs()


def test_the_random_factor_is_drawn_for_each_image() -> None:
    """Far from any border a pixel moves by ±φ ± (ε − φ), so that an image knows two step sizes: ε, and |2φ − ε|."""
    images = torch.full((16, 3, 8, 8), 0.5)
    moved = (random_step(Linear(torch.randn(3, 8, 8)), images, torch.zeros(16, dtype=torch.long), EPS) - images).abs()
    low, high = moved.flatten(1).aminmax(dim=1)
    assert torch.allclose(high, torch.full((16,), EPS), atol=1e-6)
    assert low.unique().numel() == 16
    middle = (low + high)[:, None, None, None] / 2
    sizes = torch.where(moved < middle, low[:, None, None, None], high[:, None, None, None])
    assert torch.allclose(moved, sizes, atol=1e-6)


def test_it_leaves_no_gradient_in_the_network_and_works_without_gradients() -> None:
    network = Linear(torch.randn(3, 4, 4))
    with torch.no_grad():
        stepped = random_step(network, torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.long), EPS)
    assert stepped.shape == (2, 3, 4, 4)
    assert network.weight.grad is None
