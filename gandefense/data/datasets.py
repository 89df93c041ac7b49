"""Data sets as one description each: classes, channels, size, splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gandefense.config import DataConfig
from gandefense.data import sources
from gandefense.data.batches import Images, check_images, to_float
from gandefense.errors import UserError, reason

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SPLIT_SEED = 20220203  # fixes which training images are held out; never change it, or validation images leak


@dataclass(frozen=True)
class Dataset:
    """What a network needs to know about a data set.

    `validation` images are held out of the official training set: detection thresholds and checkpoints are chosen on
    them, and no network in the zoo has seen them.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: int
    validation: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool = True  # whether a mirrored image still shows its class; a mirrored digit does not


DATASETS = {
    "cifar10": Dataset(
        name="cifar10",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        channels=3,
        size=32,
        validation=2000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "fashion_mnist": Dataset(
        name="fashion_mnist",
        classes=("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        channels=1,
        size=28,  # not padded: every network here takes 28×28
        validation=2000,
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "svhn": Dataset(
        name="svhn",
        classes=tuple("0123456789"),
        channels=3,
        size=32,
        validation=2000,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        flips=False,
    ),
}


def describe(name: str) -> Dataset:
    """The description of a data set, by name; raises UserError for an unknown one."""
    if not isinstance(name, str) or name not in DATASETS:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def load(config: DataConfig, split: str, *, seed: int = 0) -> Images:
    """Load one split into memory.

    Args:
        config: name, root, whether to download, how many images.
        split: "train", "validation" or "test".
        seed: of the shuffle that `config.limit` cuts; without a limit the source's order is kept.

    Raises:
        UserError: unknown data set or split, missing or corrupt data, a limit below 1.
    """
    dataset = describe(config.name)
    if split not in ("train", "validation", "test"):
        raise UserError(f"unknown split {split!r}; known: train, validation, test")
    if config.file is not None and split == "test":
        return _limited(read_file(config.file, dataset), config.limit, seed)
    images, labels = sources.read(config.name, "test" if split == "test" else "train", root=config.root, download=config.download)
    index = np.arange(len(labels))
    if split != "test":
        shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
        held_out = shuffled[: dataset.validation]
        index = np.sort(held_out if split == "validation" else shuffled[dataset.validation :])
    chosen = Images(torch.from_numpy(images[index]), torch.from_numpy(labels[index]), torch.from_numpy(index))
    return _limited(chosen, config.limit, seed)


def _limited(data: Images, limit: int | None, seed: int) -> Images:
    """The first `limit` images after a seeded shuffle; all of them, in order, without a limit."""
    if limit is None:
        return data
    if limit < 1:
        raise UserError(f"data.limit must be at least 1, got {limit}")
    if seed < 0:
        raise UserError(f"the seed must not be negative, got {seed}")
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(data.labels))[:limit])
    return Images(*(part[chosen] for part in data))


def read_file(path: str, dataset: Dataset) -> Images:
    """A user's own test images.

    Args:
        path: a safetensors file with `images`, uint8 or float in [0, 1], (N, C, H, W), and `labels`, integers (N,).
        dataset: what the images must look like.

    Raises:
        UserError: no such file, a damaged one, tensors missing, a wrong shape or range, NaN, a label out of range.
    """
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise UserError(f"data.file not found: {path}")
    try:
        tensors = load_file(path)
    except Exception as error:  # a foreign file may hold types and shapes of which torch says so in many ways
        raise UserError(f"data.file {path} is not a whole safetensors file ({reason(error)})") from None
    if not {"images", "labels"} <= tensors.keys():
        raise UserError(f"data.file {path} needs the tensors images and labels, it holds {', '.join(tensors) or 'none'}")
    images, labels = tensors["images"], tensors["labels"]
    if images.is_floating_point() and images.dtype not in FLOATS:  # 8-bit floats, which can hardly be computed with
        raise UserError(f"data.file {path}: expected images as uint8 or float in [0, 1], got {images.dtype}")
    try:
        check_images(to_float(images) if images.dtype == torch.uint8 else images, dataset.channels)
    except UserError as error:
        raise UserError(f"data.file {path}: {error}") from None
    if images.shape[2:] != (dataset.size, dataset.size):
        raise UserError(f"data.file {path}: expected {dataset.size}×{dataset.size} pixels, got {tuple(images.shape[2:])}")
    if labels.dtype not in INTEGERS or labels.shape != (len(images),) or not len(images):
        raise UserError(f"data.file {path}: expected one integer label per image, got {labels.dtype} {tuple(labels.shape)}")
    labels = labels.long()
    if labels.min() < 0 or labels.max() >= len(dataset.classes):
        raise UserError(f"data.file {path}: labels must lie in 0 … {len(dataset.classes) - 1}")
    images = images if images.dtype == torch.uint8 else images.float().clamp(0, 1)
    return Images(images, labels, torch.arange(len(labels)))
