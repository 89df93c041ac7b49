"""The GAN defence: detect → clean → regenerate, image by image, until the result passes and settles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import Restoration, Restorer
from gandefense.restorers.fused_detector import FusedDetector, from_description
from gandefense.restorers.generator import Generator
from gandefense.restorers.perturbation_classifier import PerturbationClassifier
from gandefense.restorers.sparsity_mapping import ISMNS
from gandefense.weights_io import finite_number, rebuild

MOST_ROUNDS = 1000  # that a weights file may ask for
SOFTNESS = 1.0  # temperature of the soft decision that the `smooth` view differentiates, in units of the score


class Round(NamedTuple):
    """One detect → clean → regenerate round: images (B, C, H, W), logit and level (B,), sparsity (B, 1, H, W)."""

    cleaned: Tensor
    regenerated: Tensor
    logit: Tensor
    level: Tensor
    sparsity: Tensor


class Judged(NamedTuple):
    """The first half of a round: cleaned images (B, C, H, W), code (B, 128), logit and level (B,), sparsity (B, 1, H, W)."""

    cleaned: Tensor
    code: Tensor
    logit: Tensor
    level: Tensor
    sparsity: Tensor

    def rows(self, chosen: Tensor) -> Judged:
        """Those of some images: positions, or bool (B,)."""
        return Judged(*(part[chosen] for part in self))


class GANNetworks(nn.Module):
    """The three networks that the defence needs at test time: ISMN, perturbation classifier, generator.

    Args:
        channels: of the image.
        size: of the image.
        ismn: "full" or "paper", see sparsity_mapping.
        width: of the generator at full resolution.
        norm: see layers.NORMS.
    """

    def __init__(self, *, channels: int, size: int, ismn: str = "full", width: int = 24, norm: str = "group") -> None:
        super().__init__()
        if ismn not in ISMNS:
            raise UserError(f"unknown ISMN {ismn!r}; known: {', '.join(ISMNS)}")
        self.ismn = ISMNS[ismn](channels=channels, size=size, norm=norm)
        self.perturbation = PerturbationClassifier(channels=channels)
        self.generator = Generator(channels=channels, size=size, width=width, norm=norm)

    def forward(self, images: Tensor, *, constant_level: bool = False) -> Round:
        """One round on images (B, C, H, W) in [0, 1].

        Args:
            images: the batch.
            constant_level: hold the detector's level constant for differentiation (`detached` view).
        """
        judged = self.judge(images)
        return Round(judged.cleaned, self.regenerate(judged, constant_level=constant_level), *judged[2:])

    def judge(self, images: Tensor) -> Judged:
        """The first half of a round, without the generator: what the ISMN and the perturbation classifier say."""
        cleaned, code, sparsity = self.ismn(images)
        logit, level = self.perturbation(images, cleaned, code)
        return Judged(cleaned, code, logit, level, sparsity)

    def regenerate(self, judged: Judged, *, constant_level: bool = False) -> Tensor:
        """The second half: regenerated images (B, C, H, W) in [0, 1]; see `forward`."""
        return self.generator(judged.cleaned, judged.code, judged.level.detach() if constant_level else judged.level)

    def detect(self, images: Tensor) -> Tensor:
        """The attack logit (B,) of images (B, C, H, W) in [0, 1]."""
        return self.judge(images).logit


class GANRestorer(Restorer):
    """The loop around the networks.

    An image that is not flagged leaves untouched. A flagged one is cleaned and regenerated; the result is given to the
    perturbation classifier again, and the image is finished when it passes *and* the last two versions agree (the
    cleaned image counts as the version before the first), or after `rounds` rounds. Finished images leave the batch.

    Args:
        networks: ISMN, perturbation classifier, generator.
        threshold: of the attack logit, chosen on validation images for a false-positive rate.
        rounds: the most rounds an image gets.
        tolerance: mean absolute difference, in pixel units, under which two versions agree.
        detector: gives the score by which an image is flagged at first; None: the attack logit does.
        generator: off, what the ISMN left takes the place of what the generator makes of it; to see which part helps.
    """

    def __init__(
        self,
        networks: GANNetworks,
        *,
        threshold: float = 0.0,
        rounds: int = 2,
        tolerance: float = 4 / 255,
        detector: FusedDetector | None = None,
        generator: bool = True,
    ) -> None:
        super().__init__()
        self.networks = networks
        self.detector = detector
        self.generator = generator
        self.threshold = threshold
        self.rounds = rounds
        self.tolerance = tolerance

    def forward(self, images: Tensor) -> Restoration:
        """Restore a batch; `maps` holds the sparsity map, what the ISMN left, and the image after each round."""
        return self._loop(images, constant_level=False)

    def score(self, images: Tensor, judged: Judged) -> Tensor:
        """The score (B,) by which images (B, C, H, W) in [0, 1] are flagged, whatever the detector is."""
        return judged.logit if self.detector is None else self.detector(images, judged)

    def regenerate(self, judged: Judged, *, constant_level: bool = False) -> Tensor:
        """The second half of a round, images (B, C, H, W) in [0, 1]; without the generator, what the ISMN left."""
        return self.networks.regenerate(judged, constant_level=constant_level) if self.generator else judged.cleaned

    @property
    def limit(self) -> float:
        """The score above which an image is flagged."""
        return self.threshold if self.detector is None else self.detector.threshold

    def scored(self, images: Tensor, view: str) -> tuple[Tensor, Tensor]:
        """Restored images and attack logits with a gradient.

        The decisions are hard thresholds: their gradient is zero almost everywhere, in every view but `smooth`, which
        mixes image and restored image by a sigmoid of the score. `detached` also holds the level constant.
        """
        if view == "smooth":
            restored, first = self.soft(images)
            return restored, self.score(images, first)
        restoration = self._loop(images, constant_level=view == "detached")
        return restoration.images, restoration.score

    def soft(self, images: Tensor, *, rounds: int = 1, softness: float = SOFTNESS) -> tuple[Tensor, Judged]:
        """The loop unrolled for a fixed number of rounds with soft decisions, so that every part of it has a gradient.

        Each hard decision "flagged" becomes a probability p = sigmoid((score − threshold) / softness), and the image the
        mean over what the loop would return: it leaves before the first round with 1 − p₁, after it with p₁ (1 − p₂), and so
        on. As in the loop, a round meets the image that the one before regenerated, never a mixture. That two versions
        agree is not asked: who is judged clean leaves.

        Args:
            images: (B, C, H, W) in [0, 1].
            rounds: how many, for every image.
            softness: temperature of the decisions in units of the score; towards 0 they become hard.

        Returns:
            Restored images (B, C, H, W), and the first half of the first round.
        """
        restored, given, going_on, first = images, images, torch.ones(len(images), 1, 1, 1, device=images.device), None
        for _ in range(rounds):
            judged = self.networks.judge(given)
            margin = self.score(given, judged) - self.limit if first is None else judged.logit - self.threshold
            going_on = going_on * torch.sigmoid(margin / softness).view(-1, 1, 1, 1)
            regenerated = self.regenerate(judged)
            restored = restored + going_on * (regenerated - given)
            given, first = regenerated, judged if first is None else first
        return restored, first

    def _loop(self, images: Tensor, *, constant_level: bool) -> Restoration:
        first = self.networks.judge(images)
        score = self.score(images, first)
        flagged = score.detach() > self.limit
        maps = {"sparsity": first.sparsity, "cleaned": first.cleaned}
        active = flagged.nonzero()[:, 0]
        restored, judged = images, first.rows(active)
        before = judged.cleaned
        for number in range(1, self.rounds + 1):
            if len(active):
                regenerated = self.regenerate(judged, constant_level=constant_level)
                restored = restored.index_copy(0, active, regenerated)
            maps[f"round_{number}"] = restored
            if number == self.rounds or not len(active):
                continue
            with torch.no_grad():
                judged = self.networks.judge(regenerated)
                settled = (regenerated - before).abs().mean((1, 2, 3)) < self.tolerance
                goes_on = ~(settled & (judged.logit <= self.threshold))
            active, before = active[goes_on], regenerated[goes_on]
            # With a gradient, once more for the images that go on: what was judged above has none.
            judged = self.networks.judge(before) if regenerated.requires_grad and len(active) else judged.rows(goes_on)
        maps["residual"] = images - restored
        return Restoration(restored, score, flagged, first.level, maps)


def from_weights(tensors: dict[str, Tensor], description: dict[str, Any], classifier: nn.Module, source: Path) -> GANRestorer:
    """A restorer from the contents of a weights file; raises UserError when they do not fit together."""
    networks = rebuild(GANNetworks, description.get("network"), tensors, source=source)
    loop = description.get("loop")
    if not isinstance(loop, dict) or not loop.keys() <= {"threshold", "rounds", "tolerance", "generator"}:
        raise UserError(f"{source}: its description of the network is incomplete (the loop)")
    if type(loop.get("generator", True)) is not bool:
        raise UserError(f"{source}: its generator is either on or off, got {loop['generator']!r}")
    for name, value in loop.items():
        if name != "generator":
            finite_number(value, name, source=source, infinite=name == "threshold")
    rounds = loop.get("rounds", 1)
    if type(rounds) is not int or not 1 <= rounds <= MOST_ROUNDS:
        raise UserError(f"{source}: its rounds must be 1 … {MOST_ROUNDS}, got {rounds!r}")
    about = description.get("detector")
    detector = None if about is None else from_description(about, classifier, source=source)
    return GANRestorer(networks, **loop, detector=detector)
