"""A small CIFAR-10 in the official file format, learnable in seconds, for tests from end to end."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gandefense import classifiers
from gandefense.classifiers.resnet import ShallowResNet
from gandefense.data import datasets, sources

RECORDS = 60  # images in each of the six files
VALIDATION = 60  # of the 300 training images


def write(folder: Path, *, records: int = RECORDS, seed: int = 0) -> None:
    """Write the six files: every class has a coarse colour pattern of its own, and each image noise."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    patterns = random.uniform(60, 200, (10, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    for name in sources.CIFAR10_FILES:
        labels = random.permutation(np.arange(records) % 10).astype(np.uint8)
        pixels = (patterns[labels] + random.normal(0, 25, (records, 3, 32, 32))).clip(0, 255).astype(np.uint8)
        (folder / name).write_bytes(np.concatenate([labels[:, None], pixels.reshape(records, -1)], axis=1).tobytes())


def install(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the package take the files under `root` for CIFAR-10, and know a classifier `tiny` that trains in seconds."""
    files = {name: hashlib.md5((root / "cifar10" / name).read_bytes()).hexdigest() for name in sources.CIFAR10_FILES}
    patch.setattr(sources, "CIFAR10_FILES", files)
    patch.setattr(sources, "SOURCES", {})  # nothing may be downloaded instead
    patch.setitem(datasets.DATASETS, "cifar10", dataclasses.replace(datasets.DATASETS["cifar10"], validation=VALIDATION))
    patch.setitem(classifiers.CLASSIFIERS, "tiny", _tiny)
    patch.setenv("GANDEFENSE_DATA", str(root))


def _tiny(data: datasets.Dataset, **options: Any) -> ShallowResNet:
    return ShallowResNet(**options, widths=(8, 16, 16, 32), residual_stages=(0,))
