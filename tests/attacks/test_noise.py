"""Noise levels."""

from __future__ import annotations

import math

import pytest
import torch

from gandefense.attacks.noise import NOISES

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
