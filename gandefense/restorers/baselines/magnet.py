"""MagNet (Meng & Chen, CCS 2017): autoencoders of clean images, read as detectors and used as a reformer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import Restoration, Restorer
from gandefense.restorers.signals import jensen_shannon, reconstruction_error
from gandefense.weights_io import finite_number, rebuild

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}


class AutoEncoder(nn.Module):
    """3×3 convolutions in the order of `structure`, then mirrored, then one more to the image, with a sigmoid.

    Args:
        channels: of the image.
        structure: numbers of filters, and "average" for 2×2 average pooling (undone by repeating pixels in the mirrored
            half), as in the authors' code: ["3"] for CIFAR-10, ["3", "average", "3"] and ["3"] for MNIST.
        activation: after every hidden convolution, see ACTIVATIONS.

    Raises:
        UserError: an unknown layer or activation.
    """

    def __init__(self, *, channels: int, structure: list[str], activation: str = "sigmoid") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]()
        self.plan: list[str] = []  # "convolution", "pool" or "repeat"
        self.convolutions = nn.ModuleList()
        width = channels
        for mirrored, layers in ((False, structure), (True, structure[::-1])):
            for layer in map(str, layers):
                if layer == "average":
                    self.plan.append("repeat" if mirrored else "pool")
                elif layer.isdecimal() and int(layer) > 0:
                    self.plan.append("convolution")
                    self.convolutions.append(nn.Conv2d(width, int(layer), 3, padding=1))
                    width = int(layer)
                else:
                    raise UserError(f"an autoencoder's layer is a number of filters or 'average', got {layer!r}")
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def with_activity(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] → reconstructions of the same shape and range, and the hidden layers' activity.

        The activity is a scalar, the sum of squared activations of an image, averaged over the batch.
        """
        x, activity = images, images.new_zeros(())
        convolutions, sizes = iter(self.convolutions), []
        for step in self.plan:
            if step == "pool":
                sizes.append(x.shape[-2:])
                x = F.avg_pool2d(x, 2, ceil_mode=True)
            elif step == "repeat":
                x = F.interpolate(x, size=sizes.pop(), mode="nearest")
            else:
                x = self.activation(next(convolutions)(x))
                activity = activity + x.to(images.dtype).square().sum() / len(x)
        return torch.sigmoid(self.out(x).to(images.dtype)), activity

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → reconstructions of the same shape and range."""
        return self.with_activity(images)[0]


# kind → (images, their reconstructions, the classifier's logits on either, temperature) → marks (B,), higher = stranger
MARKS: dict[str, Callable[[Tensor, Tensor, Tensor | None, Tensor | None, float], Tensor]] = {
    "l1": lambda images, made, *_: reconstruction_error(images, made, 1),
    "l2": lambda images, made, *_: reconstruction_error(images, made, 2),
    "jsd": lambda images, made, logits, made_logits, temperature: jensen_shannon(logits / temperature, made_logits / temperature),
}


@dataclass
class DetectorConfig:
    """One detector: what it measures, on which autoencoder, and how many clean images it may cost."""

    kind: str = "l1"  # see MARKS: l1, l2 (reconstruction error) or jsd (divergence of the classifier's answers)
    autoencoder: int = 0  # counted from 0
    temperature: float = 1.0  # of the softmax, for jsd
    drop_rate: float = 0.005  # fraction of clean validation images that it may reject


def drop_threshold(marks: Tensor, drop_rate: float) -> float:
    """The smallest of the marks (N,) of clean images that at most the fraction `drop_rate` (below 1) of them exceeds."""
    allowed = math.floor(drop_rate * len(marks) + 1e-9)  # 0.005 × 1000 is 5, whatever binary fractions say
    return marks.double().sort().values[len(marks) - allowed - 1].item()


class MagNetRestorer(Restorer):
    """Autoencoders before a classifier: the first one reforms every image, the detectors reject strange ones.

    A detector's mark above its threshold rejects an image; `score` is the largest mark in units of its threshold, so that
    MagNet's decision is score > 1. MagNet counts a rejected adversarial image as a success of the defence.

    Args:
        autoencoders: of clean images; the first is the reformer.
        classifier: images → logits; the divergence detectors ask it.
        detectors: see DetectorConfig; at least one.
        thresholds: one a detector, above 0; None while none has been chosen, and nothing is rejected.

    Raises:
        UserError: no detector, an unknown kind, an autoencoder that is not there, or thresholds that do not fit.
    """

    def __init__(
        self,
        autoencoders: nn.ModuleList,
        classifier: nn.Module,
        detectors: list[DetectorConfig],
        thresholds: list[float] | None = None,
    ) -> None:
        super().__init__()
        check_detectors(detectors, len(autoencoders))
        self.autoencoders = autoencoders
        self.classifier = classifier
        self.detectors = detectors
        self.thresholds = [math.inf] * len(detectors) if thresholds is None else thresholds
        if len(self.thresholds) != len(detectors) or not all(threshold > 0 for threshold in self.thresholds):
            raise UserError(f"{len(detectors)} detectors need as many thresholds above 0, got {self.thresholds}")

    def _marks(self, images: Tensor, reconstructions: list[Tensor]) -> Tensor:
        asked = {detector.autoencoder for detector in self.detectors if detector.kind == "jsd"}
        logits = self.classifier(images) if asked else None
        answers = {number: self.classifier(reconstructions[number]) for number in asked}
        marks = [
            MARKS[detector.kind](
                images, reconstructions[detector.autoencoder], logits, answers.get(detector.autoencoder), detector.temperature
            )
            for detector in self.detectors
        ]
        return torch.stack(marks, dim=1)

    def marks(self, images: Tensor) -> Tensor:
        """The detectors' marks (B, detectors) on images (B, C, H, W) in [0, 1], with a true gradient."""
        return self._marks(images, [autoencoder(images) for autoencoder in self.autoencoders])

    def forward(self, images: Tensor) -> Restoration:
        """Reform a batch; `maps` holds every autoencoder's reconstruction and what the reformer removed."""
        reconstructions = [autoencoder(images) for autoencoder in self.autoencoders]
        marks = self._marks(images, reconstructions)
        score = (marks / marks.new_tensor(self.thresholds)).amax(1)
        maps = {f"reconstruction_{number}": made for number, made in enumerate(reconstructions)}
        maps["residual"] = images - reconstructions[0]
        return Restoration(reconstructions[0], score, score > 1, torch.full_like(score, torch.nan), maps)


