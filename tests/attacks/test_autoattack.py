"""The AutoAttack family against linear classifiers, and against direct calls of pyautoattack."""

from __future__ import annotations

import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from gandefense.attacks import autoattack
from gandefense.attacks.spec import AttackSpec
from gandefense.attacks.suite import attack, predict
from gandefense.attacks.victim import ever_right
from gandefense.errors import UserError
from tests.helpers.networks import Linear, Wavering, small_cnn

COMMON = {"norm": "Linf", "eps": 0.03, "seed": 5, "n_restarts": 2, "device": torch.device("cpu")}
STEPS = {"n_iter": 12}


def _needed(linear: Linear, images: Tensor) -> Tensor:
    """The smallest L-infinity change that moves images onto the boundary of a linear classifier, (B,)."""
    with torch.no_grad():
        return linear(images)[:, 1].abs() / linear.weight.abs().sum()


# FAB steps a little over the boundary, and DeepFool 2 % and a constant; the others go to the edge of the budget.
@pytest.mark.parametrize("name", ["apgd-ce", "fab", "deepfool", "autoattack"])
def test_they_break_a_linear_classifier_as_soon_as_the_budget_allows_it(name: str) -> None:
    linear = Linear(torch.randn(3, 4, 4))
    images = torch.rand(200, 3, 4, 4) * 0.6 + 0.2
    images = images[_needed(linear, images) < 0.15][:20]
    images = images[_needed(linear, images) > 0.02]
    labels, needed = predict(linear, images), _needed(linear, images)
    assert len(images) > 10
    for image, label, least in zip(images[:3], labels, needed, strict=False):
        one = (image[None], label[None])
        queries = {"queries": 20} if name == "autoattack" else {}
        short = {"attack": name, "steps": 15, **queries}
        below = attack(linear, *one, AttackSpec(eps=0.98 * least.item(), **short))
        above = attack(linear, *one, AttackSpec(eps=1.05 * least.item() + 2e-4, **short))
        assert (below.success.item(), above.success.item()) == (False, True)


def test_square_is_near_the_optimum_of_a_linear_classifier() -> None:
    class Bright(nn.Module):
        """Class 1 where an image is brighter than grey: the best perturbation raises every pixel."""

        def forward(self, images: Tensor) -> Tensor:
            score = images.flatten(1).mean(1) - 0.5
            return torch.stack([torch.zeros_like(score), score], dim=1)

    needed = torch.linspace(0.005, 0.04, 15)
    images = torch.full((15, 1, 12, 12), 0.5) - needed.view(-1, 1, 1, 1)
    attacked = attack(Bright(), images, torch.zeros(15, dtype=torch.int64), AttackSpec("square", eps=0.02, queries=100))
    # Squares never reach the last row and column, which the random start may have lowered.
    assert attacked.success[needed < 0.02 * (1 - 2 * 23 / 144)].all()
    assert not attacked.success[needed > 0.02].any()


DIRECT = {
    "apgd-ce": (lambda net: APGDAttack(net, loss="ce", eot_iter=2, **STEPS, **COMMON), {"steps": 12, "eot": 2}),
    "apgd-dlr": (lambda net: APGDAttack(net, loss="dlr", **STEPS, **COMMON), {"steps": 12}),
    "apgd-t": (lambda net: APGDAttack_targeted(net, n_target_classes=3, **STEPS, **COMMON), {"steps": 12}),
    "fab": (lambda net: FABAttack_PT(net, **STEPS, **COMMON), {"steps": 12}),
    "fab-t": (lambda net: FABAttack_PT(net, targeted=True, n_target_classes=3, **STEPS, **COMMON), {"steps": 12}),
    "square": (lambda net: SquareAttack(net, n_queries=30, resc_schedule=False, **COMMON), {"queries": 30}),
}


