"""The networks that are defended: plain modules, images (B, C, H, W) in [0, 1] → logits (B, K)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from gandefense.classifiers.feature_denoising import OPERATIONS
from gandefense.classifiers.paper_cnn import PaperCNN
from gandefense.classifiers.resnet import ShallowResNet, resnet18, wide_resnet
from gandefense.data.datasets import Dataset
from gandefense.errors import UserError


def _narrow(denoise: str | None, options: dict[str, Any]) -> ShallowResNet:
    return ShallowResNet(**options, widths=(16, 32, 64, 128), residual_stages=(0, 2), denoise=denoise)


CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "resnet9": lambda data, **options: ShallowResNet(**options, residual_stages=(0, 2)),
    "resnet9_narrow": lambda data, **options: _narrow(None, options),
    "resnet11": lambda data, **options: ShallowResNet(**options),
    "resnet11_max": lambda data, **options: ShallowResNet(**options, pooling="max"),
    "resnet11_wide": lambda data, **options: ShallowResNet(**options, widths=(64, 128, 256, 512)),
    # for faces of 128 pixels and more, which it looks at in 128; weights fit at every size
    "resnet12_faces": lambda data, **options: ShallowResNet(
        **options, widths=(16, 32, 64, 128, 256), residual_stages=(0, 1, 2), shrink=max(1, data.size // 128), stem_stride=2
    ),
    "resnet18": lambda data, **options: resnet18(**options),
    "wrn_16_2": lambda data, **options: wide_resnet(depth=16, width=2, **options),
    "wrn_16_4": lambda data, **options: wide_resnet(depth=16, width=4, **options),
    "paper_cnn": lambda data, **options: PaperCNN(size=data.size, **options),
    # resnet9_narrow with four denoising blocks, one entry for each operation: resnet9_narrow_denoise_dot_product …
    **{f"resnet9_narrow_denoise_{name}": lambda data, name=name, **options: _narrow(name, options) for name in OPERATIONS},
}


SMALLEST = {"resnet12_faces": 64}  # pixels that an architecture needs, where it does not take all


def build(architecture: str, data: Dataset) -> nn.Module:
    """A freshly initialised classifier for a data set; raises UserError for an unknown one, or one for larger images."""
    if not isinstance(architecture, str) or architecture not in CLASSIFIERS:
        raise UserError(f"unknown classifier {architecture!r}; known: {', '.join(CLASSIFIERS)}")
    if data.size < SMALLEST.get(architecture, 0):
        raise UserError(
            f"{architecture} is for images of {SMALLEST[architecture]} pixels and more, {data.name} has {data.size}×{data.size}"
        )
    return CLASSIFIERS[architecture](data, classes=len(data.classes), mean=data.mean, std=data.std)
