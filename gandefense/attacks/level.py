"""The level of a perturbation, which the perturbation classifier estimates, and the steps that levels are told apart by."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4)  # the steps of the ISMN paper's tables, from no attack on; a level belongs to the nearest


def perturbation_level(images: Tensor, clean: Tensor) -> Tensor:
    """Root mean square (B,) of a perturbation on the [-1, 1] scale; images (B, C, H, W) in [0, 1]."""
    return 2 * (images - clean).flatten(1).square().mean(1).sqrt()


def nearest_level(levels: Tensor) -> Tensor:
    """The number (N,) in LEVELS of the step that is nearest to each level (N,)."""
    return (levels[:, None] - torch.tensor(LEVELS, device=levels.device)).abs().argmin(1)


def within_one_step(estimated: Tensor, true: Tensor) -> Tensor:
    """Whether each estimated level (N,) lies at most one of LEVELS off the true one (N,); bool."""
    return (nearest_level(estimated) - nearest_level(true)).abs() <= 1
