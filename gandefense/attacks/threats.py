"""Threat models: which view of a defence an attacker may differentiate."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from gandefense.errors import UserError

VIEWS = {
    "oblivious": "the classifier alone",
    "straight_through": "restorer forward, identity backward (BPDA)",
    "detached": "gradient maps and detector decisions held constant",
    "exact": "full double backward through gradient maps and all rounds",
    "smooth": "as exact, with softplus for ReLUs inside gradient maps and soft detector decisions (first round)",
}

THREATS = {
    "gray_box": "the attacker has the classifier and ignores the defence",
    "black_box": "the attacker has neither: examples of another classifier, or queries on the whole pipeline",
    "white_box": "the attacker has classifier and defence, and differentiates one view of both",
}


class Attackable(Protocol):
    """What a threat model needs of a defence: its classifier, and its views as modules."""

    classifier: nn.Module

    def view(self, name: str, detector: tuple[float, float] | None = None) -> nn.Module: ...


class _Queried(nn.Module):
    """The whole pipeline, which answers with logits and never with a gradient."""

    def __init__(self, pipeline: nn.Module) -> None:
        super().__init__()
        self.pipeline = pipeline

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.pipeline(images)


def target(
    defended: Attackable, threat: str, view: str = "oblivious", *, detector: tuple[float, float] | None = None
) -> nn.Module:
    """The network that an attacker differentiates, or under black_box may only query.

    Args:
        defended: classifier and restorer.
        threat: a key of THREATS.
        view: under white_box, a key of VIEWS other than "oblivious".
        detector: under white_box, threshold and spread of the detector's score, for a joint attack; see `base.View`.

    Raises:
        UserError: an unknown threat, or a view that the threat does not allow.
    """
    if threat not in THREATS:
        raise UserError(f"unknown threat {threat!r}; known: {', '.join(THREATS)}")
    if threat == "gray_box":
        return defended.classifier
    if threat == "black_box":
        return _Queried(defended)
    if view == "oblivious" or view not in VIEWS:
        known = ", ".join(name for name in VIEWS if name != "oblivious")
        raise UserError(f"white_box needs a view of the defence ({known}), got {view!r}")
    return defended.view(view, detector)
