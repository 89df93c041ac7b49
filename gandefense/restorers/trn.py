"""TRN: the Two-stream Restoration Network of Hong et al. (2022), our reading of an incompletely published design."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import Restoration, Restorer
from gandefense.restorers.gradient_maps import GradientMaps, gradient_maps, softplus_activations
from gandefense.restorers.layers import norm_layer
from gandefense.weights_io import finite_number, rebuild

STREAMS = ("both", "image", "maps", "none")
MOST_HALVINGS = 8


def _convolution(inputs: int, outputs: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)


class FusionBlock(nn.Module):
    """One Fusion Block: a convolution a stream, a Fusion Connection between them, a residual connection a stream.

    Both streams are (B, width, H, W) in and out. The Fusion Connection is a 1×1 convolution over both streams whose
    result is added to each. The residual branches start at zero, so that any number of blocks can be stacked.
    """

    def __init__(self, width: int, *, norm: str = "group") -> None:
        super().__init__()
        self.image_conv, self.image_norm = _convolution(width, width), norm_layer(norm, width)
        self.maps_conv, self.maps_norm = _convolution(width, width), norm_layer(norm, width)
        self.fusion = nn.Conv2d(2 * width, width, 1)
        self.image_out = nn.Conv2d(width, width, 1)
        self.maps_out = nn.Conv2d(width, width, 1)
        for layer in (self.image_out, self.maps_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        image_features = F.relu(self.image_norm(self.image_conv(image)))
        maps_features = F.relu(self.maps_norm(self.maps_conv(maps)))
        shared = self.fusion(torch.cat([image_features, maps_features], dim=1))
        return image + self.image_out(F.relu(image_features + shared)), maps + self.maps_out(F.relu(maps_features + shared))


def _fusion_blocks(width: int, blocks: int, norm: str) -> nn.ModuleList:
    return nn.ModuleList(FusionBlock(width, norm=norm) for _ in range(blocks))


def _through(blocks: nn.ModuleList, image: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    for block in blocks:
        image, maps = block(image, maps)
    return image, maps


class Halving(nn.Module):
    """Both streams (B, inputs, H, W) at half the resolution, (B, outputs, ⌈H/2⌉, ⌈W/2⌉): a strided convolution each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.image, self.maps = (nn.Conv2d(inputs, outputs, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, image: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(image), self.maps(maps)


class Doubling(nn.Module):
    """Both streams (B, inputs, h, w) at the resolution that they had before a Halving, added to what they were there."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.image, self.maps = (nn.Conv2d(inputs, outputs, 1) for _ in range(2))

    def forward(self, image: Tensor, maps: Tensor, image_above: Tensor, maps_above: Tensor) -> tuple[Tensor, Tensor]:
        size = image_above.shape[-2:]
        return (
            image_above + F.interpolate(self.image(image), size=size, mode="nearest"),
            maps_above + F.interpolate(self.maps(maps), size=size, mode="nearest"),
        )


class TwoStreamRestorationNetwork(nn.Module):
    """Image and gradient maps in, restored image out; two stems, N Fusion Blocks, a tail that predicts the residual.

    The publications leave width, depth, normalisation and the tail open; these are our choices. With `halvings` the streams
    also run at lower resolutions, as in a U-Net: at full resolution alone, four blocks see seven pixels to each side.

    Args:
        channels: of the image.
        labels: number of gradient maps, K (or top_k).
        width: channels of each stream at full resolution; twice as many at half of it, and from there on.
        blocks: number of Fusion Blocks; with halvings at each resolution on the way down and again on the way up.
        halvings: how often the resolution is halved; 0: all blocks work at full resolution.
        streams: "both", or one of "image", "maps", "none" with the other input blanked (the article's ablation, at
            equal parameters).
        norm: see layers.NORMS.
    """

    def __init__(
        self,
        *,
        channels: int,
        labels: int,
        width: int = 32,
        blocks: int = 4,
        halvings: int = 0,
        streams: str = "both",
        norm: str = "group",
    ) -> None:
        super().__init__()
        if streams not in STREAMS:
            raise UserError(f"unknown streams {streams!r}; known: {', '.join(STREAMS)}")
        if not 0 <= halvings <= MOST_HALVINGS:
            raise UserError(f"halvings lies between 0 and {MOST_HALVINGS}, got {halvings}")
        self.streams = streams
        self.image_stem = _convolution(channels, width)
        self.maps_stem = _convolution(labels * channels, width)
        self.norm_stem = nn.Linear(labels, width)
        self.blocks = _fusion_blocks(width, blocks, norm)
        widths = [width, *[2 * width] * halvings]
        self.down = nn.ModuleList(Halving(above, below) for above, below in pairwise(widths))
        self.down_blocks = nn.ModuleList(_fusion_blocks(below, blocks, norm) for below in widths[1:])
        self.up = nn.ModuleList(Doubling(below, above) for above, below in list(pairwise(widths))[::-1])
        self.up_blocks = nn.ModuleList(_fusion_blocks(above, blocks, norm) for above in widths[-2::-1])
        self.tail = nn.Sequential(_convolution(2 * width, width), nn.ReLU(), _convolution(width, channels))
        nn.init.zeros_(self.tail[-1].weight)
        nn.init.zeros_(self.tail[-1].bias)

    def forward(self, images: Tensor, gradients: GradientMaps) -> Tensor:
        """Restore images.

        Args:
            images: (B, C, H, W) in [0, 1].
            gradients: maps (B, K·C, H, W) and log-norms (B, K).

        Returns:
            (B, C, H, W) in [0, 1].
        """
        maps, log_norms = gradients
        use_image, use_maps = self.streams in ("both", "image"), self.streams in ("both", "maps")
        image_stream = self.image_stem((images - 0.5) * (4.0 if use_image else 0.0))
        maps_stream = self.maps_stem(2.0 * maps if use_maps else torch.zeros_like(maps))
        norm_bias = self.norm_stem(log_norms / 4.0 if use_maps else torch.zeros_like(log_norms))
        maps_stream = maps_stream + norm_bias[:, :, None, None]
        streams = _through(self.blocks, image_stream, maps_stream)
        above = []
        for halving, blocks in zip(self.down, self.down_blocks, strict=True):
            above.append(streams)
            streams = _through(blocks, *halving(*streams))
        for doubling, blocks in zip(self.up, self.up_blocks, strict=True):
            streams = _through(blocks, *doubling(*streams, *above.pop()))
        residual = self.tail(torch.cat(streams, dim=1))
        return (images + residual.to(images.dtype)).clamp(0, 1)


def removed(residual: Tensor) -> Tensor:
    """The score (B,): root mean square of a residual (B, C, H, W), in units of 1/255; its gradient at zero is zero."""
    mean_square = residual.flatten(1).square().mean(1)
    return torch.where(mean_square > 0, mean_square, 1.0).sqrt().where(mean_square > 0, 0.0) * 255


class TRNRestorer(Restorer):
    """TRN in front of a classifier, whose gradients it reads.

    Args:
        network: the restoration network.
        classifier: images → logits; the classifier that is defended.
        top_k: see `gradient_maps`.
        threshold: of the score, chosen on validation images.
    """

    def __init__(
        self,
        network: TwoStreamRestorationNetwork,
        classifier: nn.Module,
        *,
        top_k: int | None = None,
        threshold: float = float("inf"),
    ) -> None:
        super().__init__()
        self.network = network
        self.classifier = classifier
        self.top_k = top_k
        self.threshold = threshold

    def forward(self, images: Tensor) -> Restoration:
        """Restore a batch; `score` is the root mean square of what was removed, in units of 1/255."""
        gradients = gradient_maps(self.classifier, images, top_k=self.top_k)
        restored = self.network(images, gradients)
        residual = images - restored
        score = removed(residual)
        maps = {"gradient_maps": gradients.maps, "residual": residual}
        return Restoration(restored, score, score > self.threshold, torch.full_like(score, torch.nan), maps)

    def scored(self, images: Tensor, view: str) -> tuple[Tensor, Tensor]:
        if view == "smooth":
            with softplus_activations():
                gradients = gradient_maps(self.classifier, images, top_k=self.top_k, create_graph=True)
        else:
            gradients = gradient_maps(self.classifier, images, top_k=self.top_k, create_graph=view == "exact")
        restored = self.network(images, gradients)
        return restored, removed(images - restored)


def from_weights(tensors: dict[str, Tensor], description: dict[str, Any], classifier: nn.Module, source: Path) -> TRNRestorer:
    """A restorer from the contents of a weights file; raises UserError when they do not fit together."""
    options = description.get("network")
    network = rebuild(TwoStreamRestorationNetwork, options, tensors, source=source)
    top_k = description.get("top_k")
    if top_k is not None and (type(top_k) is not int or top_k != options["labels"]):
        raise UserError(f"{source}: its top_k must be the network's number of labels, {options['labels']}, got {top_k!r}")
    threshold = finite_number(description.get("threshold", float("inf")), "threshold", source=source, infinite=True)
    return TRNRestorer(network, classifier, top_k=top_k, threshold=threshold)
