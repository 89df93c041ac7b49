"""The naive loop that gradient maps are compared with."""

from __future__ import annotations

import torch
from torch import nn

from gandefense.benchmark.maps import naive, works
from gandefense.benchmark.timing import flops
from gandefense.restorers.gradient_maps import loss_gradients
from tests.helpers.networks import small_cnn


def test_both_compute_the_same_and_ours_saves_the_forward_passes() -> None:
    network, images = small_cnn(nn.ReLU).requires_grad_(False), torch.rand(5, 3, 6, 6)
    assert torch.allclose(naive(network, images, 4), loss_gradients(network, images), atol=1e-5)
    compared = works(network, images, 4, "float32")
    operations = {name: flops(work) for name, work in compared.items()}
    backward = operations["one"] - operations["forward"]
    assert operations["naive"] == 4 * operations["one"]
    assert operations["ours"] == operations["forward"] + 4 * backward
