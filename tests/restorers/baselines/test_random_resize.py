"""Random resizing and padding, and the averaging of logits over its draws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.baselines.random_resize import RandomResize, placement
from tests.helpers.networks import small_cnn


@pytest.mark.parametrize("size", [1, 5, 6, 7, 12])
def test_placement_resizes_as_torch_does(size: int) -> None:
    lines = torch.rand(1, 1, 12, 12)
    start = (12 - size) // 2
    matrix = placement(12, torch.tensor([size]), torch.tensor([start]))[0]
    expected = F.interpolate(lines, size=(size, 12), mode="bilinear", align_corners=False)
    assert torch.allclose((matrix @ lines)[:, :, start : start + size], expected, atol=1e-6)
    assert not matrix[:start].any() and not matrix[start + size :].any()


def found(image: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of what is not padding in an image (C, H, W) that is black."""
    filled = (image[0] != 0.5).nonzero()
    (top, left), (bottom, right) = filled.amin(0).tolist(), filled.amax(0).tolist()
    return top, left, bottom - top + 1, right - left + 1


def test_every_image_gets_a_size_and_a_place_of_its_own() -> None:
    restored = RandomResize(low=5, high=7)(torch.zeros(400, 3, 8, 8)).images
    places = [found(image) for image in restored]
    assert {height for _, _, height, _ in places} == {5, 6, 7} and all(height == width for *_, height, width in places)
    fives = [(top, left) for top, left, height, _ in places if height == 5]
    assert {top for top, _ in fives} == {left for _, left in fives} == {0, 1, 2, 3}
    assert any(top != left for top, left in fives)
    for image, (top, left, height, width) in zip(restored, places, strict=True):
        assert (image == 0).sum() == 3 * height * width and (image[:, top : top + height, left : left + width] == 0).all()


def test_an_image_is_resized_bilinearly() -> None:
    images = torch.rand(1, 3, 9, 9)
    restored = RandomResize(low=6, high=6)(images).images
    top, left, height, width = found(restored[0])
    expected = F.interpolate(images, size=(6, 6), mode="bilinear", align_corners=False)
    assert (height, width) == (6, 6)
    assert torch.allclose(restored[:, :, top : top + 6, left : left + 6], expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 20, 40), (1, 3, 64, 33), (0, 3, 32, 32)])
def test_shapes_and_range(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape).round()
    restoration = RandomResize()(images)
    assert restoration.images.shape == images.shape and restoration.images.dtype == images.dtype
    assert not len(images) or (restoration.images.min() >= -1e-6 and restoration.images.max() <= 1 + 1e-6)
    assert (restoration.score == 0).all() and not restoration.flagged.any() and restoration.level.isnan().all()


def test_sizes_by_default_are_the_upper_eighth_and_the_ratio_stays() -> None:
    places = [found(image) for image in RandomResize()(torch.zeros(200, 1, 16, 32)).images]
    assert {(height, width) for *_, height, width in places} == {(14, 28), (15, 30), (16, 32)}


def test_the_whole_size_leaves_images_as_they_are() -> None:
    images = torch.rand(3, 3, 10, 10)
    assert torch.allclose(RandomResize(low=10)(images).images, images, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    images = torch.rand(2, 1, 4, 5, dtype=torch.float64)

    def restored(point: Tensor) -> Tensor:
        torch.manual_seed(5)
        return RandomResize(low=3).scored(point, "exact")[0]

    assert torch.autograd.gradcheck(restored, (images.requires_grad_(True),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "passes must be at least 1, got 0"),
        ({"low": 0}, "sizes must be at least 1 pixel, got low=0, high=None"),
        ({"low": 9}, "images of 8 pixels are resized to at most 8; got sizes from 9 to 8"),
        ({"low": 6, "high": 12}, "got sizes from 6 to 12"),
        ({"low": 7, "high": 6}, "got sizes from 7 to 6"),
        ({"high": 2}, "got sizes from 7 to 2"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RandomResize(**options)(torch.rand(1, 3, 8, 8))


@pytest.fixture
def network() -> nn.Module:
    return small_cnn(nn.Tanh, size=8)


@pytest.mark.parametrize("view", [None, "straight_through", "detached", "exact", "smooth"])
def test_logits_are_averaged_over_passes(network: nn.Module, view: str | None) -> None:
    """In the defence's own answers and in every view, values and gradients; each pass draws anew."""
    images = torch.rand(3, 3, 8, 8)

    def outputs(passes: int) -> tuple[Tensor, Tensor]:
        defended = DefendedClassifier(RandomResize(low=4, passes=passes), network)
        point = images.clone().requires_grad_(True)
        logits = (defended if view is None else defended.view(view))(point)
        return logits.detach(), torch.autograd.grad(logits[:, 0].sum(), point)[0]

    torch.manual_seed(2)
    singles = [outputs(1) for _ in range(3)]
    torch.manual_seed(2)
    together = outputs(3)
    assert not torch.allclose(singles[0][0], singles[1][0], atol=1e-3)
    for i in range(2):
        assert torch.allclose(together[i], torch.stack([single[i] for single in singles]).mean(0), atol=1e-5)


def test_oblivious_knows_nothing_of_passes(network: nn.Module) -> None:
    images = torch.rand(3, 3, 8, 8)
    view = DefendedClassifier(RandomResize(low=4, passes=5), network).view("oblivious")
    assert torch.equal(view(images), network(images))


def test_passes_settle_the_answer(network: nn.Module) -> None:
    images = torch.rand(20, 3, 8, 8)
    spread = []
    for passes in (1, 25):
        defended = DefendedClassifier(RandomResize(low=4, passes=passes), network)
        with torch.no_grad():
            spread.append(torch.stack([defended(images) for _ in range(8)]).std(0).mean().item())
    assert spread[1] < spread[0] / 3


def test_a_restoration_is_one_draw(network: nn.Module) -> None:
    images = torch.zeros(1, 3, 8, 8)
    restored = DefendedClassifier(RandomResize(low=4, high=4, passes=10), network).restore(images).images
    assert set(restored.flatten().tolist()) == {0.0, 0.5}
