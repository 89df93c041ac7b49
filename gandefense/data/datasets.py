"""Data sets as one description each: classes, channels, size, splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gandefense.config import DataConfig
from gandefense.data import sources
from gandefense.errors import UserError

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
}


class Images(NamedTuple):
    """Images held in memory: `images` uint8 (N, C, H, W), `labels` int64 (N,), `index` int64 (N,) in the source's order."""

    images: Tensor
    labels: Tensor
    index: Tensor


def describe(name: str) -> Dataset:
    """The description of a data set, by name; raises UserError for an unknown one."""
    if name not in DATASETS:
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
    images, labels = sources.read(config.name, "test" if split == "test" else "train", root=config.root, download=config.download)
    index = np.arange(len(labels))
    if split != "test":
        shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
        held_out = shuffled[: dataset.validation]
        index = np.sort(held_out if split == "validation" else shuffled[dataset.validation :])
    if config.limit is not None:
        if config.limit < 1:
            raise UserError(f"data.limit must be at least 1, got {config.limit}")
        index = np.random.default_rng(seed).permutation(index)[: config.limit]
    return Images(torch.from_numpy(images[index]), torch.from_numpy(labels[index]), torch.from_numpy(index))
