"""DDSA: the bottleneck, the code that its bias holds sparse, the perturbation that is reconstructed worst."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.attacks.suite import frozen
from gandefense.errors import UserError
from gandefense.restorers.baselines.ddsa import DDSARestorer, SparseAutoEncoder, from_weights, worst_perturbation

SHAPE = {"channels": 3, "size": 8, "width": 8, "features": 6, "code": 40}


@pytest.fixture
def network() -> SparseAutoEncoder:
    return SparseAutoEncoder(**SHAPE)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 8, 8) * 0.8 + 0.1


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 64)])
def test_shapes(channels: int, size: int) -> None:
    network = SparseAutoEncoder(channels=channels, size=size, width=8, features=2, code=16)
    images = torch.rand(2, channels, size, size)
    made, code = network(images), network.encode(images)
    assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1
    assert code.shape == (2, 16) and code.min() >= 0


def test_the_decoder_sees_nothing_but_the_code(network: SparseAutoEncoder, images: Tensor) -> None:
    nn.init.constant_(network.code.linear.bias, -1000.0)
    made = network(images)
    assert torch.equal(made, made[:1].expand_as(made)), "an empty code gives one image for all"


def test_the_bias_update_moves_the_code_towards_its_target(network: SparseAutoEncoder, images: Tensor) -> None:
    network.train()
    network.code.mean_activation.copy_(torch.linspace(0, 1, 40))
    before = network.code.linear.bias.detach().clone()
    network.code.update_bias(0.01)
    moved = network.code.linear.bias.detach() - before
    assert torch.allclose(moved, -0.01 * (torch.linspace(0, 1, 40) - 0.1), atol=1e-7)
    assert moved[0] > 0 > moved[-1], "too idle: up; too busy: down"


def test_the_inner_maximum_raises_the_loss_within_its_budget(network: SparseAutoEncoder, images: Tensor) -> None:
    def loss(changed: Tensor) -> float:
        return F.mse_loss(network(changed), images).item()

    for parameter in network.parameters():
        parameter.data.mul_(2)
    eps = 8 / 255
    with frozen(network):
        attacked = worst_perturbation(network, images, eps=eps, steps=5)
        chance = max(loss((images + eps * torch.randn_like(images).sign()).clamp(0, 1)) for _ in range(20))
        assert loss(attacked) > chance > loss(images)
    assert (attacked - images).abs().max() <= eps + 1e-6
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert not attacked.requires_grad


def test_the_search_leaves_the_network_alone(network: SparseAutoEncoder, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    with frozen(network):
        worst_perturbation(network, images, eps=0.1, steps=3)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_restoration_and_its_gradient(network: SparseAutoEncoder, images: Tensor) -> None:
    restorer, images = DDSARestorer(network, threshold=10.0).double().eval(), images.double()
    restoration = restorer(images)
    assert torch.equal(restoration.images, network(images))
    assert torch.allclose(restoration.score, (images - restoration.images).square().mean((1, 2, 3)).sqrt() * 255)
    assert torch.equal(restoration.flagged, restoration.score > 10)
    point, along = images.clone().requires_grad_(True), torch.randn_like(images)
    (gradient,) = torch.autograd.grad(restorer.scored(point, "exact")[1].sum(), point)
    with torch.no_grad():
        there, back = (restorer(images + sign * 1e-6 * along).score.sum() for sign in (1, -1))
    assert (gradient * along).sum().item() == pytest.approx(((there - back) / 2e-6).item(), rel=1e-4)


def test_a_file_gives_the_same_restorer_again(network: SparseAutoEncoder, images: Tensor) -> None:
    network.eval()
    again = from_weights(network.state_dict(), {"network": SHAPE, "threshold": 3.0}, nn.Identity(), Path("a file")).eval()
    assert torch.equal(again(images).images, network(images))
    assert again.threshold == 3.0
    with pytest.raises(UserError, match="a file: its description of the network is incomplete"):
        from_weights({}, {"network": {"channels": 3}}, nn.Identity(), Path("a file"))
    with pytest.raises(UserError, match="a file does not fit the network"):
        from_weights({}, {"network": SHAPE}, nn.Identity(), Path("a file"))


def test_a_size_that_cannot_be_halved_twice_is_refused() -> None:
    with pytest.raises(UserError, match="divisible by 4, got 30"):
        SparseAutoEncoder(channels=3, size=30)


def test_the_fully_connected_layers_start_as_a_projection() -> None:
    """With a code of twice the features nothing is lost: relu(x) − relu(−x) = x."""
    network, features = SparseAutoEncoder(channels=3, size=8, width=8, features=4, code=32), torch.randn(5, 16)
    assert torch.allclose(network.expand(network.code(features)), features, atol=1e-5)
    small = SparseAutoEncoder(channels=3, size=8, width=8, features=4, code=16)
    assert not torch.allclose(small.expand(small.code(features)), features, atol=1e-1)


@pytest.mark.parametrize("width", [0, 1, 33])
def test_a_width_that_its_doublings_cannot_halve_is_refused(width: int) -> None:
    with pytest.raises(UserError, match=f"DDSA's autoencoder needs an even width, got {width}"):
        SparseAutoEncoder(channels=3, size=8, width=width)
