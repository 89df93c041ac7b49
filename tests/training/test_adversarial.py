"""What an adversarial training minimises, its attacks, and the perturbed weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.attacks.suite import AttackSpec, attack
from gandefense.errors import UserError
from gandefense.training.adversarial import (
    AdversarialConfig,
    WeightPerturbationConfig,
    attacked_batch,
    check,
    control,
    loss,
    step_size,
)
from gandefense.training.adversarial_weights import perturbed_weights
from tests.helpers.networks import Linear, small_cnn

EPS = 8 / 255


@pytest.fixture
def images() -> Tensor:
    return torch.rand(16, 3, 6, 6)


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(4, (16,))


def _with_batch_norm() -> nn.Sequential:
    torch.manual_seed(3)
    first = (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(6 * 36, 4)).train()


class Given(nn.Module):
    """Logits that are known: each image carries its own."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2]


def _as_images(logits: list[list[float]]) -> Tensor:
    return torch.tensor(logits)[:, :, None, None]


CLEAN, ATTACKED = _as_images([[2.0, 0.0], [0.0, 1.0]]), _as_images([[0.0, 0.0], [3.0, 1.0]])
TRUE = torch.tensor([0, 1])
CLEAN_CE = (torch.tensor([2.0, 1.0]).neg().exp().log1p()).mean()  # softplus(−margin), margins 2 and 1
ATTACKED_CE = (torch.tensor([0.0, -2.0]).neg().exp().log1p()).mean()  # margins 0 and −2
P, Q = torch.sigmoid(torch.tensor([2.0, -1.0])), torch.sigmoid(torch.tensor([0.0, 2.0]))  # of class 0
KL = (P * (P / Q).log() + (1 - P) * ((1 - P) / (1 - Q)).log()).mean()
PAIR = torch.tensor([4.0, 0.0, 9.0, 0.0]).mean()  # squared differences of the logits


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "none"}, CLEAN_CE),
        ({"method": "fgsm", "clean_weight": 0.0}, ATTACKED_CE),
        ({"method": "fgsm", "clean_weight": 0.25}, 0.25 * CLEAN_CE + 0.75 * ATTACKED_CE),
        ({"method": "pgd", "clean_weight": 0.5}, 0.5 * CLEAN_CE + 0.5 * ATTACKED_CE),
        ({"method": "trades", "beta": 6.0}, CLEAN_CE + 6 * KL),
        ({"method": "trades", "beta": 0.0}, CLEAN_CE),
        ({"method": "alp", "clean_weight": 0.5, "pairing_weight": 0.7}, 0.5 * CLEAN_CE + 0.5 * ATTACKED_CE + 0.7 * PAIR),
        ({"method": "alp", "clean_weight": 0.0, "pairing_weight": 2.0}, ATTACKED_CE + 2 * PAIR),
    ],
)
def test_losses_by_hand(options: dict[str, object], expected: Tensor) -> None:
    found = loss(Given(), CLEAN, ATTACKED, TRUE, AdversarialConfig(**options))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_label_smoothing_and_soft_labels_reach_every_cross_entropy() -> None:
    options = AdversarialConfig(method="pgd", clean_weight=0.5)
    smooth = loss(Given(), CLEAN, ATTACKED, TRUE, options, smoothing=0.2)
    soft = loss(Given(), CLEAN, ATTACKED, torch.tensor([[0.9, 0.1], [0.1, 0.9]]), options)
    assert smooth.item() == pytest.approx(soft.item(), rel=1e-5)
    assert smooth.item() != pytest.approx(loss(Given(), CLEAN, ATTACKED, TRUE, options).item(), rel=1e-3)


