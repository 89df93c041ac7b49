"""JPEG compression before the classifier: at a fixed quality, and SHIELD's random quality for every 8×8 block."""

from __future__ import annotations

import io
from collections.abc import Sequence

import kornia
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gandefense.errors import UserError
from gandefense.restorers.base import Restoration, Restorer, undetected

BLOCK = 8  # pixels; JPEG transforms such squares by themselves


def compressed(images: Tensor, quality: int) -> Tensor:
    """What libjpeg makes of images at a quality, its colours at half the resolution (4:2:0); no gradient.

    Args:
        images: (B, C, H, W) in [0, 1], C 1 or 3; rounded to 8 bits first.
        quality: 1 to 100.
    """
    pixels = (images.detach() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.empty_like(pixels)
    for i, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
            file, "JPEG", quality=quality, subsampling="4:2:0"
        )
        decoded[i] = np.asarray(Image.open(file)).reshape(image.shape)
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images) / 255


def softly_compressed(images: Tensor, quality: int) -> Tensor:
    """Nearly what `compressed` gives, with a gradient: kornia's codec, whose rounding is a cubic (Shin and Song 2017).

    Args:
        images: (B, C, H, W) in [0, 1], C 1 or 3; a greyscale image has no colours that could be compressed.
        quality: 1 to 100.
    """
    coloured = images.expand(-1, 3, -1, -1)
    decoded = kornia.enhance.jpeg_codec_differentiable(coloured, torch.tensor([float(quality)], device=images.device))
    return decoded if images.shape[1] == 3 else decoded.mean(1, keepdim=True)


def check_quality(quality: int) -> None:
    """Raise UserError for a quality that JPEG does not have."""
    if not 1 <= quality <= 100:
        raise UserError(f"JPEG's quality lies between 1 and 100, got {quality}")


class JPEG(Restorer):
    """Compresses every image at one quality (Das et al. 2017; Guo et al. 2018).

    What it gives are libjpeg's pixels, with all their rounding. The true gradient of that is zero nearly everywhere, so that
    every view but `straight_through` has the gradient of a differentiable codec instead.

    Args:
        quality: 1 (worst) to 100; 75 is the usual one.
    """

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        check_quality(quality)
        self.quality = quality

    def forward(self, images: Tensor) -> Restoration:
        return undetected(compressed(images, self.quality))

    def scored(self, images: Tensor, view: str) -> tuple[Tensor, Tensor]:
        real, soft = compressed(images, self.quality), softly_compressed(images, self.quality)
        return real + (soft - soft.detach()), undetected(real).score


class Shield(Restorer):
    """Compresses at several qualities and takes every 8×8 block from one of them at random, anew for every image.

    This is SHIELD's stochastic local quantisation (Das et al. 2018); the ensemble of retrained classifiers that the article
    puts behind it is not part of it. Gradients are those of `JPEG`, of the blocks that were drawn.

    Args:
        qualities: 1 to 100 each, all equally likely.
    """

    def __init__(self, qualities: Sequence[int] = (20, 40, 60, 80)) -> None:
        super().__init__()
        for quality in qualities:
            check_quality(quality)
        self.qualities = tuple(qualities)

    def forward(self, images: Tensor) -> Restoration:
        chosen = self._draw(images)
        return undetected(_mixed(chosen, [compressed(images, quality) for quality in self.qualities]))

    def scored(self, images: Tensor, view: str) -> tuple[Tensor, Tensor]:
        chosen = self._draw(images)
        real = _mixed(chosen, [compressed(images, quality) for quality in self.qualities])
        soft = _mixed(chosen, [softly_compressed(images, quality) for quality in self.qualities])
        return real + (soft - soft.detach()), undetected(real).score

    def _draw(self, images: Tensor) -> Tensor:
        """The place of every pixel's quality in the list, (B, 1, H, W), the same within a block."""
        height, width = images.shape[2:]
        blocks = (len(images), 1, -(-height // BLOCK), -(-width // BLOCK))
        chosen = torch.randint(len(self.qualities), blocks, device=images.device)
        return chosen.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[:, :, :height, :width]


def _mixed(chosen: Tensor, versions: list[Tensor]) -> Tensor:
    """Of several versions (B, C, H, W) the chosen one for every pixel; `chosen`: (B, 1, H, W), places in the list."""
    mixed = versions[0]
    for place, version in enumerate(versions[1:], start=1):
        mixed = torch.where(chosen == place, version, mixed)
    return mixed
