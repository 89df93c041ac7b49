"""What tests of trainings share: a classifier to train before, and looks into a run folder."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense import classifiers
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, to_float
from gandefense.weights_io import save_weights


def tiny_classifier() -> nn.Module:
    """A tiny classifier that was trained on the small CIFAR-10 for a second."""
    data = datasets.describe("cifar10")
    network = classifiers.build("tiny", data)
    network.load_state_dict(_tiny_weights(data.validation))
    torch.manual_seed(0)
    return network


@functools.cache
def _tiny_weights(validation: int) -> dict[str, Tensor]:
    """Trained once for as many validation images as are kept apart."""
    torch.manual_seed(0)
    network, data = classifiers.build("tiny", datasets.describe("cifar10")), datasets.load(DataConfig(), "train")
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(30):
        chosen = batch_indices(len(data.labels), 60, step, 0)
        loss = F.cross_entropy(network(to_float(data.images[chosen])), data.labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.state_dict()


def classifier_file(folder: Path) -> Path:
    """A file with the weights of a tiny classifier."""
    path = folder / "classifier.safetensors"
    save_weights(path, tiny_classifier().state_dict(), {"kind": "classifier", "architecture": "tiny", "data": "cifar10"})
    return path


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    """The (step, value) pairs of one figure in a run's stats.jsonl."""
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def same(first: object, second: object) -> bool:
    """Whether two nested containers hold the same values, bit for bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return first == second
