"""A rival that needs no training, as docs/adding-a-rival.md adds it: total-variation denoising before the classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gandefense.errors import UserError
from gandefense.restorers.base import Restoration, Restorer, undetected

STEP = 0.05  # of the descent, in pixel units
SMOOTH = 0.01  # differences between neighbours below this count quadratically, so that there is a gradient at 0 too


class TotalVariation(Restorer):
    """Pulls neighbouring pixels together and holds on to the image (Rudin et al. 1992; as a defence Guo et al. 2018).

    It goes down ½·‖x − image‖² + weight · Σ|differences between neighbours| by plain gradient steps, so that the defence has a
    true gradient.

    Args:
        weight: of the differences; more makes it smoother.
        steps: of the descent.
    """

    def __init__(self, weight: float = 0.03, steps: int = 20) -> None:
        super().__init__()
        if not weight > 0 or steps < 1:
            raise UserError(f"weight must be positive and steps at least 1, got {weight} and {steps}")
        self.weight, self.steps = weight, steps

    def forward(self, images: Tensor) -> Restoration:
        """Restore images (B, C, H, W) in [0, 1]."""
        restored = images
        for _ in range(self.steps):
            slope = restored - images + self.weight * (_slope(restored, 2) + _slope(restored, 3))
            restored = restored - STEP * slope
        return undetected(restored.clamp(0, 1))


def _slope(images: Tensor, dimension: int) -> Tensor:
    """The gradient (B, C, H, W) of the sum of smoothed absolute differences along a dimension (2 or 3)."""
    differences = images.diff(dim=dimension)
    pull = differences / torch.sqrt(differences**2 + SMOOTH**2)
    before, after = ((0, 0, 1, 0), (0, 0, 0, 1)) if dimension == 2 else ((1, 0), (0, 1))
    return F.pad(pull, before) - F.pad(pull, after)
