"""Classical filters before the classifier: the cheapest restorers there are, and what every learnt one has to beat."""

from __future__ import annotations

import kornia
from torch import Tensor

from gandefense.errors import UserError
from gandefense.restorers.base import Restoration, Restorer, undetected


def check_window(size: int) -> None:
    """Raise UserError unless a filter's window has a middle pixel and neighbours."""
    if size < 3 or size % 2 == 0:
        raise UserError(f"a filter's size is odd and at least 3 pixels, got {size}")


def smallest(size: int) -> int:
    """Pixels that a window which is mirrored at the image's edge needs each way: one more than it reaches beyond."""
    return max(Restorer.smallest, size // 2 + 1)


class Median(Restorer):
    """The median of a window, channel by channel (Xu et al. 2018, "Feature Squeezing").

    Args:
        size: of the window, in pixels.
    """

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        check_window(size)
        self.size, self.smallest = size, smallest(size)

    def forward(self, images: Tensor) -> Restoration:
        return undetected(kornia.filters.median_blur(images, self.size))


class Mean(Restorer):
    """The mean of a window.

    Args:
        size: of the window, in pixels.
    """

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        check_window(size)
        self.size, self.smallest = size, smallest(size)

    def forward(self, images: Tensor) -> Restoration:
        return undetected(kornia.filters.box_blur(images, self.size))


class Gaussian(Restorer):
    """A Gaussian blur.

    Args:
        sigma: of the bell, in pixels; the window reaches three times as far.
    """

    def __init__(self, sigma: float = 0.6) -> None:
        super().__init__()
        if not sigma > 0:
            raise UserError(f"sigma must be positive, got {sigma}")
        self.sigma, self.size = sigma, 2 * max(1, round(3 * sigma)) + 1
        self.smallest = smallest(self.size)

    def forward(self, images: Tensor) -> Restoration:
        return undetected(kornia.filters.gaussian_blur2d(images, self.size, (self.sigma, self.sigma)))


class Bilateral(Restorer):
    """A mean in which near pixels of a like colour count more, so that edges stay (Tomasi and Manduchi 1998).

    Args:
        size: of the window, in pixels.
        colour: how unlike two pixels may be, the sum of absolute differences over the channels in units of [0, 1].
        space: how far apart, in pixels.
    """

    def __init__(self, size: int = 5, colour: float = 0.1, space: float = 1.0) -> None:
        super().__init__()
        check_window(size)
        if not (colour > 0 and space > 0):
            raise UserError(f"colour and space must be positive, got {colour} and {space}")
        self.size, self.colour, self.space = size, colour, space
        self.smallest = smallest(size)

    def forward(self, images: Tensor) -> Restoration:
        return undetected(kornia.filters.bilateral_blur(images, self.size, self.colour, (self.space, self.space)))


class BitDepth(Restorer):
    """Rounds every channel to few grey levels (Xu et al. 2018). Rounding has no gradient: every view takes the identity's.

    Args:
        bits: of a channel, 1 to 8.
    """

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise UserError(f"bits lie between 1 and 8, got {bits}")
        self.bits = bits

    def forward(self, images: Tensor) -> Restoration:
        steps = 2**self.bits - 1
        return undetected((images * steps).round() / steps)

    def scored(self, images: Tensor, view: str) -> tuple[Tensor, Tensor]:
        restored, score, *_ = self(images.detach())
        return restored + (images - images.detach()), score
