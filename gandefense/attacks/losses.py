"""Losses that the gradient attacks climb, beside foolbox's cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gandefense.attacks.victim import split

BARELY = 0.05  # of the logits' range: a lead this small still counts as correct, so that it is not lost to the next step


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the best other class leads over the label's, (B,); positive means a wrong class.

    Unlike cross-entropy it does not saturate where a classifier is sure of itself: its gradient's direction is the same
    whatever the logits are multiplied by (Carlini and Wagner 2017).

    Args:
        logits: (B, K), K ≥ 2.
        labels: (B,) int64.
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own


def joint(outputs: Tensor, labels: Tensor) -> Tensor:
    """The selective loss against a classifier and its detector, (B,): one of the two at a time, image by image.

    An image that is still classified correctly, or barely wrong, climbs the margin; one that is wrong goes down the
    detector's score (Selective PGD of Bryniarski et al. 2021). A weighted sum would let the steeper of the two decide.

    Args:
        outputs: (B, K + 1), logits and in the last column the detector's score above its threshold.
        labels: (B,) int64.
    """
    logits, detector = split(outputs, "joint")
    lead = margin(logits, labels)
    low, high = logits.detach().aminmax(dim=1)
    return torch.where(lead.detach() > BARELY * (high - low), -detector, lead)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"margin": margin, "joint": joint}
