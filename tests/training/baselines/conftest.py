"""A small CIFAR-10 and a classifier that was trained on it for a second, for the baselines' short trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import small_cifar10 as small
from tests.helpers.short_training import classifier_file


@pytest.fixture(scope="module")
def classifier(_small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A classifier's weights file; the small CIFAR-10 stays installed while the module's tests run."""
    folder = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        small.install(_small_root, patch)
        yield classifier_file(folder)
