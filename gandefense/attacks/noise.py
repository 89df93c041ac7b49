"""Noise by its level: Gaussian, which the undefended figures of the ISMN paper's "attack level" fit, and other kinds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def gaussian_signed(images: Tensor, level: float) -> Tensor:
    """Gaussian noise whose standard deviation `level` is meant for images scaled to [-1, 1].

    Args:
        images: (B, C, H, W) in [0, 1].
        level: standard deviation on the [-1, 1] scale; half of it on ours.

    Returns:
        (B, C, H, W), clipped to [0, 1].
    """
    return gaussian_unit(images, level / 2)


def gaussian_unit(images: Tensor, level: float) -> Tensor:
    """Gaussian noise of standard deviation `level` on [0, 1] images (B, C, H, W), clipped to [0, 1]."""
    return (images + level * torch.randn_like(images)).clamp(0, 1)


def uniform_unit(images: Tensor, level: float) -> Tensor:
    """Uniform noise in ±`level` on [0, 1] images (B, C, H, W), clipped to [0, 1]."""
    return (images + level * (2 * torch.rand_like(images) - 1)).clamp(0, 1)


def blocks_unit(images: Tensor, level: float) -> Tensor:
    """Rectangles of +`level` or −`level`, drawn for each and each channel, on [0, 1] images (B, C, H, W), clipped to [0, 1].

    Their height and width are a power of two each, from 1 up to the largest that fits, drawn for every image, and so is where
    the grid of them begins: noise of every fineness, squares and stripes among it.
    """
    count, channels, height, width = images.shape
    signs = torch.randint(0, 2, (count, channels, height, width), device=images.device).to(images.dtype) * 2 - 1
    return (images + level * constant_on(rectangles(images.shape, images.device), signs)).clamp(0, 1)


def rectangles(shape: torch.Size, device: torch.device) -> Tensor:
    """A grid of rectangles for every image of a batch of shape (B, C, H, W): the number of each pixel's, (B, H, W) int64.

    Height and width are a power of two each, drawn for every image, and so is where the grid begins. A rectangle's number is
    that of one pixel of the image, below H·W.
    """
    count, _, height, width = shape
    lines = []
    for size in (height, width):
        side = 2 ** torch.randint(0, size.bit_length(), (count, 1), device=device)
        begin = (torch.rand(count, 1, device=device) * side).long()
        lines.append((torch.arange(size, device=device) + begin) // side)
    return lines[0][:, :, None] * width + lines[1][:, None, :]


def constant_on(grid: Tensor, values: Tensor) -> Tensor:
    """Values (B, C, H, W) spread over the rectangles of a grid (B, H, W): each rectangle has the value at its own number."""
    index = grid.flatten(1)[:, None].expand(-1, values.shape[1], -1)
    return values.flatten(2).gather(2, index).view(values.shape)


def sums_on(grid: Tensor, values: Tensor) -> Tensor:
    """The sums of values (B, C, H, W) over the rectangles of a grid (B, H, W), each at its rectangle's number; 0 elsewhere."""
    height, width = grid.shape[1:]
    # Two products with one-hot matrices, because scatter_add_ on a GPU would round differently in every run.
    rows = nn.functional.one_hot(grid[:, :, 0] // width, height).to(values.dtype)[:, None]  # (B, 1, H, number)
    columns = nn.functional.one_hot(grid[:, 0, :] % width, width).to(values.dtype)[:, None]
    return rows.mT @ values @ columns


NOISES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian[-1,1]": gaussian_signed,
    "gaussian[0,1]": gaussian_unit,
    "uniform[0,1]": uniform_unit,
    "blocks[0,1]": blocks_unit,
}