@pytest.mark.parametrize("name", DIRECT)
def test_they_are_pyautoattacks_image_by_image(name: str) -> None:
    network, images = small_cnn(nn.Tanh).requires_grad_(False), torch.rand(60, 3, 6, 6)
    labels = predict(network, images)
    build, settings = DIRECT[name]
    direct = build(network).perturb(images, labels)
    ours = attack(network, images, labels, AttackSpec(name, eps=0.03, restarts=2, **settings), seed=5)
    assert torch.equal(ours.images, direct)
    assert 0 < ours.success.sum() < 60
    assert torch.equal(ours.changed, ours.success), "what is not broken comes back unchanged"


def test_autoattack_is_pyautoattacks_standard_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyautoattack.autoattack.checks.check_dynamic", lambda *words, **options: None)  # stops debuggers
    network, images = small_cnn(nn.Tanh, classes=10).requires_grad_(False), torch.rand(40, 3, 6, 6)
    labels = predict(network, images)
    labels[0] = (labels[0] + 1) % 10
    short = {"norm": "Linf", "eps": 0.015, "seed": 3, "n_iter": 8, "device": torch.device("cpu")}
    theirs = AutoAttack(network, eps=0.015, seed=3)  # the standard version, with fewer steps and queries
    theirs.apgd, theirs.apgd_targeted = APGDAttack(network, **short), APGDAttack_targeted(network, **short)
    theirs.fab.n_iter, theirs.square.n_queries = 8, 30
    expected, _ = theirs.run_standard_evaluation(images, labels)
    ours = attack(network, images, labels, AttackSpec("autoattack", eps=0.015, steps=8, queries=30), seed=3)
    assert torch.equal(ours.images, expected)
    alone = attack(network, images, labels, AttackSpec("apgd-ce", eps=0.015, steps=8), seed=3)
    assert 1 < alone.success.sum() < ours.success.sum() < 40
    assert torch.equal(ours.changed, ours.success & (torch.arange(40) > 0))


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_autoattack_runs_on_few_classes_and_is_at_least_its_parts(classes: int) -> None:
    network = small_cnn(nn.Tanh, classes=classes)
    images = torch.rand(40, 3, 6, 6)
    labels = predict(network, images)
    spec = AttackSpec("autoattack", eps=0.04, steps=10, queries=30)
    whole = attack(network, images, labels, spec)
    first = attack(network, images, labels, AttackSpec("apgd-ce", eps=0.04, steps=10))
    assert 0 < first.success.sum() <= whole.success.sum() < 40
    assert torch.equal(whole.images[first.success], first.images[first.success])
    assert torch.equal(whole.changed, whole.success)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_margin_closes_a_suite_of_few_classes(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "run", lambda network, images, *rest: images)  # nothing else breaks an image
    network, images = small_cnn(nn.Tanh, classes=classes), torch.rand(30, 3, 6, 6)
    labels = predict(network, images)
    whole = attack(network, images, labels, AttackSpec("autoattack", eps=0.05, steps=10))
    margin = attack(network, images, labels, AttackSpec("pgd", eps=0.05, steps=10, loss="margin"))
    assert 0 < margin.success.sum() < 30
    assert torch.equal(whole.success, margin.success & (classes < 4))
    assert torch.equal(whole.images[whole.success], margin.images[whole.success])
    assert torch.equal(whole.images[~whole.success], images[~whole.success])


def test_each_part_of_autoattack_meets_only_what_stands() -> None:
    network, images, sizes = small_cnn(nn.Tanh), torch.rand(50, 3, 6, 6), []
    labels = predict(network, images)
    labels[:10] = (labels[:10] + 1) % 4
    network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    attacked = attack(network, images, labels, AttackSpec("autoattack", eps=0.05, steps=4, queries=5))
    assert sizes[:2] == [50, 50], "all are asked twice, which tells that the network is not random"
    assert max(sizes[2:-1]) == 40, "images that are wrong already are left alone"
    assert sizes[-1] == 50
    assert sizes[-2] < 20, "the last part has few left"
    assert attacked.success.sum() > 30


