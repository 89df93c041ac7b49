"""Small networks on disk for evaluations from end to end."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gandefense.restorers.trn import TwoStreamRestorationNetwork
from gandefense.weights_io import save_weights
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
