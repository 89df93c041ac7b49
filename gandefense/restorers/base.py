"""The interface that all parts share: what a restorer returns, and a classifier behind it as one attackable module."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gandefense.attacks.suite import check_images
from gandefense.attacks.threats import VIEWS
from gandefense.errors import UserError


class Restoration(NamedTuple):
    """What a restorer makes of a batch.

    Attributes:
        images: (B, C, H, W) in [0, 1], restored.
        score: (B,) higher = more likely perturbed.
        flagged: (B,) bool, score above the threshold chosen on validation images.
        level: (B,) estimated attack level; NaN where a restorer does not estimate one.
        maps: name → (B, c, H, W), what a person wants to look at: gradient maps, sparsity map, residual, each round.
    """

    images: Tensor
    score: Tensor
    flagged: Tensor
    level: Tensor
    maps: dict[str, Tensor]


class Restorer(nn.Module):
    """A network that cleans images; subclasses implement `forward`, and `scored` where views differ.

    Attributes:
        passes: how often a defence restores and classifies an image to average the logits, in its answers and in every view
            of it. More than one makes sense only where something is random, which then is drawn anew in every pass (the 30
            iterations of Xie et al. 2018). A restoration by itself is always one pass.
        smallest: pixels that an image needs each way.
    """

    passes: int = 1
    smallest: int = 8

    def forward(self, images: Tensor) -> Restoration:
        """Restore images (B, C, H, W) in [0, 1]."""
        raise NotImplementedError

    def surrogate(self, images: Tensor) -> Tensor:
        """Restored images (B, C, H, W) with the identity as gradient (BPDA, Athalye et al. 2018)."""
        with torch.no_grad():
            restored = self(images).images
        return images + (restored - images).detach()

    def differentiable(self, images: Tensor, view: str) -> Tensor:
        """Restored images (B, C, H, W) with a true gradient.

        Args:
            images: (B, C, H, W) in [0, 1].
            view: "detached", "exact" or "smooth", see VIEWS.
        """
        return self.scored(images, view)[0]

    def scored(self, images: Tensor, view: str) -> tuple[Tensor, Tensor]:
        """Restored images (B, C, H, W) and detector scores (B,), both with a true gradient.

        A restorer without gradient maps and hard decisions has one gradient only, and need not override this.
        """
        restoration = self(images)
        return restoration.images, restoration.score


def undetected(images: Tensor) -> Restoration:
    """Restored images (B, C, H, W) of a restorer that detects nothing: score 0, never flagged, level unknown."""
    nothing = torch.zeros(len(images), device=images.device)
    return Restoration(images, nothing, nothing.bool(), torch.full_like(nothing, torch.nan), {})


class IdentityRestorer(Restorer):
    """Leaves images as they are: the bare classifier in a table, and the null case in tests."""

    def forward(self, images: Tensor) -> Restoration:
        return undetected(images)


def average(passes: int, once: Callable[[], Tensor]) -> Tensor:
    """The mean of what a function gives in so many calls; of one call, exactly that."""
    total = once()
    for _ in range(passes - 1):
        total = total + once()
    return total / passes if passes > 1 else total


class View(nn.Module):
    """What an attacker differentiates: images (B, C, H, W) in [0, 1] → logits (B, K).

    With a `detector`, a threshold and a spread of scores, a last column says how far the detector's score lies above its
    threshold, in units of the spread: (B, K + 1), for the joint attack on classifier and detector. Every view of the
    restorer is averaged over its `passes`, as the defence's own answers are.
    """

    def __init__(self, defended: DefendedClassifier, name: str, detector: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.defended = defended
        self.name = name
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        if self.name == "oblivious":
            return self.defended.classifier(images)
        return average(self.defended.restorer.passes, lambda: self._once(images))

    def _once(self, images: Tensor) -> Tensor:
        """One pass."""
        classifier, restorer = self.defended.classifier, self.defended.restorer
        if self.detector is None and self.name == "straight_through":
            return classifier(restorer.surrogate(images))
        hard = self._hard(images) if self.name == "smooth" else None
        # The identity says nothing of a score, so that its gradient is the detached one there.
        restored, score = restorer.scored(images, "detached" if self.name == "straight_through" else self.name)
        if self.name == "straight_through":
            restored = images + (restored - images).detach()
        if hard is not None:
            restored, score = hard.images + (restored - restored.detach()), hard.score + (score - score.detach())
        if self.detector is None:
            return classifier(restored)
        threshold, spread = self.detector
        return torch.cat([classifier(restored), ((score - threshold) / spread).unsqueeze(1)], dim=1)

    def _hard(self, images: Tensor) -> Restoration:
        """What the restorer really returns: under `smooth` it gets the softened gradient, so that a success is a real one.

        It sees the random draws that the softened pass after it will see.
        """
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []), torch.no_grad():
            return self.defended.restorer(images.detach())


class DefendedClassifier(nn.Module):
    """A classifier behind a restorer, as one plain module: images (B, C, H, W) in [0, 1] → logits (B, K).

    Logits are averaged over the restorer's `passes`. Any attack library can attack it unchanged: its gradient is that of the
    `exact` view. Images outside [0, 1], with NaN or with a wrong number of channels raise UserError (a ValueError).
    """

    def __init__(self, restorer: Restorer, classifier: nn.Module, *, channels: int | None = None, name: str = "defended") -> None:
        super().__init__()
        self.restorer = restorer
        self.classifier = classifier
        self.channels = channels
        self.name = name
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.channels)
        return average(self.restorer.passes, lambda: self._once(images))

    def _once(self, images: Tensor) -> Tensor:
        """One pass."""
        if torch.is_grad_enabled() and images.requires_grad:
            return self.classifier(self.restorer.differentiable(images, "exact"))
        return self.classifier(self.restorer(images).images)

    def restore(self, images: Tensor) -> Restoration:
        """Everything the restorer says about a batch (B, C, H, W) in [0, 1], without gradients."""
        check_images(images, self.channels)
        with torch.no_grad():
            return self.restorer(images)

    def view(self, name: str, detector: tuple[float, float] | None = None) -> View:
        """What an attacker differentiates; raises UserError for a name that is not in VIEWS. `detector`: see `View`."""
        if name not in VIEWS:
            raise UserError(f"unknown view {name!r}; known: {', '.join(VIEWS)}")
        return View(self, name, detector).eval()
