"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts its threads

import pytest
import torch

from gandefense import files
from tests.helpers import small_cifar10 as small

ROOT = Path(__file__).parent.parent


# The longest files first: a process that takes one up at the end leaves the others with nothing to do.
LONGEST = (
    *("test_docs_commands", "test_distributed", "test_calibration", "test_gan", "test_export", "test_trn"),
    *("test_evaluator_processes", "test_kill", "test_gan_stages", "test_benchmark", "test_classifier", "test_every_baseline"),
    *("test_rivals", "test_trn_tables", "test_storage", "test_celeba"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Files are written as ever, but no test waits until they would survive a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same random numbers, alone or in the suite."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    small.write(root / "cifar10")
    return root


@pytest.fixture
def small_cifar10(_small_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data root of a small CIFAR-10 that the package takes for the real one during a test."""
    small.install(_small_root, monkeypatch)
    return _small_root


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Start Python with the given words in the project's folder, on one thread, and wait for its end."""

    def start(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return start


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a tool of tools/ in this very process, by its name and words: exit status, standard output, standard error."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(name: str, *words: object) -> tuple[int, str, str]:
        path = str(ROOT / "tools" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, words)])
        status = 0
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
