"""Gradient attacks against reference loops of a few lines: steps, momentum, random starts, restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.attacks.suite import AttackSpec, attack, predict
from tests.helpers.networks import Linear

EPS = 8 / 255


def _margin(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network(images)
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def _loss_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    point = images.detach().requires_grad_(True)
    return torch.autograd.grad(F.cross_entropy(network(point), labels, reduction="sum"), point)[0]


def _reference(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    direction: Callable[[Tensor], Tensor],
) -> Tensor:
    attacked = images
    for _ in range(steps):
        attacked = attacked + step_size * direction(_loss_gradient(network, attacked, labels))
        attacked = (images + (attacked - images).clamp(-eps, eps)).clamp(0, 1)
    return attacked


class _Momentum:
    """Dong et al. (2018), eq. 6; with `normalise` the L1 norm of an image's gradient."""

    def __init__(self, normalise: Callable[[Tensor], Tensor]) -> None:
        self.normalise = normalise
        self.gathered: Tensor | float = 0.0

    def __call__(self, gradient: Tensor) -> Tensor:
        self.gathered = self.gathered + self.normalise(gradient)
        return self.gathered.sign()


def _by_l1(gradient: Tensor) -> Tensor:
    return gradient / gradient.abs().sum(dim=(1, 2, 3), keepdim=True)


def test_bim_equals_its_reference_loop(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    network, images = network.double(), images.double()
    attacked = attack(network, images, labels, AttackSpec("bim", eps=EPS, steps=15)).images
    expected = _reference(network, images, labels, eps=EPS, steps=15, step_size=EPS / 10, direction=torch.sign)
    assert torch.allclose(attacked, expected, rtol=0, atol=1e-9)


def test_mim_gathers_gradients_normalised_by_their_l1_norm(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    network, images = network.double(), images.double()
    how = {"eps": 0.1, "steps": 15, "step_size": 0.02}
    attacked = attack(network, images, labels, AttackSpec("mim", **how)).images
    assert torch.allclose(attacked, _reference(network, images, labels, **how, direction=_Momentum(_by_l1)), rtol=0, atol=1e-9)
    of_signs = _reference(network, images, labels, **how, direction=_Momentum(torch.sign))
    assert not torch.allclose(attacked, of_signs, rtol=0, atol=1e-3), "gathering signs is another attack, and this setting tells"


def test_default_step_sizes(linear: Linear) -> None:
    images, labels = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, dtype=torch.int64)
    for name, steps, step in (("bim", 10, 0.1), ("mim", 20, 0.1), ("bim", 3, 1 / 3), ("pgd", 20, 0.25)):
        spec = AttackSpec(name, eps=EPS, steps=steps)
        assert spec.step() == pytest.approx(step * EPS), "few steps must still reach the budget's edge"
        moved = attack(linear, images, labels, spec).images - images
        assert torch.allclose(moved.abs(), torch.tensor(EPS), rtol=0, atol=1e-6), (name, steps)


def test_pgd_starts_at_random_in_the_whole_budget(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    grey = torch.full_like(images, 0.5)
    start = attack(network, grey, labels, AttackSpec("pgd", eps=0.1, steps=1, step_size=1e-9)).images - grey
    assert start.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)
    assert 0.095 < start.abs().max() <= 0.1 + 1e-6


def test_pgd_lowers_the_margin_at_least_as_far_as_fgsm(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    margins = {
        name: _margin(network, attack(network, images, labels, AttackSpec(name)).images, labels) for name in ("fgsm", "pgd")
    }
    assert margins["fgsm"].mean() < _margin(network, images, labels).mean() - 0.1
    assert margins["pgd"].mean() <= margins["fgsm"].mean() + 1e-3


def test_restarts_keep_what_was_broken_and_break_more(network: nn.Module) -> None:
    images = torch.rand(200, 3, 6, 6)
    labels = predict(network, images)
    spec = AttackSpec("ffgsm", eps=0.05)
    once, often = (attack(network, images, labels, replace(spec, restarts=restarts)) for restarts in (1, 10))
    assert 0 < once.success.sum() < often.success.sum() < len(images)
    assert torch.equal(often.images[once.success], once.images[once.success])
    assert often.success[once.success].all()
