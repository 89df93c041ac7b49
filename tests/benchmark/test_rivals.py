"""The diffusion purifier that is measured against."""

from __future__ import annotations

import torch

from gandefense.benchmark.rivals import DiffusionUNet
from gandefense.benchmark.timing import flops


def test_the_diffusion_unet_is_ddpms() -> None:
    """35,746,307 parameters has the CIFAR-10 model of Ho et al. (2020)."""
    network = DiffusionUNet().requires_grad_(False)
    assert sum(parameter.numel() for parameter in network.parameters()) == 35_746_307
    answers: list[torch.Tensor] = []
    operations = flops(lambda: answers.append(network(torch.rand(1, 3, 32, 32), torch.tensor([50]))))
    assert answers[0].shape == (1, 3, 32, 32)
    assert 11e9 < operations < 14e9  # about six billion multiplications and as many additions


def test_the_unet_knows_the_time_and_mixes_positions() -> None:
    torch.manual_seed(0)
    network, images = DiffusionUNet(base=32).requires_grad_(False), torch.rand(1, 3, 32, 32)
    early, late = (network(images, torch.tensor([step])) for step in (1, 90))
    assert not torch.allclose(early, late, atol=1e-4)
    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(point, torch.tensor([1]))[0, 0, 0, 0], point)
    assert (gradient != 0).float().mean() > 0.9