def test_trades_without_beta_is_clean_training(images: Tensor, labels: Tensor) -> None:
    """Loss, gradients and running statistics are those of a batch without an attack."""
    found = []
    for options in (AdversarialConfig(method="none"), AdversarialConfig(method="trades", beta=0.0, steps=2)):
        network = _with_batch_norm()
        loss(network, images, attacked_batch(network, images, labels, options), labels, options).backward()
        found.append([*(parameter.grad for parameter in network.parameters()), *network.buffers()])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_the_divergence_of_trades_pulls_on_both_sides(images: Tensor) -> None:
    clean, attacked = CLEAN.clone().requires_grad_(True), ATTACKED.clone().requires_grad_(True)
    options = AdversarialConfig(method="trades", beta=1.0)
    (loss(Given(), clean, attacked, TRUE, options) - F.cross_entropy(Given()(clean), TRUE)).backward()
    assert clean.grad.flatten(1).abs().sum(1).min() > 0
    # of the attacked side: q − p, as of any cross-entropy against p
    assert torch.allclose(attacked.grad.flatten(1)[:, 0], (Q - P) / 2, atol=1e-6)


@pytest.mark.parametrize("method", ["fgsm", "pgd", "trades", "alp", "suite"])
@pytest.mark.parametrize("step", [None, 0.5])
def test_attacks_stay_in_the_ball_and_in_the_pixels_range(
    images: Tensor, labels: Tensor, method: str, step: float | None
) -> None:
    images = (2 * images - 0.5).clamp(0, 1)  # with many pixels at the edges
    attacked = attacked_batch(small_cnn(nn.ReLU), images, labels, AdversarialConfig(method, "pgd", EPS, 3, step))
    assert (attacked - images).abs().max() <= EPS + 1e-6
    assert (attacked - images).abs().flatten(1).amax(1).min() > 0.5 * EPS, "no image is left as it was"
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert not attacked.requires_grad


@pytest.mark.parametrize("name", ["fgsm", "ffgsm", "bim", "pgd", "mim"])
def test_suite_attacks_as_the_evaluator_does(images: Tensor, labels: Tensor, name: str) -> None:
    network, options = small_cnn(nn.Softplus).train(), AdversarialConfig("suite", name, EPS, steps=3)
    torch.manual_seed(7)
    attacked = attacked_batch(network, images, labels, options)
    torch.manual_seed(7)
    spec = AttackSpec(name, eps=EPS, steps=3)
    assert torch.equal(attacked, attack(network, images, labels, spec, seed=int(torch.randint(2**31, ()))).images)
    random = name in ("ffgsm", "pgd")
    assert torch.equal(attacked_batch(network, images, labels, options), attacked) is not random, "another start every batch"
    assert network.training


def test_more_steps_find_a_higher_loss_and_any_more_than_none(images: Tensor, labels: Tensor) -> None:
    network, found = small_cnn(nn.Softplus), {}
    for steps in (1, 2, 10):
        attacked = attacked_batch(network, images, labels, AdversarialConfig("pgd", eps=0.1, steps=steps))
        found[steps] = F.cross_entropy(network(attacked), labels).item()
    torch.manual_seed(0)
    start = (images + 0.1 * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    fgsm = attacked_batch(network, images, labels, AdversarialConfig("fgsm", eps=0.1))
    assert found[1] > F.cross_entropy(network(start), labels).item() + 0.1, "its random start"
    assert found[10] > F.cross_entropy(network(fgsm), labels).item(), "a single step"
    assert found[10] > found[2] > found[1]


def test_on_a_linear_network_pgd_ends_in_the_corner_that_is_worst() -> None:
    weight = torch.randn(3, 6, 6)
    images, labels = torch.rand(8, 3, 6, 6) * 0.5 + 0.25, torch.arange(8) % 2
    attacked = attacked_batch(Linear(weight), images, labels, AdversarialConfig("pgd", eps=EPS, steps=2))
    towards = torch.where(labels == 0, 1.0, -1.0)[:, None, None, None] * weight.sign()
    assert torch.allclose(attacked, images + EPS * towards, atol=1e-6)


def test_trades_maximises_the_divergence_without_labels(images: Tensor, labels: Tensor) -> None:
    network, options = small_cnn(nn.Softplus), AdversarialConfig("trades", eps=0.05, steps=5)
    divergences = []
    for goal in (labels, (labels + 1) % 4):
        torch.manual_seed(1)
        attacked = attacked_batch(network, images, goal, options)
        with torch.no_grad():
            p, q = network(images).log_softmax(1), network(attacked).log_softmax(1)
        divergences.append((p.exp() * (p - q)).sum(1))
    assert torch.equal(*divergences)
    random = network(images + 0.05 * torch.randn_like(images).sign()).log_softmax(1)
    assert divergences[0].mean() > 2 * (p.exp() * (p - random)).sum(1).mean()


@pytest.mark.parametrize("method", ["fgsm", "pgd", "trades", "alp"])
def test_the_attack_runs_in_eval_mode_and_leaves_no_trace(images: Tensor, labels: Tensor, method: str) -> None:
    network, seen = _with_batch_norm(), []
    before = copy.deepcopy(network.state_dict())
    network.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    attacked_batch(network, images, labels, AdversarialConfig(method, steps=2))
    assert set(seen) == {False}
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("steps", "expected"), [(1, 1.25), (2, 1.25), (5, 0.5), (10, 0.25)])
def test_the_usual_step_size(steps: int, expected: float) -> None:
    assert step_size(AdversarialConfig(eps=0.1, steps=steps)) == pytest.approx(0.1 * expected)
    assert step_size(AdversarialConfig(eps=0.1, steps=steps, step_size=0.02)) == 0.02


