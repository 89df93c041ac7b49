"""Parts of your own, as gandefense takes them by dotted name; see docs/your-own-parts.md.

Restorers:    docs.examples.my_defence.MedianRestorer, docs.examples.my_defence.soft_blur
Classifier:   docs.examples.my_defence.mirrored
"""

from __future__ import annotations

import kornia
import torch
from torch import Tensor, nn

import gandefense
from gandefense import Restoration, Restorer


class MedianRestorer(Restorer):
    """A 3×3 median filter before the classifier; images that it changes a lot count as attacked.

    Args:
        threshold: of the score, above which an image is flagged; 5 % of CIFAR-10's validation images score above 11.2.
    """

    def __init__(self, threshold: float = 11.2) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Restoration:
        """Restore images (B, C, H, W) in [0, 1]."""
        restored = kornia.filters.median_blur(images, 3)
        residual = images - restored
        score = residual.flatten(1).abs().mean(1) * 255  # (B,), higher = more likely attacked
        return Restoration(
            images=restored,
            score=score,
            flagged=score > self.threshold,
            level=torch.full_like(score, torch.nan),  # it does not estimate how strong the attack is
            maps={"residual": residual},
        )


def soft_blur() -> nn.Module:
    """An image-to-image network: it becomes a restorer whose score is what it removed, and which flags nothing."""
    return kornia.filters.GaussianBlur2d((3, 3), (0.6, 0.6))


class Mirrored(nn.Module):
    """A classifier's logits, averaged over an image and its mirror image."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → logits (B, K)."""
        return (self.classifier(images) + self.classifier(images.flip(3))) / 2


def mirrored() -> nn.Module:
    """The shipped classifier as it sees an image and its mirror image."""
    return Mirrored(gandefense.load("cifar10/classifier").classifier)
