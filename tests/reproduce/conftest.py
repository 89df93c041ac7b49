"""Recipes that train in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from gandefense.evaluation import cost, metrics
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
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations without what no table of TRN reports."""
    monkeypatch.setattr(cost, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(cost, "LEAST_REPEATS", 1)
    monkeypatch.setattr(metrics, "lpips_network", lambda *_: None)
