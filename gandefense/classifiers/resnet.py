"""Residual networks for small images; normalisation is their first layer, so they take images in [0, 1]."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from gandefense.classifiers.feature_denoising import DenoisingBlock


class Normalize(nn.Module):
    """Subtract a channel's mean and divide by its standard deviation: (B, C, H, W) in [0, 1] → (B, C, H, W)."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def _conv_bn_relu(inputs: int, outputs: int, *, pool: bool = False, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """x + f(x) for an f that keeps the shape."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class ShallowResNet(nn.Module):
    """A nine-to-eleven-layer residual network that trains fast: (B, C, H, W) in [0, 1] → logits (B, K).

    The layout that D. Page made known in the DAWNBench competition (2018): a stem, three stages of convolution and max
    pooling, and a residual pair of convolutions after the stages named in `residual_stages`. Page's network ends in a
    global maximum (`pooling="max"`), through which a gradient reaches one position a channel, and attacks may
    stall; the mean is ours. `denoise` names the operation of a denoising block (Xie et al. 2019) after the stem and
    after each stage, four in all; None: no blocks.

    For larger images, `shrink` averages squares of so many pixels a side before the stem, `stem_stride` is the stem's, and
    `widths` may name more stages.
    """

    def __init__(
        self,
        *,
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        widths: tuple[int, ...] = (32, 64, 128, 256),
        residual_stages: tuple[int, ...] = (0, 1, 2),
        pooling: str = "mean",
        denoise: str | None = None,
        shrink: int = 1,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.normalize = Normalize(mean, std)
        self.shrink = nn.AvgPool2d(shrink) if shrink > 1 else nn.Identity()
        self.stem = _conv_bn_relu(len(mean), widths[0], stride=stem_stride)
        if denoise is not None:
            self.stem.append(DenoisingBlock(denoise, widths[0]))
        stages: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(pairwise(widths)):
            stages.append(_conv_bn_relu(inputs, outputs, pool=True))
            if stage in residual_stages:
                stages.append(Residual(nn.Sequential(_conv_bn_relu(outputs, outputs), _conv_bn_relu(outputs, outputs))))
            if denoise is not None:
                stages.append(DenoisingBlock(denoise, outputs))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self.stem(self.shrink(self.normalize(images))))
        return self.head(features.amax(dim=(2, 3)) if self.pooling == "max" else features.mean(dim=(2, 3)))


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU, convolution, twice, plus a shortcut (He et al. 2016, "Identity Mappings"; Zagoruyko & Komodakis 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes_shape = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes_shape else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        skipped = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return skipped + self.conv2(self.relu2(self.norm2(self.conv1(active))))


class PreActivationResNet(nn.Module):
    """A pre-activation residual network: (B, C, H, W) in [0, 1] → logits (B, K).

    Args:
        widths: channels of the stages; each stage after the first halves the resolution.
        blocks: residual blocks in each stage.
        stem: channels of the first convolution.
    """

    def __init__(
        self,
        *,
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        widths: tuple[int, ...],
        blocks: int,
        stem: int,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.stem = nn.Conv2d(len(mean), stem, 3, 1, 1, bias=False)
        stages, inputs = [], stem
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(PreActivationBlock(inputs, width, stride=2 if stage > 0 and block == 0 else 1))
                inputs = width
        self.stages = nn.Sequential(*stages)
        self.norm, self.relu = nn.BatchNorm2d(inputs), nn.ReLU()
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self.stem(self.normalize(images)))
        return self.head(self.relu(self.norm(features)).mean(dim=(2, 3)))


def wide_resnet(*, depth: int, width: int, classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> PreActivationResNet:
    """WRN-depth-width of Zagoruyko & Komodakis (2016); depth must be 6n + 4."""
    if (depth - 4) % 6 != 0:
        raise ValueError(f"a wide ResNet's depth is 6n + 4, got {depth}")
    widths = (16 * width, 32 * width, 64 * width)
    return PreActivationResNet(classes=classes, mean=mean, std=std, widths=widths, blocks=(depth - 4) // 6, stem=16)


def resnet18(*, classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> PreActivationResNet:
    """The pre-activation ResNet-18 for 32×32 images (He et al. 2016)."""
    return PreActivationResNet(classes=classes, mean=mean, std=std, widths=(64, 128, 256, 512), blocks=2, stem=64)
