"""A small Fashion-MNIST in the official file format, with one channel and 28×28 pixels."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from gandefense import classifiers
from gandefense.data import datasets, fashion_mnist
from tests.helpers.small_cifar10 import _tiny

TRAIN, TEST, VALIDATION = 120, 24, 24


def idx(array: np.ndarray) -> bytes:
    """Unsigned bytes as an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def install(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Write the four files, and let the package take them for Fashion-MNIST and know a classifier `tiny`."""
    folder = root / "fashion_mnist"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    patterns = random.uniform(40, 210, (10, 4, 4)).repeat(7, axis=1).repeat(7, axis=2)
    for begin, count in (("train", TRAIN), ("t10k", TEST)):
        labels = np.arange(count) % 10
        pixels = (patterns[labels] + random.normal(0, 10, (count, 28, 28))).clip(0, 255)
        for name, array in ((f"{begin}-images-idx3-ubyte", pixels), (f"{begin}-labels-idx1-ubyte", labels)):
            (folder / name).write_bytes(idx(array))
            patch.setitem(fashion_mnist.FILES, name, hashlib.md5((folder / name).read_bytes()).hexdigest())
    small = dataclasses.replace(datasets.DATASETS["fashion_mnist"], validation=VALIDATION)
    patch.setitem(datasets.DATASETS, "fashion_mnist", small)
    patch.setitem(classifiers.CLASSIFIERS, "tiny", _tiny)
    patch.setenv("GANDEFENSE_DATA", str(root))
