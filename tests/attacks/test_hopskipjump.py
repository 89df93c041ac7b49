"""The decision-based attack: what it asks, how often, and what it finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gandefense.attacks import hopskipjump
from gandefense.attacks.spec import AttackSpec
from gandefense.attacks.suite import attack, predict
from gandefense.attacks.victim import ASKED
from gandefense.errors import UserError
from tests.helpers.networks import Wavering, small_cnn


class Wrapped(nn.Module):
    """A network whose answers are changed, and whose questions are counted."""

    def __init__(self, network: nn.Module, change: str = "") -> None:
        super().__init__()
        self.network, self.change, self.asked = network, change, []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append((len(images), torch.is_grad_enabled(), images.requires_grad))
        outputs = self.network(images)
        if self.change == "decisions":
            return nn.functional.one_hot(outputs.argmax(1), outputs.shape[1]).float()
        if self.change == "dice":
            return torch.rand_like(outputs)
        return outputs


@pytest.fixture
def network() -> nn.Module:
    return small_cnn(nn.Tanh)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(20, 3, 6, 6)


def test_it_sees_decisions_alone(network: nn.Module, images: Tensor) -> None:
    labels, spec = predict(network, images), AttackSpec("hopskipjump", eps=0.1, queries=150)
    by_scores = attack(network, images, labels, spec)
    by_decisions = attack(Wrapped(network, "decisions"), images, labels, spec)
    assert torch.equal(by_scores.images, by_decisions.images)
    assert by_scores.success.sum() > 5


def test_more_queries_break_more(network: nn.Module, images: Tensor) -> None:
    labels = predict(network, images)
    fell = [
        attack(network, images, labels, AttackSpec("hopskipjump", eps=0.06, queries=queries)).success.sum()
        for queries in (20, 800)
    ]
    assert fell[0] + 3 < fell[1]


def test_the_budget_of_queries_is_kept_and_no_gradient_taken(network: nn.Module, images: Tensor) -> None:
    asked = Wrapped(network)
    labels = predict(network, images)
    labels[:5] = (labels[:5] + 1) % 4
    attack(asked, images, labels, AttackSpec("hopskipjump", eps=1e-4, queries=70))
    sizes = [size for size, *_ in asked.asked]
    starts = 20 + hopskipjump.NOISE_STARTS
    assert sizes == [20, 20, starts, *[15] * 70, 20], "clean twice, starts, 70 queries on what is right, success"
    assert {how for _, *how in asked.asked for how in [tuple(how)]} == {(False, False)}


def test_it_stops_when_all_are_broken(network: nn.Module, images: Tensor) -> None:
    asked = Wrapped(network)
    attacked = attack(asked, images, predict(network, images), AttackSpec("hopskipjump", eps=0.5, queries=1000))
    assert attacked.success.all()
    assert len(asked.asked) < 300


def test_what_is_found_outside_the_budget_comes_back_cut_to_it(network: nn.Module, images: Tensor) -> None:
    attacked = attack(network, images, predict(network, images), AttackSpec("hopskipjump", eps=1e-3, queries=30))
    assert attacked.changed.all()
    assert not attacked.success.all()
    assert (attacked.images - images).abs().amax((1, 2, 3)).min() > 0.9e-3


def test_images_are_attacked_in_parts_that_fit_into_memory(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hopskipjump, "MEMORY", 8 * hopskipjump.MOST_PROBES * images[0].numel())
    asked = Wrapped(network)
    attack(asked, images, predict(network, images), AttackSpec("hopskipjump", eps=1e-4, queries=10))
    assert [size for size, *_ in asked.asked][3:-1] == [8] * 10 + [8] * 10 + [4] * 10


def test_restarts_go_on_with_what_stands(network: nn.Module, images: Tensor) -> None:
    labels = predict(network, images)
    once, thrice = (
        attack(network, images, labels, AttackSpec("hopskipjump", eps=0.08, queries=100, restarts=restarts))
        for restarts in (1, 3)
    )
    assert torch.equal(thrice.images[once.success], once.images[once.success])
    assert once.success.sum() < thrice.success.sum()


def test_without_a_point_of_another_class_images_come_back_unchanged() -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0]).repeat(len(images), 1)

    images = torch.rand(4, 3, 6, 6)
    attacked = attack(Constant(), images, torch.zeros(4, dtype=torch.int64), AttackSpec("hopskipjump", queries=10))
    assert torch.equal(attacked.images, images)
    assert not attacked.success.any()


def test_a_network_that_changes_its_mind_is_asked_to_the_end_of_the_budget(network: nn.Module, images: Tensor) -> None:
    dice = Wrapped(network, "dice")
    labels = predict(network, images)
    attacked = attack(dice, images, labels, AttackSpec("hopskipjump", eps=1e-4, queries=80))
    assert len(dice.asked) == ASKED + 1 + 80 + 1
    assert (attacked.images - images).abs().max() <= 1e-4 + 1e-6


def test_the_networks_own_complaint_is_heard(images: Tensor) -> None:
    class Complains(Wrapped):
        """Has enough after some questions."""

        def forward(self, images: Tensor) -> Tensor:
            if len(self.asked) == 10:
                raise UserError("no such images")
            return super().forward(images)

    network = small_cnn(nn.Tanh)
    with pytest.raises(UserError, match="no such images"):
        attack(Complains(network), images, predict(network, images), AttackSpec("hopskipjump"))


def test_an_image_that_happens_to_be_wrong_is_no_start_of_its_own() -> None:
    noise = torch.rand(48, 1, 4, 4) * 0.2
    images = 0.5 + noise - noise.mean((1, 2, 3), keepdim=True)  # all of one brightness, which is all that the network sees
    start, exists = hopskipjump._starts(Wavering(), images, torch.zeros(48, dtype=torch.int64))
    assert exists.all() and ((start - images).flatten(1).abs().amax(1) > 0).all()
