"""What all targets share: memory is watched, and a harmful object leaves a trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import mutations
from tests.helpers import small_cifar10 as small


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    """No target may raise the process' memory by more than a limit."""
    with mutations.memory_limit(mutations.MOST_MEMORY):
        yield


@pytest.fixture(scope="module")
def place(_small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to write cases to, while the small CIFAR-10 stands for the real one."""
    with pytest.MonkeyPatch.context() as patch:
        small.install(_small_root, patch)
        yield tmp_path_factory.mktemp("fuzz")
