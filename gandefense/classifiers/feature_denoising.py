"""Feature denoising blocks (Xie et al. 2019): a network that smooths its feature maps, made to be trained adversarially."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.errors import UserError

MOST_WEIGHTS = 2**13  # of the softmax attention of one image; see `NonLocal`


class NonLocal(nn.Module):
    """Every position becomes a mean of all, weighted by softmax(θ(x_i)·φ(x_j) / √d): (B, C, H, W) → the same shape.

    Xie et al. (2019), "Gaussian (softmax)", with the identity for values. Keys and values come from the features
    after max pooling, as Wang et al. (2018) sub-sample them, until N positions and M keys have at most
    2¹³ weights: 3×3 keys at 32×32, 6×6 at 16×16, all from 8×8 on. The full attention has 1024² weights an image at
    32×32, which a CPU cannot train; so limited, four blocks make a training step of resnet9_narrow about 1.5 times as
    long. (Of the other operations, bilateral and median are the slow ones: about 6 times.)

    Args:
        channels: C.
        embedded: whether θ and φ are 1×1 convolutions to C / 2 channels; otherwise both are the identity.
        most_weights: largest N · M.
    """

    def __init__(self, channels: int, *, embedded: bool, most_weights: int = MOST_WEIGHTS) -> None:
        super().__init__()
        self.most_weights = most_weights
        self.inner = max(1, channels // 2) if embedded else channels
        self.embedded = embedded
        if embedded:
            self.theta, self.phi = (nn.Conv2d(channels, self.inner, 1, bias=False) for _ in range(2))
            for embedding in (self.theta, self.phi):
                nn.init.normal_(embedding.weight, std=0.01)  # as the authors do: nearly a plain mean at the start

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[2:]
        factor = math.ceil(height * width / math.sqrt(self.most_weights))  # N · M = N² / factor²
        values = F.max_pool2d(features, factor, ceil_mode=True) if factor > 1 else features
        keys = values
        if self.embedded:  # θ(x_i)·φ(x_j) = x_i·θᵀφ(x_j): θ is applied to the few keys in place of the many positions
            keys = F.conv_transpose2d(self.phi(values), self.theta.weight)
        queries, keys, values = (part.flatten(2).transpose(1, 2) for part in (features, keys, values))
        # Not torch's fused attention: it has no second derivative, which gradient maps of a classifier may need.
        weights = (queries @ keys.transpose(1, 2) / math.sqrt(self.inner)).softmax(2)
        return (weights @ values).transpose(1, 2).unflatten(2, (height, width))


def dot_product(features: Tensor) -> Tensor:
    """Non-local means with weights x_i·x_j / N (Xie et al. 2019, "dot product"): (B, C, H, W) → the same shape.

    Without a softmax, Σ_j (x_i·x_j) x_j = x_i (Σ_j x_j x_jᵀ), so all N positions are used at the cost of a C × C matrix.
    """
    rows = features.flatten(2).transpose(1, 2)
    denoised = rows @ (rows.transpose(1, 2) @ rows / rows.shape[1])
    return denoised.transpose(1, 2).unflatten(2, features.shape[2:])


def bilateral(features: Tensor) -> Tensor:
    """3×3 bilateral filter, its weights falling with the distance of the feature vectors per √C: (B, C, H, W) → the same."""
    from kornia.filters import bilateral_blur

    return bilateral_blur(features, 3, math.sqrt(features.shape[1]), (1.0, 1.0), color_distance_type="l2")


def mean(features: Tensor) -> Tensor:
    """3×3 mean filter of each channel, over what lies inside the map: (B, C, H, W) → the same shape."""
    return F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)


def median(features: Tensor) -> Tensor:
    """3×3 median filter of each channel: (B, C, H, W) → the same shape."""
    from kornia.filters import median_blur

    return median_blur(features, 3)


class Local(nn.Module):
    """A denoising operation without parameters, as a module."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, features: Tensor) -> Tensor:
        return self.operation(features)


# name → channels → module that keeps the shape (B, C, H, W)
OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "embedded_gaussian": lambda channels: NonLocal(channels, embedded=True),
    "gaussian": lambda channels: NonLocal(channels, embedded=False),
    "dot_product": lambda channels: Local(dot_product),
    "bilateral": lambda channels: Local(bilateral),
    "mean": lambda channels: Local(mean),
    "median": lambda channels: Local(median),
    "none": lambda channels: nn.Identity(),  # the paper's "null" block: the 1×1 convolution alone
}


class DenoisingBlock(nn.Module):
    """x + norm(1×1 convolution(denoised x)) (Xie et al. 2019): (B, C, H, W) → the same shape.

    The norm's scale starts at 0, so that a fresh block is the identity.

    Args:
        operation: a name in OPERATIONS.
        channels: C.

    Raises:
        UserError: an unknown operation.
    """

    def __init__(self, operation: str, channels: int) -> None:
        super().__init__()
        if operation not in OPERATIONS:
            raise UserError(f"unknown denoising operation {operation!r}; known: {', '.join(OPERATIONS)}")
        self.operation = OPERATIONS[operation](channels)
        self.convolution = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.norm(self.convolution(self.operation(features)))


class FeatureMaps(NamedTuple):
    """What enters and what leaves one denoising block, each (B, C, H, W)."""

    before: Tensor
    after: Tensor


@contextmanager
def watched_blocks(network: nn.Module) -> Iterator[list[FeatureMaps]]:
    """A list to which every pass of the network adds the maps around each of its denoising blocks, in their order."""
    seen: list[FeatureMaps] = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, output: seen.append(FeatureMaps(inputs[0].detach(), output.detach())))
        for block in network.modules()
        if isinstance(block, DenoisingBlock)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def feature_maps(network: nn.Module, images: Tensor) -> list[FeatureMaps]:
    """The maps around each denoising block for images (B, C, H, W) in [0, 1]; empty for a network without such blocks."""
    with watched_blocks(network) as seen:
        network(images)
    return seen
