"""The normalisation layers that the restorers choose from."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gandefense.errors import UserError

GROUPS = 8  # of channels that are normalised together
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda channels: nn.GroupNorm(GROUPS, channels),  # what an image becomes does not depend on the rest of its batch
    "batch": nn.BatchNorm2d,  # faster on CPUs; its running statistics need not fit averaged weights
}


def norm_layer(kind: str, channels: int) -> nn.Module:
    """A normalisation layer for (B, channels, H, W), by name; raises UserError for an unknown one, or channels without groups."""
    if kind not in NORMS:
        raise UserError(f"unknown norm {kind!r}; known: {', '.join(NORMS)}")
    if kind == "group" and channels % GROUPS:
        raise UserError(f"norm=group needs widths that are multiples of {GROUPS}, got {channels} channels; or take norm=batch")
    return NORMS[kind](channels)
