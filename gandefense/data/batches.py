"""Images as batches: uint8 tensors in memory or memory-mapped, turned to floats and augmented in whole batches by kornia."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gandefense.errors import UserError


class Images(NamedTuple):
    """Images held in memory, or memory-mapped: then `images.images[rows]` reads these rows alone.

    Attributes:
        images: (N, C, H, W), uint8, or float32 in [0, 1].
        labels: (N,) int64.
        index: (N,) int64, position in the source.
        hashes: (N, 32) uint8, SHA-256 of each image where it is known without reading it again; None: not known.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    hashes: Tensor | None = None

    def rows(self, chosen: Tensor | slice) -> Images:
        """Those at some positions (n,), or of a slice."""
        return Images(*(None if part is None else part[chosen] for part in self))


def tensor_hash(*tensors: Tensor) -> str:
    """SHA-256 over the contents of tensors: whether images, labels or weights are the same as at another time."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def content_hash(*data: Images) -> str:
    """SHA-256 over the contents of data sets; images whose own hashes are known are not read, because they may be gigabytes."""
    return tensor_hash(*(tensor for one in data for tensor in (one.images if one.hashes is None else one.hashes, *one[1:3])))


def check_images(images: Tensor, channels: int | None = None) -> None:
    """Raise UserError unless `images` is a finite float batch (B, C, H, W) in [0, 1] (tolerance 1e-6).

    Args:
        images: what a user handed us.
        channels: the number of channels that is expected, if any is.
    """
    if images.ndim != 4:
        raise UserError(f"expected images of shape (B, C, H, W), got {tuple(images.shape)}")
    if channels is not None and images.shape[1] != channels:
        raise UserError(f"expected images with {channels} channel(s), got {images.shape[1]} (shape {tuple(images.shape)})")
    if not images.is_floating_point():
        raise UserError(f"expected float images in [0, 1], got {images.dtype}; divide 8-bit images by 255")
    if images.numel() == 0:
        return
    low, high = images.detach().aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise UserError("images contain NaN or infinite values")
    if low < -1e-6 or high > 1 + 1e-6:
        raise UserError(
            f"images must lie in [0, 1], got [{low.item():.4g}, {high.item():.4g}]; normalisation belongs in the classifier"
        )


def to_float(images: Tensor) -> Tensor:
    """8-bit images (B, C, H, W) as floats in [0, 1]; floats are left as they are."""
    return images if images.is_floating_point() else images.float().div_(255)


def at_once(size: int, most: int = 256) -> int:
    """How many images are handled at a time, so that they take no more memory than `most` images of 32×32 pixels.

    Args:
        size: height and width of the images.
        most: images of 32×32 pixels.
    """
    return max(1, min(most, most * 32**2 // size**2))


def pieces(images: Tensor, most: int, device: torch.device) -> Iterator[Tensor]:
    """A data set's images (N, C, H, W) as floats on a device, in order, at most `at_once(size, most)` at a time."""
    for part in images.split(at_once(images.shape[-1], most)):
        yield to_float(part.to(device))


def augmentation(size: int, *, flip: bool = True, erase: float = 0.0) -> nn.Module:
    """Flip (left and right, never upside down) and padded crop for a batch of floats (B, C, size, size) in [0, 1].

    Args:
        size: height and width of the images; the crop moves them by up to an eighth of it, 4 pixels of 32.
        flip: mirror every second image, left to right.
        erase: probability that a random patch of an image is blanked (random erasing, Zhong et al. 2020).
    """
    import kornia.augmentation as augment

    steps: list[nn.Module] = [augment.RandomHorizontalFlip(p=0.5)] if flip else []
    steps.append(augment.RandomCrop((size, size), padding=size // 8, padding_mode="reflect", cropping_mode="slice"))
    if erase > 0:
        steps.append(augment.RandomErasing(p=erase, scale=(0.02, 0.2), value=0.5))
    return augment.AugmentationSequential(*steps, data_keys=["input"])


def order(count: int, epoch: int, seed: int) -> Tensor:
    """The order in which an epoch visits `count` items: a function of (seed, epoch) alone, so that a resumed run repeats it."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(count, generator=generator)


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices of the batch of one training step, epoch after epoch; an epoch's incomplete last batch is left out.

    Args:
        count: number of items; at least one.
        batch_size: items in a batch; cut to `count`.
        step: 0, 1, 2 … over the whole run.
        seed: of the run.
    """
    batch_size = min(batch_size, count)
    per_epoch = count // batch_size
    epoch, position = divmod(step, per_epoch)
    return order(count, epoch, seed)[position * batch_size : (position + 1) * batch_size]


def batches(data: Images, batch_size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """Walk once through the data in its order: float images (B, C, H, W) in [0, 1] and labels (B,)."""
    for start in range(0, len(data.labels), batch_size):
        chunk = slice(start, start + batch_size)
        yield to_float(data.images[chunk].to(device)), data.labels[chunk].to(device)