def test_square_asks_and_never_differentiates() -> None:
    class Asked(nn.Module):
        """Breaks the graph, and notes how it is asked."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.how = network, []

        def forward(self, images: Tensor) -> Tensor:
            self.how.append((torch.is_grad_enabled(), images.requires_grad))
            return self.network(images)

    network, images = Asked(small_cnn(nn.Tanh)), torch.rand(20, 3, 6, 6)
    labels = predict(network, images)
    network.how.clear()
    attacked = attack(network, images, labels, AttackSpec("square", eps=0.03, queries=25))
    assert set(network.how) == {(False, False)}
    assert len(network.how) == 1 + 1 + 1 + 25 + 1 + 1, "classes, clean, start, queries, Square's own check, success"
    assert 0 < attacked.success.sum() < 20


def test_square_does_not_write_into_the_networks_outputs() -> None:
    class Remembers(nn.Module):
        """Answers with tensors that it keeps."""

        def __init__(self) -> None:
            super().__init__()
            self.kept: list[Tensor] = []

        def forward(self, images: Tensor) -> Tensor:
            self.kept.append(images.flatten(1)[:, :3] * 4)
            return self.kept[-1]

    network, images = Remembers(), torch.rand(10, 1, 4, 4)
    attack(network, images, predict(network, images), AttackSpec("square", queries=5))
    assert len(network.kept) > 5
    assert all(outputs.isfinite().all() for outputs in network.kept)


def test_apgd_sees_through_random_signs_with_eot() -> None:
    class NoisyGradient(Linear):
        def forward(self, images: Tensor) -> Tensor:
            sign = torch.where(torch.rand_like(images) < 0.45, -1.0, 1.0)
            return super().forward(images.detach() + sign * (images - images.detach()))

    network = NoisyGradient(torch.randn(3, 8, 8))
    images = torch.rand(60, 3, 8, 8) * 0.6 + 0.2
    labels, needed = predict(network, images), _needed(network, images)
    near = needed < needed.median()
    eps = 1.1 * needed[near].max().item()
    fell = [
        attack(network, images, labels, AttackSpec("apgd-ce", eps=eps, steps=4, eot=eot)).success[near].float().mean()
        for eot in (1, 60)
    ]
    assert fell[1] > fell[0] + 0.1


ROWS = 48


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "square", "autoattack"])
def test_what_a_randomised_network_happens_to_get_wrong_at_first_is_attacked_too(name: str) -> None:
    images, labels = torch.full((ROWS, 1, 4, 4), 0.5), torch.zeros(ROWS, dtype=torch.int64)
    assert ROWS / 5 < (predict(Wavering(), images) != 0).sum() < ROWS / 2
    queries = {"queries": 60} if name in ("square", "autoattack") else {}
    found = attack(Wavering(), images, labels, AttackSpec(name, eps=24 / 255, **queries))
    assert found.changed.sum() >= ROWS - 2, "one pass would have left out a third of them"


@pytest.mark.parametrize("name", ["fab", "fab-t"])
def test_fab_attacks_all_that_its_first_pass_found_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own second pass would leave out a third of these."""

    def brighter(self: FABAttack_PT, x: Tensor, y: Tensor, **_: object) -> Tensor:
        attacked = self._get_predicted_label(x) == y
        return torch.where(attacked.view(-1, 1, 1, 1), x + 0.08, x)

    monkeypatch.setattr(FABAttack_PT, "attack_single_run", brighter)
    images, labels = torch.full((ROWS, 1, 4, 4), 0.5), torch.zeros(ROWS, dtype=torch.int64)
    assert attack(Wavering(), images, labels, AttackSpec(name, eps=24 / 255)).changed.sum() >= ROWS - 2


def test_a_network_that_gives_the_same_answer_twice_is_asked_no_more() -> None:
    asked = []
    network, images = small_cnn(nn.Tanh), torch.rand(5, 3, 6, 6)
    network.register_forward_hook(lambda *_: asked.append(1))
    labels = predict(network, images)
    labels[:2] = (labels[:2] + 1) % 3
    asked.clear()
    assert ever_right(network, images, labels).tolist() == [False, False, True, True, True]
    assert len(asked) == 2
    with pytest.raises(UserError, match="NaN"):
        ever_right(lambda points: network(points) * torch.nan, images, labels)
