"""Noise levels."""

from __future__ import annotations

import math

import pytest
import torch

from gandefense.attacks.noise import NOISES, constant_on, rectangles, sums_on

GREY = torch.full((16, 3, 32, 32), 0.5)  # 49,152 values: a standard deviation's own is 0.3 %


@pytest.mark.parametrize(
    ("name", "level", "std"),
    [
        ("gaussian[-1,1]", 0.2, 0.1),
        ("gaussian[0,1]", 0.1, 0.1),
        ("uniform[0,1]", 0.3, 0.3 / math.sqrt(3)),
    ],
)
def test_standard_deviation_on_grey_images(name: str, level: float, std: float) -> None:
    noise = NOISES[name](GREY, level) - GREY
    assert noise.std().item() == pytest.approx(std, rel=0.02)
    assert abs(noise.mean().item()) < 0.01 * std * 3
    assert noise.flatten(1).std(1).min() > 0.9 * std, "every image gets noise of its own"


def test_uniform_noise_is_bounded() -> None:
    noise = NOISES["uniform[0,1]"](GREY, 0.25) - GREY
    assert 0.249 < noise.abs().max() <= 0.25 + 1e-6


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 20), (1, 5)])
def test_blocks_are_rectangles_of_full_strength_of_many_sizes(height: int, width: int) -> None:
    grey = torch.full((64, 2, height, width), 0.5)
    signs = ((NOISES["blocks[0,1]"](grey, 0.25) - grey) / 0.25).round(decimals=4)
    assert signs.unique().tolist() == [-1.0, 1.0]
    for size, axis in ((height, 2), (width, 3)):
        borders = (signs.diff(dim=axis) != 0).any(dim=5 - axis).any(dim=1)  # (64, size - 1): between two lines, somewhere
        sides = set()
        for image in borders:
            places = image.nonzero()[:, 0]
            gaps = places.diff()
            if len(gaps) > 3:
                sides.add(int(gaps.min()))
                assert (gaps % gaps.min() == 0).all(), "a grid, some of whose borders lie between equal signs"
        assert size < 20 or sides >= {1, 2, 4}
    assert abs(signs.mean().item()) < 0.2
    assert not torch.equal(signs[:, 0], signs[:, -1]), "every channel has rectangles of its own"


def test_a_grids_rectangles_are_filled_with_the_value_at_their_number() -> None:
    grid = torch.tensor([[[0, 0, 1], [3, 3, 4]]])
    values = torch.arange(12.0).view(1, 2, 2, 3)
    assert constant_on(grid, values).tolist() == [[[[0, 0, 1], [3, 3, 4]], [[6, 6, 7], [9, 9, 10]]]]


def test_sums_over_a_grids_rectangles_stand_at_their_numbers() -> None:
    grid = torch.tensor([[[0, 0, 1], [3, 3, 4]]])
    values = torch.arange(12.0).view(1, 2, 2, 3)
    assert sums_on(grid, values).tolist() == [[[[1, 2, 0], [7, 5, 0]], [[13, 8, 0], [19, 11, 0]]]]
    torch.manual_seed(0)
    grid, values = rectangles(torch.Size([8, 3, 28, 20]), torch.device("cpu")), torch.randn(8, 3, 28, 20)
    sums = constant_on(grid, sums_on(grid, values))
    image, y, x = 5, 17, 11
    inside = grid[image] == grid[image, y, x]
    assert torch.allclose(sums[image, :, y, x], values[image][:, inside].sum(1), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 20), (1, 5), (1, 1)])
def test_rectangles_are_numbered_within_the_image(height: int, width: int) -> None:
    grid = rectangles(torch.Size([64, 3, height, width]), torch.device("cpu"))
    assert grid.shape == (64, height, width) and grid.min() == 0 and grid.max() < height * width
    assert (grid[:, 0, 0] == 0).all()
    assert len({image.unique().numel() for image in grid}) > 3 or height * width < 32, "grids of many finenesses"


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_clipped(name: str) -> None:
    images = torch.rand(4, 3, 32, 32)
    noisy = NOISES[name](images, 1.0)
    assert (noisy.min().item(), noisy.max().item()) == (0.0, 1.0)
    assert noisy.shape == images.shape


@pytest.mark.parametrize("name", NOISES)
def test_level_zero_changes_nothing(name: str) -> None:
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(NOISES[name](images, 0.0), images)