def check_detectors(detectors: list[DetectorConfig], autoencoders: int) -> None:
    """Raise UserError unless every detector is of a known kind and reads one of the autoencoders; any types may be given."""
    if not detectors:
        raise UserError("MagNet needs at least one detector")
    for detector in detectors:
        if not isinstance(detector.kind, str) or detector.kind not in MARKS:
            raise UserError(f"unknown detector {detector.kind!r}; known: {', '.join(MARKS)}")
        counted = isinstance(detector.autoencoder, int) and not isinstance(detector.autoencoder, bool)
        if not counted or not 0 <= detector.autoencoder < autoencoders:
            raise UserError(f"a detector reads autoencoder {detector.autoencoder!r}, but they go from 0 to {autoencoders - 1}")
        for name in ("temperature", "drop_rate"):
            finite_number(getattr(detector, name), f"detector's {name}", source="MagNet")
        if not (detector.temperature > 0 and 0 <= detector.drop_rate < 1):
            raise UserError(
                "a detector's temperature is above 0 and its drop_rate from 0 to below 1, "
                f"got {detector.temperature} and {detector.drop_rate}"
            )


def build_autoencoders(channels: int, structures: list[list[str]], activation: str = "sigmoid") -> nn.ModuleList:
    """The autoencoders of the given structures, see AutoEncoder; raises UserError for none or a bad one."""
    if not structures:
        raise UserError("MagNet needs at least one autoencoder")
    return nn.ModuleList(AutoEncoder(channels=channels, structure=list(s), activation=activation) for s in structures)


def from_weights(tensors: dict[str, Tensor], description: dict[str, Any], classifier: nn.Module, source: Path) -> MagNetRestorer:
    """A restorer from the contents of a weights file; raises UserError when they do not fit together."""
    try:
        detectors = [DetectorConfig(**detector) for detector in description["detectors"]]
        thresholds = [finite_number(value, "threshold", source=source, infinite=True) for value in description["thresholds"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{source}: its description of the network is incomplete ({error})") from None
    autoencoders = rebuild(build_autoencoders, description.get("network"), tensors, source=source)
    try:
        return MagNetRestorer(autoencoders, classifier, detectors, thresholds)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
