"""Perturbation levels, and the steps they are told apart by."""

from __future__ import annotations

import pytest
import torch

from gandefense.attacks.level import nearest_level, perturbation_level, within_one_step
from gandefense.attacks.noise import gaussian_signed


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


def test_a_level_belongs_to_the_nearest_step_and_those_beyond_the_last_to_it() -> None:
    assert nearest_level(torch.tensor([0.0, 0.04, 0.06, 0.249, 0.251, 0.9])).tolist() == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("estimated", "true", "near"), [(0.0, 0.0, True), (0.1, 0.2, True), (0.04, 0.2, False), (0.4, 0.2, False), (0.9, 0.3, True)]
)
def test_one_step_off_is_near_and_two_are_not(estimated: float, true: float, near: bool) -> None:
    assert within_one_step(torch.tensor([estimated]), torch.tensor([true])).tolist() == [near]
