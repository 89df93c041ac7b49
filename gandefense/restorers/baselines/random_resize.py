"""Random resizing and padding before the classifier (Xie et al. 2018, "Mitigating Adversarial Effects Through Randomization")."""

from __future__ import annotations

import torch
from torch import Tensor

from gandefense.errors import UserError
from gandefense.restorers.base import Restoration, Restorer, undetected

USUAL_SHARE = 7 / 8  # of the shorter side, the smallest size drawn where none is given
PADDING = 0.5  # zero in the submission, whose images lay in [-1, 1]


def placement(full: int, sizes: Tensor, starts: Tensor) -> Tensor:
    """Linear resizing of a line of `full` pixels to every size, put down at every start, as matrices (B, full, full).

    Row y says which input pixels output pixel y is made of, as `interpolate(mode="bilinear", align_corners=False)` has it;
    rows outside the resized line are zero.

    Args:
        full: pixels of the line, before and after.
        sizes: (B,) int64, at most `full`.
        starts: (B,) int64, at most `full` - size.
    """
    places = torch.arange(full, device=sizes.device)
    inside = (places >= starts[:, None]) & (places < (starts + sizes)[:, None])
    centre = ((places - starts[:, None] + 0.5) * (full / sizes[:, None]) - 0.5).clamp(0, full - 1)
    weights = (1 - (centre[:, :, None] - places).abs()).clamp(min=0)
    return weights * inside[:, :, None]


class RandomResize(Restorer):
    """Resizes every image to a random size and pads it at random places, anew for every image and pass.

    The article enlarges (299 pixels to at most 331) and lets the classifier see the larger picture. A restorer gives images
    of the size that it was given, so this one shrinks within the frame.

    Args:
        low: the smallest size drawn, in pixels of the shorter side; None takes 7/8 of it.
        high: the largest; None takes the whole side.
        passes: draws over which a defence averages the logits of an image; 30 in the authors' submission.
    """

    def __init__(self, low: int | None = None, high: int | None = None, passes: int = 1) -> None:
        super().__init__()
        if passes < 1:
            raise UserError(f"passes must be at least 1, got {passes}")
        if any(size is not None and size < 1 for size in (low, high)):
            raise UserError(f"sizes must be at least 1 pixel, got low={low}, high={high}")
        self.low, self.high, self.passes = low, high, passes

    def forward(self, images: Tensor) -> Restoration:
        """Restore images (B, C, H, W) in [0, 1]; raises UserError for sizes that do not fit into them."""
        height, width = images.shape[2:]
        side = min(height, width)
        low = round(USUAL_SHARE * side) if self.low is None else self.low
        high = side if self.high is None else self.high
        if not low <= high <= side:
            raise UserError(f"images of {side} pixels are resized to at most {side}; got sizes from {low} to {high}")
        count = len(images)
        drawn = torch.randint(low, high + 1, (count,), device=images.device)
        rows, filled_rows = _drawn_placement(height, drawn, side)
        columns, filled_columns = _drawn_placement(width, drawn, side)
        rows, columns = rows.to(images.dtype), columns.to(images.dtype)
        small = rows.unsqueeze(1) @ images @ columns.transpose(1, 2).unsqueeze(1)
        filled = filled_rows[:, None, :, None] & filled_columns[:, None, None, :]
        return undetected(torch.where(filled, small, PADDING))


def _drawn_placement(full: int, drawn: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """`placement` of one dimension at random starts, and which of its pixels are filled, (B, full) bool."""
    sizes = (drawn * full / side).round().long()
    starts = (torch.rand(len(drawn), device=drawn.device) * (full - sizes + 1)).long()
    matrices = placement(full, sizes, starts)
    return matrices, matrices.any(2)
