"""Recipes of tiny trainings and evaluations, and the networks that they start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gandefense import config
from gandefense.training.classifier import ClassifierConfig, train
from tests.endurance.kill import RECIPES
from tests.helpers import small_cifar10 as small


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Sums are taken in the same order, whatever else the machine does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def _tiny_classifier(_small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "recipe.yaml").write_text(RECIPES["train_classifier"], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        small.install(_small_root, patch)
        return train(config.load(ClassifierConfig, folder / "recipe.yaml", [f"run.folder={folder}", "train.epochs=4"]))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 of this test's own, which it may change."""
    small.write(tmp_path / "data" / "cifar10")
    small.install(tmp_path / "data", monkeypatch)
    return tmp_path / "data"


@pytest.fixture
def recipe(data: Path, tmp_path: Path, _tiny_classifier: Path) -> Callable[[str], Path]:
    """The file of a tool's recipe, which works in the folders `runs` and `out` of the test."""

    def write(tool: str) -> Path:
        text = RECIPES[tool].replace("CLASSIFIER", str(_tiny_classifier)).replace("[none, TRN]", "[none]")
        text = text.replace("rows: 512", "rows: 64").replace("seed: 4", f"seed: 4, folder: {tmp_path / 'runs'}")
        path = tmp_path / f"{tool}.yaml"
        path.write_text(text.replace("output: out", f"output: {tmp_path / 'out'}"), encoding="utf-8")
        return path

    return write
