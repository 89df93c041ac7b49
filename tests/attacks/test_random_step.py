"""Eq. (2) of the ISMN paper."""

from __future__ import annotations

import pytest
import torch

from gandefense.attacks.random_step import random_step
from tests.helpers.networks import Linear

EPS = 8 / 255


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
