"""An image-only denoiser in the manner of HGD (Liao et al., CVPR 2018): a small U-Net that predicts the noise.

Far smaller than the publication's (64 to 256 channels, 3×3 convolutions by twos and threes), and with group instead of
batch normalisation, so that an image's result does not depend on its batch. TRN with `network.streams: image` is the
other image-only restorer here: it has TRN's parameters and losses, and lacks the gradient maps alone.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import Restoration, Restorer
from gandefense.restorers.layers import norm_layer
from gandefense.restorers.trn import removed
from gandefense.weights_io import finite_number, rebuild


def _block(inputs: int, outputs: int, norm: str, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), norm_layer(norm, outputs), nn.ReLU()),
        *(nn.Conv2d(outputs, outputs, 3, padding=1), norm_layer(norm, outputs), nn.ReLU()),
    )


class DenoisingUNet(nn.Module):
    """A U-Net that halves the resolution before every stage but the first, with lateral connections back.

    Its output is subtracted from the image; it starts at zero, so that the network starts as the identity.

    Args:
        channels: of the image.
        widths: channels of the stages, from full resolution down; multiples of 8.
        norm: see layers.NORMS.

    Raises:
        UserError: no width, or one that the norm cannot divide.
    """

    def __init__(self, *, channels: int, widths: list[int], norm: str = "group") -> None:
        super().__init__()
        if not widths or any(width < 1 or width % 8 for width in widths):
            raise UserError(f"the denoiser's widths must be multiples of 8, got {list(widths)}")
        self.first = _block(channels, widths[0], norm)
        self.down = nn.ModuleList(_block(inputs, outputs, norm, stride=2) for inputs, outputs in pairwise(widths))
        self.up = nn.ModuleList(_block(deep + lateral, lateral, norm) for lateral, deep in list(pairwise(widths))[::-1])
        self.out = nn.Conv2d(widths[0], channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → images less the predicted noise, of the same shape and range."""
        features = [self.first((images - 0.5) * 4)]
        for block in self.down:
            features.append(block(features[-1]))
        x = features.pop()
        for block in self.up:
            lateral = features.pop()
            x = block(torch.cat([F.interpolate(x, size=lateral.shape[-2:], mode="nearest"), lateral], dim=1))
        return (images - self.out(x).to(images.dtype)).clamp(0, 1)


class DenoiserRestorer(Restorer):
    """The denoiser before a classifier.

    Args:
        network: the denoiser.
        threshold: of the score, chosen on validation images. HGD itself rejects nothing; the score is ours.
    """

    def __init__(self, network: DenoisingUNet, *, threshold: float = float("inf")) -> None:
        super().__init__()
        self.network = network
        self.threshold = threshold

    def forward(self, images: Tensor) -> Restoration:
        """Denoise a batch; `score` is the root mean square of what was removed, in units of 1/255."""
        restored = self.network(images)
        residual = images - restored
        score = removed(residual)
        return Restoration(restored, score, score > self.threshold, torch.full_like(score, torch.nan), {"residual": residual})


def from_weights(
    tensors: dict[str, Tensor], description: dict[str, Any], classifier: nn.Module, source: Path
) -> DenoiserRestorer:
    """A restorer from the contents of a weights file; raises UserError when they do not fit together."""
    network = rebuild(DenoisingUNet, description.get("network"), tensors, source=source)
    threshold = finite_number(description.get("threshold", float("inf")), "threshold", source=source, infinite=True)
    return DenoiserRestorer(network, threshold=threshold)
