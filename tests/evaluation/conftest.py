"""Small networks on disk for evaluations from end to end."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from gandefense.evaluation import metrics
from gandefense.restorers.trn import TwoStreamRestorationNetwork
from gandefense.weights_io import save_weights
from tests.helpers.evaluations import FULL, GRAY, LIMIT, WHITE
from tests.helpers.short_training import tiny_classifier


class Networks(NamedTuple):
    """Weights files, as a config names them."""

    classifier: str
    trn: str


@functools.cache  # one training serves every test; the data are the same in each
def _trained() -> dict[str, Tensor]:
    return tiny_classifier().state_dict()


@pytest.fixture
def networks(small_cifar10: Path, tmp_path: Path) -> Networks:
    """A small classifier, trained for a second, and a TRN that has learnt nothing but changes images."""
    classifier, trn = tmp_path / "classifier.safetensors", tmp_path / "trn.safetensors"
    save_weights(classifier, _trained(), {"kind": "classifier", "architecture": "tiny", "data": "cifar10"})
    options = {"channels": 3, "labels": 10, "width": 8, "blocks": 1}
    restorer = TwoStreamRestorationNetwork(**options)
    torch.nn.init.normal_(restorer.tail[-1].weight, std=0.01)  # it starts at zero, which would restore nothing
    description = {"kind": "trn", "network": options, "data": "cifar10", "classifier": str(classifier), "threshold": 1.0}
    save_weights(trn, restorer.state_dict(), description)
    return Networks(str(classifier), str(trn))


@pytest.fixture
def settings(networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A quick evaluation; LPIPS is missing, as on most machines, and speed is not dwelt upon."""
    monkeypatch.setattr(metrics, "_lpips_backbone", lambda: None)
    monkeypatch.setattr("gandefense.evaluation.cost.LEAST_SECONDS", 0.0)
    return {
        "classifier": networks.classifier,
        "restorers": ["none", networks.trn],
        "output": str(tmp_path / "out"),
        "limit": LIMIT,
        "batch_size": 10,
        "cost_batch_size": 8,
        "images": 2,
        "device": "cpu",
        "gray_box": GRAY,
        "white_box": WHITE,
        "keep_attacked": 0,  # an attack is made wherever a test counts on it
    }


@pytest.fixture
def full(settings: dict[str, Any], networks: Networks) -> dict[str, Any]:
    """Every threat and every curve."""
    same = Path(networks.classifier).with_name("other.safetensors")
    shutil.copy(networks.classifier, same)
    black = {"sources": [str(same)], "transfer": [{"attack": "fgsm", "eps": "48/255"}]}
    black["queries"] = [{"attack": "square", "eps": "48/255", "queries": 5, "survivors": True}]
    return {**settings, **FULL, "black_box": black, "restorers": [networks.trn]}