@pytest.mark.parametrize(
    ("options", "eps"), [({}, 8 / 255), ({"eps": 9 / 255}, 9 / 255), ({"eps": 9 / 255, "validation_eps": EPS}, EPS)]
)
def test_validation_attacks_at_the_budget_asked_for_else_at_the_trainings(options: dict[str, float], eps: float) -> None:
    assert control(AdversarialConfig(method="pgd", **options)) == AttackSpec("pgd", eps=eps, steps=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "train.adversarial.steps must be at least 1, got 0"),
        ({"step_size": 0.0}, "train.adversarial.step_size must be positive, got 0.0"),
        ({"validation_eps": 8.0}, "train.adversarial.validation_eps is in pixel units"),
        ({"beta": -1.0}, "train.adversarial.beta must not be negative, got -1.0"),
        ({"pairing_weight": float("nan")}, "train.adversarial.pairing_weight must not be negative, got nan"),
        ({"awp": WeightPerturbationConfig(gamma=-0.1)}, "train.adversarial.awp.gamma must not be negative"),
        ({"method": "none", "awp": WeightPerturbationConfig(gamma=0.1)}, "choose a train.adversarial.method"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(AdversarialConfig(**{"method": "pgd", **options}))


@pytest.fixture
def objective(images: Tensor, labels: Tensor) -> Callable[[nn.Module], Callable[[], Tensor]]:
    return lambda network: lambda: F.cross_entropy(network(images), labels)


def test_weights_are_perturbed_up_the_loss_by_gamma_and_come_back_exactly(objective: Callable) -> None:
    network = _with_batch_norm()
    before, judged = copy.deepcopy(network.state_dict()), objective(network)
    gradients = dict(
        zip(("0.weight", "4.weight"), torch.autograd.grad(judged(), [network[0].weight, network[4].weight]), strict=True)
    )
    network.load_state_dict(before)  # running statistics, too
    with perturbed_weights(network, judged, 0.05):
        for name, tensor in network.state_dict().items():
            moved = tensor - before[name]
            if name in gradients:
                size = 0.05 * before[name].norm()
                assert moved.norm() == pytest.approx(size.item(), rel=1e-4)
                assert torch.allclose(moved, size * gradients[name] / gradients[name].norm(), atol=1e-5)
            else:
                assert not moved.any(), f"{name}: biases, norms and running statistics stay"
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_gradient_is_that_of_the_perturbed_weights(objective: Callable) -> None:
    network = _with_batch_norm()
    judged = objective(network)
    plain = torch.autograd.grad(judged(), network[0].weight)[0]
    with perturbed_weights(network, judged, 0.05):
        value = judged()
        value.backward()
    assert value > judged()
    assert not torch.allclose(network[0].weight.grad, plain, rtol=1e-3)


def test_without_gamma_nothing_is_computed() -> None:
    def never() -> Tensor:
        raise AssertionError

    with perturbed_weights(nn.Linear(2, 2), never, 0.0):
        pass


def test_weights_come_back_after_an_error(objective: Callable) -> None:
    network = _with_batch_norm()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(KeyboardInterrupt), perturbed_weights(network, objective(network), 0.05):
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
