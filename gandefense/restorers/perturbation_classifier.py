"""The perturbation classifier: attacked or not, and how strongly, from the ISMN's input-output difference and its code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PerturbationClassifier(nn.Module):
    """Difference x − f_φ(x), image and code in; an attack logit and an attack level out (ISMN paper, section III).

    The level is the root mean square of the perturbation on images scaled to [-1, 1]: `gaussian[-1,1]` at 0.2 has
    about 0.2, an L-infinity attack at 8/255 about 0.06. The paper names levels without defining them.
    """

    def __init__(self, *, channels: int, code: int = 128, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(2 * channels, width, 3, padding=1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.2)),
        )
        self.head = nn.Sequential(nn.Linear(4 * width + code, 128), nn.LeakyReLU(0.2), nn.Linear(128, 2))

    def forward(self, images: Tensor, cleaned: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Judge a batch.

        Args:
            images: (B, C, H, W) in [0, 1], what the ISMN was given.
            cleaned: (B, C, H, W) in [0, 1], what it returned.
            code: (B, 128).

        Returns:
            Logit of "attacked" (B,) and level (B,) ≥ 0.
        """
        features = self.features(torch.cat([20 * (images - cleaned), 2 * (images - 0.5)], dim=1))
        logit, level = self.head(torch.cat([features.mean((2, 3)), code], dim=1)).float().unbind(1)
        return logit, 0.1 * F.softplus(level)
