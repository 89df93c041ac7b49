"""A small CIFAR-10 and a classifier that was trained on it for a second, for the baselines' short trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gandefense import classifiers
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, to_float
from gandefense.weights_io import save_weights
from tests.helpers import small_cifar10 as small


@pytest.fixture(scope="module")
def classifier(_small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A classifier's weights file; the small CIFAR-10 stays installed while the module's tests run."""
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        small.install(_small_root, patch)
        torch.manual_seed(0)
        network, data = classifiers.build("tiny", datasets.describe("cifar10")), datasets.load(DataConfig(), "train")
        optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
        for step in range(30):
            chosen = batch_indices(len(data.labels), 60, step, 0)
            loss = F.cross_entropy(network(to_float(data.images[chosen])), data.labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        save_weights(path, network.state_dict(), {"kind": "classifier", "architecture": "tiny", "data": "cifar10"})
        yield path
