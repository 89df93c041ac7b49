"""Defense-GAN's critic, its gradient penalty and its looks at the training."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

from gandefense.restorers.baselines.defense_gan import LatentSearch
from gandefense.training.baselines.defense_gan import Critic, SearchConfig, gradient_penalty, same_draws


class _LinearCritic(nn.Module):
    """⟨w, x⟩: its gradient is w everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weight).flatten(1).sum(1)


@pytest.mark.parametrize("length", [0.25, 1.0, 3.0])
def test_the_penalty_of_a_linear_critic_is_its_lengths_distance_from_one_squared(length: float) -> None:
    weight = torch.randn(3, 4, 4)
    critic = _LinearCritic(weight * length / weight.norm())
    penalty = gradient_penalty(critic, torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4))
    assert penalty.item() == pytest.approx((length - 1) ** 2, abs=1e-5)
    (gradient,) = torch.autograd.grad(penalty, critic.weight)
    expected = 2 * (length - 1) * critic.weight / length  # d (‖w‖ − 1)² / dw
    assert torch.allclose(gradient, expected, atol=1e-4)


def test_the_penalty_is_taken_between_real_and_fake_images() -> None:
    """‖x‖²/2 has the gradient x; between 2e and 4e, each e of length 1, its length lies between 2 and 4."""
    direction = torch.zeros(64, 1, 2, 2)
    direction[:, 0, 0, 0] = 1
    penalty = gradient_penalty(lambda images: images.square().flatten(1).sum(1) / 2, 2 * direction, 4 * direction)
    # The mean of (t − 1)² for t uniform between 2 and 4 is 13/3; 64 draws have a standard error of about 0.3.
    assert penalty.item() == pytest.approx(13 / 3, abs=1.3)


@pytest.mark.parametrize("size", [28, 32])
def test_the_critic_scores_each_image_by_itself(size: int) -> None:
    critic, images = Critic(channels=1, size=size, width=2), torch.rand(3, 1, size, size)
    assert critic(images).shape == (3,)
    assert torch.allclose(critic(images)[:1], critic(images[:1]), atol=1e-6)


def test_looking_leaves_the_trainings_draws_alone() -> None:
    device, state = torch.device("cpu"), torch.get_rng_state()
    with same_draws(device):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    with same_draws(device):
        assert torch.equal(torch.rand(3), first)


def test_a_config_has_every_setting_of_the_search() -> None:
    assert asdict(SearchConfig()) == asdict(LatentSearch())
