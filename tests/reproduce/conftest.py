"""Recipes that train in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import nn

from gandefense import classifiers
from gandefense.config import to_dict
from gandefense.data import datasets
from gandefense.evaluation import cost, metrics, report
from gandefense.files import numbered_folder
from gandefense.reproduce import trainings
from gandefense.restorers.trn import TwoStreamRestorationNetwork
from gandefense.training.classifier import ClassifierConfig
from gandefense.training.trn import TRNConfig
from gandefense.weights_io import save_weights
from tests.evaluation.conftest import Networks, networks  # noqa: F401  (a fixture)

RUN = {"device": "cpu", "precision": "float32"}


class Recipes(NamedTuple):
    """Recipes, and a classifier that is trained already."""

    classifier: str
    trn: str
    network: str


def write_recipes(folder: Path, data: str, network: str) -> Recipes:
    """Recipes of a classifier and of a TRN, two steps each."""
    classifier = {"architecture": "tiny", "train": {"epochs": 0.4, "batch_size": 60, "adversarial": {"validation_images": 4}}}
    trn = {
        "classifier": network,
        "attacked": {"rows": 12, "steps": 1, "precision": "float32"},
        "validation_rows": 6,
        "network": {"width": 8, "blocks": 1},
        "train": {"steps": 2, "batch_size": 4, "learning_rate": 0.01},
    }
    for kind, values in (("classifier", classifier), ("trn", trn)):
        (folder / kind).mkdir(parents=True)
        text = yaml.safe_dump({"data": {"name": data}, "run": RUN, **values})
        (folder / kind / "tiny.yaml").write_text(text, encoding="utf-8")
    return Recipes(str(folder / "classifier" / "tiny.yaml"), str(folder / "trn" / "tiny.yaml"), network)


@pytest.fixture
def recipes(networks: Networks, tmp_path: Path) -> Recipes:  # noqa: F811
    """For the small CIFAR-10."""
    return write_recipes(tmp_path / "recipes", "cifar10", networks.classifier)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings end at once, with random networks; what a real one gives is tested by test_attacks and test_trainings."""
    monkeypatch.setitem(trainings.TRAININGS, "trn", (TRNConfig, _untrained_trn))
    monkeypatch.setitem(trainings.TRAININGS, "classifier", (ClassifierConfig, _untrained_classifier))


def _written(config: Any, network: nn.Module, /, **description: Any) -> Path:
    folder = numbered_folder(Path(config.run.folder), config.run.name)
    (folder / "config.yaml").write_text("kind: x", encoding="utf-8")
    about = {**description, "data": config.data.name, "config": to_dict(config)}
    save_weights(folder / "model.safetensors", network.state_dict(), about)
    return folder / "model.safetensors"


def _untrained_trn(config: TRNConfig) -> Path:
    torch.manual_seed(config.run.seed)
    options = to_dict(config.network)
    shape = {"channels": 3, "labels": 10, **{name: options[name] for name in ("width", "blocks", "streams")}}
    network = TwoStreamRestorationNetwork(**shape)
    torch.nn.init.normal_(network.tail[-1].weight, std=0.01)  # it starts at zero, which would restore nothing
    return _written(config, network, kind="trn", network=shape, classifier=config.classifier, threshold=1.0)


def _untrained_classifier(config: ClassifierConfig) -> Path:
    network = classifiers.build(config.architecture, datasets.describe(config.data.name))
    return _written(config, network, kind="classifier", architecture=config.architecture)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations without what no table of TRN reports."""
    monkeypatch.setattr(report, "write", lambda *_: None)
    monkeypatch.setattr(cost, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(cost, "LEAST_REPEATS", 1)
    monkeypatch.setattr(metrics, "lpips_network", lambda *_: None)
