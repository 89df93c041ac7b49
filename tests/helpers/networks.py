"""Classifiers small enough to be checked by hand or by finite differences."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """Two classes, logits (0, w·x): the loss gradient's sign is sign(w) for class 0 and -sign(w) for class 1."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], dim=1)


def small_cnn(activation: type[nn.Module], *, channels: int = 3, size: int = 6, classes: int = 4, seed: int = 0) -> nn.Sequential:
    """A convolution, an activation, a linear layer and again: (B, channels, size, size) → logits (B, classes)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(nn.Conv2d(channels, 6, 3, padding=1), activation(), nn.Flatten()),
            *(nn.Linear(6 * size * size, 12), activation(), nn.Linear(12, classes)),
        )
        for parameter in network.parameters():
            parameter.data.mul_(3)  # logits far from uniform, so that softmax and its derivatives matter
    return network.eval()


class Wavering(nn.Module):
    """Sees grey as class 0 in two of three passes, and next to never as soon as it is 8/255 brighter."""

    def forward(self, images: Tensor) -> Tensor:
        first = 40 * (0.504 - images.flatten(1).mean(1)) + 0.37 * torch.randn(len(images))
        return torch.stack([first, torch.zeros_like(first), *(torch.full_like(first, -9.0) for _ in range(2))], dim=1)
