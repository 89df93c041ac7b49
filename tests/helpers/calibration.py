"""Defences that do not hold, each hiding it in its own way: an evaluator that is any good sees through all of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense import zoo
from gandefense.restorers.base import Restoration, Restorer


def _restoration(images: Tensor) -> Restoration:
    nothing = torch.zeros(len(images), device=images.device)
    return Restoration(images, nothing, nothing.bool(), torch.full_like(nothing, torch.nan), {})


class ThreeBit(Restorer):
    """Quantises to eight grey levels a channel: its true gradient is zero everywhere."""

    def forward(self, images: Tensor) -> Restoration:
        return _restoration((images * 7).round() / 7)


class RandomResize(Restorer):
    """Resizes to a random size and pads at a random place (Xie et al. 2018), anew for every batch."""

    def forward(self, images: Tensor) -> Restoration:
        full = images.shape[-1]
        size = int(torch.randint(full - 6, full + 1, ()))
        top, left = (int(torch.randint(0, full - size + 1, ())) for _ in range(2))
        small = F.interpolate(images, size=(size, size), mode="nearest")
        return _restoration(F.pad(small, (left, full - size - left, top, full - size - top), value=0.5))


class Confident(nn.Module):
    """The shipped classifier with its logits times 1,000, as a distilled network's: cross-entropy has no gradient left."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = zoo.load_classifier("cifar10/classifier")

    def forward(self, images: Tensor) -> Tensor:
        return 1000 * self.classifier(images)
