"""APE-GAN (Jin, Shen, Zhang, Dai, Zhang, ICASSP 2019): a generator that turns an attacked image into one that passes for clean.

The generator's layers, Adam's settings and two generator steps for each of the discriminator are those of a public
re-implementation (owruby/APE-GAN on GitHub). Images lie in [0, 1] here, and the last tanh is mapped there. One network
pass, which knows nothing of the classifier and detects nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.restorers.base import Restoration, Restorer, undetected
from gandefense.weights_io import rebuild

MSE_WEIGHT, ADVERSARIAL_WEIGHT = 0.7, 0.3  # ξ1 and ξ2 of the article


class APEGenerator(nn.Module):
    """Two strided convolutions and two transposed ones, with batch normalisation after all but the last.

    Args:
        channels: of the image.
        width: channels at half the resolution, twice as many at a quarter; 64 as published.
    """

    def __init__(self, *, channels: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)),
            *(nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)),
            *(nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), nn.Tanh()),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → generated images of the same shape and range."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % 4, 0, -height % 4), mode="replicate")  # sizes that two halvings divide
        generated = (self.layers(padded * 2 - 1).to(images.dtype) + 1) / 2
        return generated[..., :height, :width]


class APEDiscriminator(nn.Module):
    """Three strided convolutions and a linear layer; positive means a clean image.

    Args:
        channels: of the image.
        size: height and width of the image, at least 8.
        width: channels at half the resolution, doubled twice.
    """

    def __init__(self, *, channels: int, size: int, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1), nn.BatchNorm2d(4 * width), nn.LeakyReLU(0.2)),
        )
        self.score = nn.Linear(4 * width * (size // 8) ** 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → logits (B,)."""
        return self.score(self.features(images * 2 - 1).flatten(1)).squeeze(1)


def generator_loss(restored: Tensor, clean: Tensor, fake: Tensor, *, mse_weight: float, adversarial_weight: float) -> Tensor:
    """What the generator minimises: ξ1 · mean squared pixel error + ξ2 · −log D(G(x')), scalar.

    Args:
        restored: G(x'), (B, C, H, W) in [0, 1].
        clean: x, of the same shape and range.
        fake: the discriminator's logits for `restored`, (B,).
        mse_weight: ξ1, 0.7 as published.
        adversarial_weight: ξ2, 0.3 as published.
    """
    adversarial = F.binary_cross_entropy_with_logits(fake.float(), torch.ones_like(fake, dtype=torch.float32))
    return mse_weight * F.mse_loss(restored.float(), clean) + adversarial_weight * adversarial


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises: −log D(x) − log(1 − D(G(x'))), a scalar, of logits (B,)."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


class APEGANRestorer(Restorer):
    """The generator before a classifier that it knows nothing of; it detects nothing."""

    def __init__(self, network: APEGenerator) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Restoration:
        """Restore a batch; the map `residual` is what was removed."""
        restored = self.network(images)
        return undetected(restored)._replace(maps={"residual": images - restored})


def from_weights(tensors: dict[str, Tensor], description: dict[str, Any], classifier: nn.Module, source: Path) -> APEGANRestorer:
    """A restorer from the contents of a weights file; raises UserError when they do not fit together."""
    return APEGANRestorer(rebuild(APEGenerator, description.get("network"), tensors, source=source))
