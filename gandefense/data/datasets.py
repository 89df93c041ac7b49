"""Data sets as one description each: classes, channels, size, splits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gandefense.config import DataConfig
from gandefense.data import celeba, sources
from gandefense.data.batches import Images, check_images, to_float
from gandefense.data.decoded import decoded
from gandefense.errors import UserError, reason

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SPLITS = ("train", "validation", "test")
SPLIT_SEED = 20220203  # fixes which training images are held out; never change it, or validation images leak


@dataclass(frozen=True)
class Dataset:
    """What a network needs to know about a data set.

    `validation` images are held out of the official training set: detection thresholds and checkpoints are chosen on
    them, and no network in the zoo has seen them. CelebA has validation images of its own.

    `attributes` are CelebA's, of which `classes` are the combinations; `crop` says that images of another shape are cut to
    the square in their middle before they are resized.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: int
    validation: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    attributes: tuple[str, ...] = ()
    crop: bool = False
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


CELEBA = re.compile(r"celeba-(\d{1,4})-([\w+]+)", flags=re.ASCII)  # how a network's description names its size and attributes


def describe(data: str | DataConfig) -> Dataset:
    """The description of a data set.

    Args:
        data: a config, or a name as descriptions hold it: "cifar10"; "celeba-128-Smiling", "celeba-512-Male+Smiling", which
            say size and attributes; "celeba" alone is the first of these.

    Raises:
        UserError: an unknown data set, size or attribute, or a setting that the data set does not have.
    """
    config = data if isinstance(data, DataConfig) else DataConfig(name=data)
    if isinstance(config.name, str) and (match := CELEBA.fullmatch(config.name)):
        return _celeba(int(match[1]), tuple(match[2].split("+")))
    if config.name == "celeba":
        return _celeba(128 if config.size is None else config.size, tuple(config.attributes))
    if not isinstance(config.name, str) or config.name not in DATASETS:
        raise UserError(f"unknown data set {config.name!r}; known: {', '.join([*DATASETS, 'celeba'])}")
    dataset, usual = DATASETS[config.name], DataConfig()
    if config.size not in (None, dataset.size):
        raise UserError(f"data.size: {dataset.name} has {dataset.size}×{dataset.size} pixels; only celeba comes in other sizes")
    for key in ("attributes", "split", "images"):
        if getattr(config, key) != getattr(usual, key):
            raise UserError(f"data.{key} is for data.name=celeba, not for {dataset.name}")
    return dataset


def _celeba(size: int, attributes: tuple[str, ...]) -> Dataset:
    if size not in celeba.SIZES:
        raise UserError(f"data.size of celeba must be one of {', '.join(map(str, celeba.SIZES))}, got {size}")
    celeba.check_attributes(attributes)
    return Dataset(
        name=f"celeba-{size}-{'+'.join(attributes)}",
        classes=celeba.class_names(attributes),
        channels=3,
        size=size,
        validation=0,
        mean=(0.520, 0.429, 0.380),  # of 4,560 training images at 128×128
        std=(0.309, 0.287, 0.285),
        attributes=attributes,
        crop=True,
    )


def load(config: DataConfig, split: str, *, seed: int = 0) -> Images:
    """Load one split: CIFAR-10 into memory, CelebA memory-mapped from files that are decoded once.

    Args:
        config: name, root, whether to download, how many images; of CelebA also size, attributes and rule of splitting.
        split: "train", "validation" or "test".
        seed: of the shuffle that `config.limit` cuts; without a limit the source's order is kept.

    Raises:
        UserError: unknown data set or split, missing or corrupt data, a limit below 1.
    """
    dataset = describe(config)
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if config.file is not None and split == "test":
        return _limited(read_file(config.file, dataset), config.limit, seed)
    if dataset.attributes:
        return _load_celeba(config, dataset, split, seed)
    images, labels = sources.read(config.name, "test" if split == "test" else "train", root=config.root, download=config.download)
    index = np.arange(len(labels))
    if split != "test":
        shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
        held_out = shuffled[: dataset.validation]
        index = np.sort(held_out if split == "validation" else shuffled[dataset.validation :])
    chosen = Images(torch.from_numpy(images[index]), torch.from_numpy(labels[index]), torch.from_numpy(index))
    return _limited(chosen, config.limit, seed)


def _load_celeba(config: DataConfig, dataset: Dataset, split: str, seed: int) -> Images:
    """CelebA's images of a split; only those that the limit leaves are decoded."""
    root = sources.data_root(config.root)
    found = celeba.listed(root / "celeba", split, attributes=dataset.attributes, rule=config.split, images=config.images)
    rows = _chosen(len(found.files), config.limit, seed)
    print(found.told if len(rows) == len(found.files) else f"{found.told}; {len(rows):,} of them taken", flush=True)
    files = [found.files[row] for row in rows]
    name = f"celeba-{config.images}-{split}-{dataset.size}"
    images, hashes = decoded(files, size=dataset.size, folder=root / "decoded", name=name)
    return Images(images, torch.from_numpy(found.labels[rows]), torch.from_numpy(found.index[rows]), hashes)


def _chosen(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Positions of the first `limit` images after a seeded shuffle; all of them, in order, without a limit."""
    if limit is None:
        return np.arange(count)
    if limit < 1:
        raise UserError(f"data.limit must be at least 1, got {limit}")
    if seed < 0:
        raise UserError(f"the seed must not be negative, got {seed}")
    return np.random.default_rng(seed).permutation(count)[:limit]


def _limited(data: Images, limit: int | None, seed: int) -> Images:
    """The first `limit` images after a seeded shuffle; all of them, in order, without a limit."""
    if limit is None:
        return data
    chosen = torch.from_numpy(_chosen(len(data.labels), limit, seed))
    return data.rows(chosen)


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
