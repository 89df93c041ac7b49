"""Attacks against networks that can be solved by hand, and what holds for every attack."""

from __future__ import annotations

import logging
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gandefense.attacks.noise import NOISES
from gandefense.attacks.spec import BELONGS, COARSE, EUCLIDEAN, STEPWISE, UNIVERSAL
from gandefense.attacks.suite import ATTACKS, NAMES, AttackSpec, attack, check_images, frozen, predict
from gandefense.errors import UserError
from tests.helpers.networks import Linear

EPS = 8 / 255
RANDOM = [
    "ffgsm",
    "pgd",
    "pgd-coarse",
    "pgd-l2",
    "apgd-ce",
    "apgd-dlr",
    "apgd-t",
    "square",
    "autoattack",
    "hopskipjump",
    *NOISES,
]  # random parts


def _short(name: str, **settings: Any) -> AttackSpec:
    """An attack with few steps and queries."""
    counts = {"steps": 30 if name == "cw" else 6, "queries": 40}
    few = {key: count for key, count in counts.items() if name in BELONGS[key]}
    return AttackSpec(name, **{**few, **settings})


def _push(linear: Linear, labels: Tensor) -> Tensor:
    """The sign of the loss gradient of a linear classifier for the given labels."""
    return torch.where(labels == 0, 1.0, -1.0).view(-1, 1, 1, 1) * linear.weight.detach().sign()


def test_fgsm_against_a_linear_classifier_is_eps_times_sign(linear: Linear) -> None:
    images, labels = torch.rand(6, 3, 4, 4) * 0.8 + 0.1, torch.tensor([0, 1, 0, 1, 1, 0])
    attacked = attack(linear, images, labels, AttackSpec("fgsm", eps=EPS)).images
    assert torch.allclose(attacked, images + EPS * _push(linear, labels), rtol=0, atol=2e-7)


def test_ffgsm_against_a_linear_classifier_goes_at_least_a_quarter_of_eps(linear: Linear) -> None:
    # A uniform start in ±eps and a step of 1.25 eps, cut to ±eps, end between eps / 4 and eps.
    images, labels = torch.rand(200, 3, 4, 4) * 0.8 + 0.1, torch.arange(200) % 2
    along = (attack(linear, images, labels, AttackSpec("ffgsm", eps=EPS)).images - images) * _push(linear, labels)
    assert along.min() > EPS / 4 - 1e-6
    assert along.min() < EPS / 3
    assert along.max() < EPS + 1e-6
    assert along.mean().item() == pytest.approx(EPS * (1 - 0.75 * 0.75 / 4), rel=0.02)


def test_pixels_at_the_edge_of_the_range_stay_there(linear: Linear) -> None:
    images = torch.rand(4, 3, 4, 4).round()
    attacked = attack(linear, images, torch.tensor([0, 1, 0, 1]), AttackSpec("fgsm", eps=EPS)).images
    wanted = (images + EPS * _push(linear, torch.tensor([0, 1, 0, 1]))).clamp(0, 1)
    assert torch.allclose(attacked, wanted, rtol=0, atol=2e-7)


@pytest.mark.parametrize("eps", [0.0, 1 / 255, EPS, 0.5])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_stays_in_its_budget(name: str, eps: float, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    attacked = attack(network, images, labels, _short(name, eps=eps))
    assert (attacked.images - images).abs().max() <= eps + 1e-6
    assert attacked.images.min() >= 0
    assert attacked.images.max() <= 1
    assert attacked.images.dtype == images.dtype
    assert not attacked.images.requires_grad
    if name in (*STEPWISE, *EUCLIDEAN, UNIVERSAL) or eps == 0:
        assert attacked.changed.all().item() == (eps > 0)
    assert not attacked.success[~attacked.changed].any(), "labels are the predictions: what is unchanged is not broken"


# The least share of images broken at 0.2; Carlini and Wagner's attack minimises another norm, and one perturbation for all
# images cannot fit each.
LEAST = {**dict.fromkeys(ATTACKS, 0.7), "cw": 0.4, UNIVERSAL: 0.4}


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_every_attack_lowers_accuracy(name: str, least: float, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    settings = {"queries": 400} if name in BELONGS["queries"] else {}
    eps = 1.0 if name in EUCLIDEAN else 0.2
    attacked = attack(network, images, labels, AttackSpec(name, eps=eps, **settings))
    assert attacked.success.float().mean() > least
    assert torch.equal(attacked.success, predict(network, attacked.images) != labels)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in (*STEPWISE, *EUCLIDEAN, UNIVERSAL)])
