"""The discriminator and its losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gandefense.restorers.discriminator import Discriminator, discriminator_loss, generator_loss, r1_penalty


class Linear(nn.Module):
    """Scores (B,) = ⟨w, x⟩, whose gradient is w for every image."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weight).flatten(1).sum(1)


class HalfSquare(nn.Module):
    """Scores (B,) = ‖x‖² / 2, whose gradient is the image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.square().flatten(1).sum(1) / 2


@pytest.mark.parametrize(
    ("channels", "size", "halvings"), [(3, 4, 1), (3, 8, 1), (1, 16, 2), (3, 32, 3), (3, 64, 4), (3, 256, 6), (3, 512, 6)]
)
def test_depth_follows_the_size_and_each_image_gets_one_score(channels: int, size: int, halvings: int) -> None:
    discriminator = Discriminator(channels=channels, size=size, width=2)
    assert sum(isinstance(layer, nn.Conv2d) for layer in discriminator.features) == halvings
    with torch.no_grad():
        scores = discriminator(torch.rand(2, channels, size, size))
    assert scores.shape == (2,)
    assert scores.dtype == torch.float32


def test_an_image_gets_the_same_score_alone_and_in_a_batch() -> None:
    discriminator, images = Discriminator(channels=3, size=32, width=8), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(discriminator(images)[:1], discriminator(images[:1]), atol=1e-6)
        assert discriminator(images).unique().numel() == 4


@pytest.mark.parametrize(
    ("real", "fake", "of_discriminator", "of_generator"),
    [
        ([0.0, 0.0], [0.0], 2 * math.log(2), math.log(2)),
        ([1.0], [-1.0], 2 * math.log(1 + math.exp(-1)), math.log(1 + math.e)),
        ([50.0], [-50.0], 0.0, 50.0),
        ([-50.0], [50.0], 100.0, 0.0),
        ([50.0, -50.0], [-50.0, -50.0, 50.0, 50.0], 50.0, 25.0),
    ],
)
def test_known_losses(real: list[float], fake: list[float], of_discriminator: float, of_generator: float) -> None:
    assert discriminator_loss(torch.tensor(real), torch.tensor(fake)).item() == pytest.approx(of_discriminator, abs=1e-5)
    assert generator_loss(torch.tensor(fake)).item() == pytest.approx(of_generator, abs=1e-5)


def test_the_losses_pull_scores_apart_and_together() -> None:
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    discriminator_loss(real, fake).backward()
    assert torch.allclose(real.grad, torch.full((3,), -1 / 6))
    assert torch.allclose(fake.grad, torch.full((3,), 1 / 6))
    fake.grad = None
    generator_loss(fake).backward()
    assert torch.allclose(fake.grad, torch.full((3,), -1 / 6))


def test_r1_of_a_linear_discriminator_is_half_its_squared_weight() -> None:
    weight = torch.randn(3, 4, 4)
    discriminator = Linear(weight)
    penalty = r1_penalty(discriminator, torch.rand(5, 3, 4, 4))
    assert penalty.item() == pytest.approx(0.5 * weight.square().sum().item(), rel=1e-5)
    penalty.backward()
    assert torch.allclose(discriminator.weight.grad, weight, atol=1e-5), "the penalty itself can be trained"


def test_r1_is_a_mean_over_images_and_leaves_them_as_they_are() -> None:
    images = torch.rand(5, 3, 4, 4)
    expected = 0.5 * images.square().sum() / 5
    assert r1_penalty(HalfSquare(), images).item() == pytest.approx(expected.item(), rel=1e-5)
    assert not images.requires_grad
    assert images.grad is None


def test_r1_reaches_the_parameters_of_the_real_discriminator() -> None:
    discriminator = Discriminator(channels=3, size=16, width=4)
    r1_penalty(discriminator, torch.rand(2, 3, 16, 16)).backward()
    for name, parameter in discriminator.named_parameters():
        assert name.endswith("bias") or parameter.grad.any(), name
