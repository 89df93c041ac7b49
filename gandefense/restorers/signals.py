"""What detectors measure on an image and its cleaned version: reconstruction error, divergence of a classifier's answers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence (B,) of softmax(first) and softmax(second), both logits (B, K); from 0 to ln 2 (nats)."""
    first, second = F.log_softmax(first, 1), F.log_softmax(second, 1)
    mean = torch.logaddexp(first, second) - math.log(2)
    return 0.5 * ((first.exp() * (first - mean)).sum(1) + (second.exp() * (second - mean)).sum(1))


def reconstruction_error(images: Tensor, reconstruction: Tensor, power: int) -> Tensor:
    """Mean (B,) of |x − AE(x)|^power over the pixels of images (B, C, H, W)."""
    return (images - reconstruction).abs().pow(power).flatten(1).mean(1)