def test_images_that_are_wrong_already_come_back_unchanged(name: str, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    wrong = torch.where(torch.arange(len(labels)) < 5, (labels + 1) % 4, labels)
    attacked = attack(network, images, wrong, _short(name, eps=0.2))
    assert torch.equal(attacked.images[:5], images[:5])
    assert attacked.success[:5].all()
    assert attacked.changed[5:].any()
    everything = attack(network, images, (labels + 1) % 4, _short(name, eps=0.2))
    assert torch.equal(everything.images, images)


@pytest.mark.parametrize("name", ATTACKS)
def test_one_image_and_none_are_batches_too(name: str, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    one = attack(network, images[:1], labels[:1], _short(name, eps=0.2))
    assert one.images.shape == images[:1].shape
    assert one.changed.all()
    assert attack(network, images[:0], labels[:0], _short(name)).images.shape == images[:0].shape


@pytest.mark.parametrize("name", ATTACKS)
def test_images_may_lie_channels_last(name: str, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    there = attack(network, images.contiguous(memory_format=torch.channels_last), labels, _short(name, eps=0.1)).images
    assert torch.allclose(there, attack(network, images, labels, _short(name, eps=0.1)).images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_talks(
    name: str, network: nn.Module, images: Tensor, labels: Tensor, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a script that has not set logging up
    saturated = nn.Sequential(network, Scaled(1e6), nn.Tanh())  # zero gradients make pyautoattack warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(network, images, labels, _short(name, eps=0.02))
        attack(saturated, images, predict(saturated, images), _short(name, eps=0.02))
    assert tuple(capfd.readouterr()) == ("", "")
    assert not logging.getLogger().handlers


class Scaled(nn.Module):
    """Logits times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


def test_success_means_that_the_prediction_is_not_the_label(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    wrong = torch.where(torch.arange(len(labels)) < 4, (labels + 1) % 4, labels)
    attacked = attack(network, images, wrong, AttackSpec("fgsm", eps=0.02))
    assert torch.equal(attacked.success, predict(network, attacked.images) != wrong)
    assert 0 < attacked.success.sum() < len(labels)
    untouched = attack(network, images, wrong, AttackSpec("pgd", eps=0))
    assert untouched.success.tolist() == [True] * 4 + [False] * 8


def test_changed_means_that_some_pixel_differs(images: Tensor) -> None:
    class Gated(nn.Module):
        """A gradient for bright first pixels only."""

        def forward(self, images: Tensor) -> Tensor:
            gate = (images[:, 0, 0, 0] > 0.5).to(images.dtype)
            return torch.stack([images.flatten(1).mean(1) * gate, torch.zeros_like(gate)], dim=1)

    images[:, 0, 0, 0] = torch.tensor([0.0, 1.0]).repeat(6)
    attacked = attack(Gated(), images, torch.zeros(12, dtype=torch.int64), AttackSpec("fgsm"))
    assert attacked.changed.tolist() == [False, True] * 6


def test_predicted_labels_push_away_from_the_prediction(linear: Linear) -> None:
    images = torch.rand(20, 3, 4, 4) * 0.8 + 0.1
    predicted = predict(linear, images)
    wrong = 1 - predicted
    for labels, pushed in (("true", wrong), ("predicted", predicted)):
        attacked = attack(linear, images, wrong, AttackSpec("fgsm", labels=labels)).images
        assert torch.allclose(attacked, images + EPS * _push(linear, pushed), rtol=0, atol=2e-7), labels


class OnePixelAClass(nn.Module):
    """Logit k is pixel k, so that a step towards a class is seen in the pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * 2


@pytest.mark.parametrize("name", [name for name in STEPWISE if name not in COARSE])
def test_random_target_goes_to_one_class_that_is_never_the_true_one(name: str) -> None:
    images, labels = torch.full((120, 1, 2, 2), 0.5), torch.arange(120) % 4
    spec = AttackSpec(name, eps=0.1, steps=8, step_size=0.5 if name == "ffgsm" else None, labels="random_target")
    moved = (attack(OnePixelAClass(), images, labels, spec).images - images).flatten(1)
    assert ((moved > 0).sum(1) == 1).all(), "the target's pixel alone is raised"
    target = moved.argmax(1)
    assert (target != labels).all()
    for label in range(4):
        assert set(target[labels == label].tolist()) == set(range(4)) - {label}


@pytest.mark.parametrize("name", [*STEPWISE, *EUCLIDEAN, *NOISES])
@pytest.mark.parametrize("kind", ["true", "predicted", "random_target"])
def test_every_attack_takes_every_kind_of_labels(
    name: str, kind: str, network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    attacked = attack(network, images, labels, AttackSpec(name, eps=0.1, steps=3, labels=kind))
    assert attacked.changed.all()


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in (*STEPWISE, *EUCLIDEAN)])
def test_the_libraries_attacks_take_predicted_labels(name: str, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    wrong = (labels + 1) % 4
    found = attack(network, images, wrong, _short(name, eps=0.2, labels="predicted"))
    expected = attack(network, images, labels, _short(name, eps=0.2))
    assert torch.equal(found.images, expected.images)
    assert found.changed.any()
    assert torch.equal(found.success, predict(network, found.images) != wrong), "success is still about the true labels"


@pytest.mark.parametrize("name", [*ATTACKS, *NOISES])
def test_seed_decides_and_the_global_random_state_stays(name: str, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    before, others = torch.get_rng_state(), (random.getstate(), repr(np.random.get_state()))
    results = []
    for seed in (7, 7, 8):
        results.append(attack(network, images, labels, _short(name, eps=0.1), seed=seed).images)
        torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
        assert (random.getstate(), repr(np.random.get_state())) == others
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2]) == (name not in RANDOM)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_network_is_left_as_it_was(name: str, images: Tensor, labels: Tensor) -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Dropout(), nn.Flatten(), nn.Linear(64, 4))
    network.train()
    network[1].eval()
    network[3].bias.requires_grad_(False)
    network[3].weight.grad = torch.ones_like(network[3].weight)
    modes = [module.training for module in network.modules()]
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    seen = []
    network.register_forward_hook(
        lambda module, inputs, output: seen.append(
            (any(m.training for m in module.modules()), any(p.requires_grad for p in module.parameters()))
        )
    )
    attack(network, images, labels, _short(name))
    assert set(seen) == {(False, False)}, "eval mode and frozen parameters during the attack"
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == wanted
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items()), "batch norm's statistics too"
    gradients = [parameter.grad for parameter in network.parameters()]
    assert [gradient is None for gradient in gradients] == [True] * 4 + [False, True]
    assert torch.equal(network[3].weight.grad, torch.ones_like(network[3].weight))


def test_frozen_puts_things_back_after_an_exception() -> None:
    network = nn.Linear(2, 2).train()
    with pytest.raises(ZeroDivisionError), frozen(network):
        raise ZeroDivisionError
    assert network.training
    assert network.weight.requires_grad


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_works_under_no_grad(name: str, network: nn.Module, images: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        inside = attack(network, images, labels, _short(name, eps=0.1)).images
    assert torch.equal(inside, attack(network, images, labels, _short(name, eps=0.1)).images)


GOOD = torch.rand(2, 3, 4, 4)


def _with(value: float) -> Tensor:
    changed = GOOD.clone()
    changed[1, 2, 3, 3] = value
    return changed


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (GOOD[0], r"expected images of shape \(B, C, H, W\), got \(3, 4, 4\)"),
        (GOOD[None], r"expected images of shape \(B, C, H, W\)"),
        (GOOD[:, :1], r"expected images with 3 channel\(s\), got 1"),
        (GOOD.permute(0, 2, 3, 1), r"expected images with 3 channel\(s\), got 4"),
        ((GOOD * 255).byte(), "divide 8-bit images by 255"),
        (GOOD > 0.5, "expected float images"),
        (GOOD * 255, "images must lie in"),
        (GOOD * 2 - 1, "normalisation belongs in the classifier"),
        (_with(1.001), "images must lie in"),
        (_with(-0.001), "images must lie in"),
        (_with(torch.nan), "NaN or infinite"),
        (_with(torch.inf), "NaN or infinite"),
        (_with(-torch.inf), "NaN or infinite"),
    ],
)
def test_bad_images_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_images(images, 3)


@pytest.mark.parametrize(
    "images", [GOOD, GOOD.double(), GOOD.half(), GOOD[:0], _with(1 + 5e-7), _with(-5e-7), GOOD.requires_grad_()]
)
def test_good_images_pass(images: Tensor) -> None:
    check_images(images, 3)


def test_an_attack_checks_its_images(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(UserError, match="images must lie in"):
        attack(network, images * 255, labels, AttackSpec("fgsm"))


def test_every_name_has_its_attack() -> None:
    assert sorted(ATTACKS) == sorted(NAMES)
