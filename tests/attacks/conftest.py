"""A small network, images and labels that attacks meet, and a linear classifier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gandefense.attacks.suite import predict
from tests.helpers.networks import Linear, small_cnn


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 3, 6, 6)


@pytest.fixture
def network() -> nn.Module:
    return small_cnn(nn.Tanh)


@pytest.fixture
def labels(network: nn.Module, images: Tensor) -> Tensor:
    return predict(network, images)


@pytest.fixture
def linear() -> Linear:
    return Linear(torch.randn(3, 4, 4))
