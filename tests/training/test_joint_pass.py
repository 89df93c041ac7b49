"""gandefense.training.joint_pass: what a step of joint training differentiates, and its losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.gan import GANNetworks, GANRestorer
from gandefense.restorers.gradient_maps import gradient_maps
from gandefense.restorers.trn import TRNRestorer, TwoStreamRestorationNetwork
from gandefense.training.adversarial import AdversarialConfig
from gandefense.training.adversarial_weights import perturbed_weights
from gandefense.training.joint_pass import PassConfig, RestoringConfig, losses, maps_now, misalignment, through
from tests.helpers.networks import small_cnn

LABELS = torch.tensor([0, 3])


def _tiny_trn(*, norm: bool = False) -> DefendedClassifier:
    """TRN before a smooth classifier of four classes and 6×6 pixels, in float64; with `norm` it has a batch norm."""
    torch.manual_seed(1)
    classifier = small_cnn(nn.Tanh)
    if norm:
        classifier = nn.Sequential(nn.BatchNorm2d(3), *classifier)
    network = TwoStreamRestorationNetwork(channels=3, labels=4, width=8, blocks=1)
    nn.init.normal_(network.tail[-1].weight, std=0.02)
    return DefendedClassifier(TRNRestorer(network, classifier), classifier).double().train()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 6, 6, dtype=torch.float64) * 0.4 + 0.3


def _slope(objective: Callable[[], Tensor], tensors: list[Tensor], along: list[Tensor], step: float = 1e-5) -> float:
    """The central difference of an objective along a direction of some tensors, which are put back."""
    values = []
    with torch.no_grad():
        kept = [tensor.clone() for tensor in tensors]
        for sign in (1, -1):
            for tensor, before, direction in zip(tensors, kept, along, strict=True):
                tensor.copy_(before + sign * step * direction)
            values.append(objective().item())
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(before)
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("view", ["exact", "detached"])
def test_the_attackers_objective_agrees_with_finite_differences(images: Tensor, view: str) -> None:
    """detached: of the pipeline whose maps stay those of the image at hand."""
    defended = _tiny_trn().eval()
    maps = gradient_maps(defended.classifier, images)

    def exact(point: Tensor) -> Tensor:
        return defended(point)

    def held(point: Tensor) -> Tensor:
        return defended.classifier(defended.restorer.network(point, maps))

    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(defended.view(view)(point), LABELS), point)
    along, moved = torch.randn_like(images), images.clone()
    real = exact if view == "exact" else held
    expected = _slope(lambda: F.cross_entropy(real(moved), LABELS), [moved], [along])
    assert (gradient * along).sum().item() == pytest.approx(expected, rel=1e-5)
    other = held if view == "exact" else exact
    assert (gradient * along).sum().item() != pytest.approx(
        _slope(lambda: F.cross_entropy(other(moved), LABELS), [moved], [along]), rel=1e-3
    ), "the two views differ here"


@pytest.mark.parametrize("norm", [False, True])
def test_with_maps_gradient_weights_learn_through_the_maps(images: Tensor, norm: bool) -> None:
    """The maps keep the running statistics that they were made with, though the pass after them moves them."""
    defended, options = _tiny_trn(norm=norm), PassConfig(maps_gradient=True)
    start = copy.deepcopy(defended.state_dict())
    weights = [p for p in defended.classifier.parameters() if p.ndim > 1]

    def objective(chosen: PassConfig) -> Tensor:
        defended.load_state_dict({k: v for k, v in start.items() if "running" in k or "tracked" in k}, strict=False)
        return F.cross_entropy(through(defended, images, chosen).logits, LABELS)

    gradients = torch.autograd.grad(objective(options), weights)
    along = [torch.randn_like(weight) for weight in weights]
    slope = sum((g * d).sum().item() for g, d in zip(gradients, along, strict=True))
    assert slope == pytest.approx(_slope(lambda: objective(PassConfig()), weights, along), rel=1e-5)
    without = torch.autograd.grad(objective(PassConfig()), weights)
    assert any(not torch.allclose(*pair, rtol=1e-3) for pair in zip(gradients, without, strict=True))


def test_maps_are_those_of_the_classifier_as_it_stands_and_leave_it_alone(images: Tensor) -> None:
    defended = _tiny_trn(norm=True)
    before = copy.deepcopy(defended.state_dict())
    made = maps_now(defended.restorer, images, differentiable=False)
    assert defended.training and all(part.training for part in defended.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in defended.state_dict().items())
    assert all(parameter.grad is None for parameter in defended.parameters())
    with torch.no_grad():
        defended.classifier[-1].weight.mul_(-1)
    assert not torch.allclose(made.maps, maps_now(defended.restorer, images, differentiable=False).maps, atol=0.1)
    expected = gradient_maps(copy.deepcopy(defended.classifier).eval(), images)
    assert torch.equal(maps_now(defended.restorer, images, differentiable=False).maps, expected.maps)


def test_gradient_alignment_is_zero_of_a_linear_loss_and_has_a_gradient_elsewhere(images: Tensor) -> None:
    defended, options = _tiny_trn(), PassConfig()
    assert misalignment(defended, images, images, LABELS, options).item() == pytest.approx(0, abs=1e-12)
    bent = misalignment(defended, images, (images + 0.1 * torch.randn_like(images)).clamp(0, 1), LABELS, options)
    assert 0 < bent < 2
    bent.backward()
    assert defended.classifier[0].weight.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def gan() -> DefendedClassifier:
    torch.manual_seed(0)
    networks = GANNetworks(channels=3, size=32, width=8)
    for layer in (networks.ismn.out, networks.generator.out):
        nn.init.normal_(layer.weight, std=0.02)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    return DefendedClassifier(GANRestorer(networks, threshold=0.1, rounds=2), classifier).eval()


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_soft_gate_is_the_mean_over_where_the_loop_may_leave(gan: DefendedClassifier, rounds: int) -> None:
    batch, networks, chances, given = torch.rand(3, 3, 32, 32), gan.restorer.networks, [], []
    point = batch
    with torch.no_grad():
        for _ in range(rounds):
            made = networks(point)
            chances.append(torch.sigmoid((made.logit - 0.1) / 0.5).view(-1, 1, 1, 1))
            given.append(point)
            point = made.regenerated
        expected, going_on = torch.zeros_like(batch), torch.ones(3, 1, 1, 1)
        for image, chance in zip(given, chances, strict=True):
            expected = expected + going_on * (1 - chance) * image
            going_on = going_on * chance
        expected = expected + going_on * point
        restored, first = gan.restorer.soft(batch, rounds=rounds, softness=0.5)
    assert torch.allclose(restored, expected, atol=1e-6)
    assert torch.equal(first.logit, networks(batch).logit)


def test_a_hard_gate_is_the_loops(gan: DefendedClassifier) -> None:
    """Towards no softness; one round, because the loop also asks whether two versions agree."""
    batch, restorer = torch.rand(4, 3, 32, 32), copy.deepcopy(gan.restorer)
    with torch.no_grad():
        restorer.threshold = restorer.networks.detect(batch).median().item() + 1e-4
        restorer.rounds = 1
        assert restorer(batch).flagged.tolist().count(True) == 2
        assert torch.allclose(restorer.soft(batch, softness=1e-6)[0], restorer(batch).images, atol=1e-5)


def test_the_detector_learns_from_the_classification_through_the_soft_gate(gan: DefendedClassifier) -> None:
    head = gan.restorer.networks.perturbation.head[-1].weight
    batch, labels = torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
    (soft,) = torch.autograd.grad(F.cross_entropy(through(gan, batch, PassConfig()).logits, labels), head)
    assert soft[0].abs().sum() > 0, "row 0 makes the attack logit"
    restored = gan.restorer.scored(batch, "exact")[0]
    hard = torch.autograd.grad(F.cross_entropy(gan.classifier(restored), labels), head, allow_unused=True)[0]
    assert hard is None or not hard[0].any()


LOSSES = {"attacks": AdversarialConfig(method="pgd", clean_weight=0.25), "options": PassConfig(), "restoring": RestoringConfig()}


def test_losses_add_up_and_weigh_what_they_say(gan: DefendedClassifier) -> None:
    clean = torch.rand(2, 3, 32, 32) * 0.8 + 0.1
    attacked, labels = (clean + 0.03 * torch.randn_like(clean).sign()).clamp(0, 1), torch.tensor([1, 2])
    with torch.no_grad():
        found = losses(gan, clean, attacked, labels, **LOSSES)
        one, two = (through(gan, batch, PassConfig()) for batch in (clean, attacked))
    parts = {name: value for name, value in found.items() if name.startswith("loss_")}
    assert set(parts) == {f"loss_{name}" for name in ("class", "pixel", "cleaned", "sparsity", "detection", "level")}
    assert found["loss"].item() == pytest.approx(sum(parts.values()).item(), rel=1e-5)
    expected = 0.25 * F.cross_entropy(one.logits, labels) + 0.75 * F.cross_entropy(two.logits, labels)
    assert found["loss_class"].item() == pytest.approx(expected.item(), rel=1e-5)
    errors = [(made.restored - clean).abs().mean().item() for made in (one, two)]
    assert found["loss_pixel"].item() == pytest.approx(10 * sum(errors) / 2, rel=1e-5)
    assert found["pixel_error"].item() == pytest.approx(255 * errors[1], rel=1e-5)
    odds = F.softplus(one.first.logit - 0.1).mean() / 2 + F.softplus(0.1 - two.first.logit).mean() / 2
    assert found["loss_detection"].item() == pytest.approx(0.5 * odds.item(), rel=1e-5)


def test_perturbed_weights_of_both_networks_come_back(images: Tensor) -> None:
    defended = _tiny_trn(norm=True)
    attacked = (images + 0.03).clamp(0, 1)
    objective = partial(losses, defended, images, attacked, LABELS, **LOSSES)
    before = copy.deepcopy(defended.state_dict())
    plain = objective()["loss"].item()
    defended.load_state_dict(before)
    with perturbed_weights(defended, lambda: objective()["loss"], 0.05):
        worse = objective()["loss"]
        for name in ("restorer.network.image_stem.weight", "classifier.1.weight"):
            moved = (defended.state_dict()[name] - before[name]).norm()
            assert moved.item() == pytest.approx(0.05 * before[name].norm().item(), rel=1e-6), name
        worse.backward()
    assert worse.item() > plain
    after = {name: tensor for name, tensor in defended.state_dict().items() if "running" not in name and "tracked" not in name}
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
