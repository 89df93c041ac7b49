"""The discriminator: clean images are real; regenerated and attacked ones are fake (the paper's mix)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Strided convolutions to one score a patch; depth follows the size, down to 4×4 patches (at most 6 halvings).

    Args:
        channels: of the image.
        size: of the image.
        width: channels after the first convolution; doubled at each halving up to 8 × width.
    """

    def __init__(self, *, channels: int, size: int, width: int = 32) -> None:
        super().__init__()
        depth = max(1, min(6, (size // 4).bit_length() - 1))
        layers: list[nn.Module] = []
        inputs = channels
        for i in range(depth):
            outputs = min(width * 2**i, width * 8)
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.score = nn.Conv2d(inputs, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Mean score (B,) of images (B, C, H, W) in [0, 1]; positive means real."""
        return self.score(self.features((images - 0.5) * 4)).float().mean((1, 2, 3))


def discriminator_loss(real: Tensor, fake: Tensor, *, real_share: float = 1.0, fake_share: float = 1.0) -> Tensor:
    """Non-saturating logistic loss of the discriminator (Goodfellow et al. 2014).

    Args:
        real: scores (B,).
        fake: scores (F,); none are allowed where they have no share.
        real_share: of all real images, where these are a part of a batch.
        fake_share: of all fake images.
    """
    loss = real_share * F.softplus(-real).mean()
    return loss + fake_share * F.softplus(fake).mean() if len(fake) else loss


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating logistic loss of the generator on scores (B,)."""
    return F.softplus(-fake).mean()


def r1_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """R1: half the mean squared gradient norm on real images (B, C, H, W) (Mescheder et al. 2018)."""
    point = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(point).sum(), point, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean()
