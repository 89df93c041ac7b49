"""Vaccination (Das et al. 2017): training on JPEG-compressed images, for a classifier that has compression before it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gandefense.errors import UserError
from gandefense.restorers.baselines.jpeg import check_quality, compressed


@dataclass
class JpegConfig:
    """How many training images are compressed, and how much."""

    probability: float = 0.0  # of each image; 0: off
    qualities: list[int] = field(default_factory=lambda: [20, 40, 60, 80])  # 1 to 100 each, all equally likely


def check(options: JpegConfig) -> None:
    """Raise UserError for a value out of range."""
    if not 0 <= options.probability <= 1:
        raise UserError(f"train.jpeg.probability must lie in [0, 1], got {options.probability}")
    if not options.qualities:
        raise UserError("train.jpeg.qualities must name at least one quality")
    for quality in options.qualities:
        check_quality(quality)


def vaccinated(images: Tensor, options: JpegConfig) -> Tensor:
    """Images (B, C, H, W) in [0, 1], each compressed by libjpeg with the probability, at a quality drawn for it."""
    if options.probability == 0:
        return images
    chosen = torch.rand(len(images)) < options.probability
    drawn = torch.tensor(options.qualities)[torch.randint(len(options.qualities), (len(images),))]
    images = images.clone()
    for quality in sorted(set(options.qualities)):
        rows = (chosen & (drawn == quality)).to(images.device)
        if rows.any():
            images[rows] = compressed(images[rows], quality)
    return images
