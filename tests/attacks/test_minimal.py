"""DeepFool and Carlini and Wagner's attack, cut to the budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gandefense.attacks import minimal
from gandefense.attacks.spec import AttackSpec
from gandefense.attacks.suite import attack, predict
from tests.helpers.networks import Linear, Wavering, small_cnn


def test_deepfool_goes_just_over_the_boundary_of_a_linear_classifier() -> None:
    linear = Linear(torch.randn(3, 4, 4))
    images = torch.rand(20, 3, 4, 4) * 0.2 + 0.4
    labels = predict(linear, images)
    with torch.no_grad():
        needed = linear(images)[:, 1].abs() / linear.weight.abs().sum()
    attacked = attack(linear, images, labels, AttackSpec("deepfool", eps=0.3))
    assert attacked.success.all()
    moved = (attacked.images - images).flatten(1).abs().amax(1)
    assert (moved > needed).all()
    assert torch.allclose(moved, 1.02 * (needed + 1e-4), rtol=0, atol=1e-5), "foolbox overshoots by 2 %"
    eps = needed.sort().values[9:11].mean().item()
    cut = attack(linear, images, labels, AttackSpec("deepfool", eps=eps))
    assert torch.equal(cut.success, needed < eps)


def test_carlini_and_wagner_find_a_small_l2_perturbation() -> None:
    linear = Linear(torch.randn(3, 4, 4))
    images = torch.rand(5, 3, 4, 4) * 0.2 + 0.4
    labels = predict(linear, images)
    with torch.no_grad():
        needed = linear(images)[:, 1].abs() / linear.weight.norm()
    attacked = attack(linear, images, labels, AttackSpec("cw", eps=0.5, steps=40))
    assert attacked.success.all()
    moved = (attacked.images - images).flatten(1).norm(dim=1)
    assert (moved >= needed).all()
    assert (moved < 1.3 * needed + 0.02).all()


class Stubborn(nn.Module):
    """A class that depends on nothing (in value); its gradient is that of a linear classifier."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear(images)
        return logits - logits.detach() + torch.tensor([5.0, 0.0])


def test_what_carlini_and_wagner_do_not_find_comes_back_unchanged_and_not_black() -> None:
    images = torch.rand(5, 3, 4, 4)
    labels = torch.zeros(5, dtype=torch.int64)
    attacked = attack(Stubborn(Linear(torch.randn(3, 4, 4))), images, labels, AttackSpec("cw", eps=0.5, steps=5))
    assert torch.equal(attacked.images, images)
    assert not attacked.success.any()
    assert not attacked.changed.any()


@pytest.mark.parametrize("name", ["deepfool", "cw"])
def test_only_images_that_are_right_are_attacked(name: str) -> None:
    network, images, sizes = small_cnn(nn.Tanh), torch.rand(12, 3, 6, 6), []
    labels = predict(network, images)
    labels[:7] = (labels[:7] + 1) % 4
    network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    attack(network, images, labels, AttackSpec(name, eps=0.2, steps=3))
    assert sizes[:2] == sizes[-1:] * 2 == [12, 12], "asked twice, which tells that the network is not random; and at the end"
    assert set(sizes[2:-1]) == {5}


def test_what_a_randomised_network_happens_to_get_wrong_at_first_is_attacked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Brighter:
        def run(self, model: object, clean: Tensor, criterion: object) -> Tensor:
            return clean + 0.01

    monkeypatch.setitem(minimal.METHODS, "deepfool", lambda spec: Brighter())
    images, labels = torch.full((48, 1, 4, 4), 0.5), torch.zeros(48, dtype=torch.int64)
    assert 9 < (predict(Wavering(), images) != 0).sum() < 24
    assert attack(Wavering(), images, labels, AttackSpec("deepfool", eps=0.1)).changed.sum() >= 46
