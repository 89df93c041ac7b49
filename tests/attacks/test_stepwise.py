"""Losses, EOT, restarts and the joint attack of the gradient attacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gandefense.attacks.noise import rectangles
from gandefense.attacks.spec import STEPWISE, AttackSpec
from gandefense.attacks.stepwise import BasicIterative
from gandefense.attacks.suite import attack, predict
from gandefense.errors import UserError
from tests.helpers.networks import Linear, small_cnn

EPS = 8 / 255


class Times(nn.Module):
    """A network's logits times a factor."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) * self.factor


@pytest.mark.parametrize("name", STEPWISE)
def test_the_margin_breaks_confident_logits_where_cross_entropy_has_no_gradient(name: str) -> None:
    network, images = small_cnn(nn.Tanh), torch.rand(40, 3, 6, 6)
    labels, confident = predict(network, images), Times(network, 1e5)
    by_margin = attack(confident, images, labels, AttackSpec(name, eps=0.2, loss="margin"))
    assert by_margin.success.float().mean() > 0.7
    assert torch.equal(by_margin.images, attack(network, images, labels, AttackSpec(name, eps=0.2, loss="margin")).images)
    by_entropy = attack(confident, images, labels, AttackSpec(name, eps=0.2))
    assert by_entropy.success.float().mean() < by_margin.success.float().mean() - 0.3


def test_the_margin_is_what_pgd_reaches_against_a_linear_classifier() -> None:
    linear, images, labels = Linear(torch.randn(3, 4, 4)), torch.rand(6, 3, 4, 4) * 0.8 + 0.1, torch.tensor([0, 1, 0, 1, 1, 0])
    push = torch.where(labels == 0, 1.0, -1.0).view(-1, 1, 1, 1) * linear.weight.detach().sign()
    attacked = attack(linear, images, labels, AttackSpec("pgd", eps=EPS, loss="margin")).images
    assert torch.allclose(attacked, images + EPS * push, rtol=0, atol=2e-7)


def test_the_margin_goes_towards_a_random_target_too() -> None:
    class OnePixelAClass(nn.Module):
        """Logit k is pixel k."""

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    images, labels = torch.full((60, 1, 2, 2), 0.5), torch.arange(60) % 4
    spec = AttackSpec("fgsm", eps=0.1, loss="margin", labels="random_target")
    moved = (attack(OnePixelAClass(), images, labels, spec).images - images).flatten(1)
    target = moved.argmax(1)
    assert (target != labels).all()
    assert set(target.tolist()) == {0, 1, 2, 3}
    assert torch.allclose(moved.gather(1, target[:, None]), torch.tensor(0.1))


class NoisyGradient(nn.Module):
    """A linear classifier that always answers the same, and whose gradient has the wrong sign in a third of the pixels."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, images: Tensor) -> Tensor:
        sign = torch.where(torch.rand_like(images) < 1 / 3, -1.0, 1.0)
        return self.linear(images.detach() + sign * (images - images.detach()))


def _right(images: Tensor, attacked: Tensor, linear: Linear) -> float:
    """The share of pixels that moved in the direction that raises the logit of class 1."""
    return ((attacked - images).sign() == linear.weight.detach().sign()).float().mean().item()


# Of 1 gradient two thirds of the signs are right; the majority of 25 is right with probability 0.958 (binomial). The random
# labels' margin equals cross-entropy here up to a factor per image.
@pytest.mark.parametrize(("eot", "share"), [(1, 0.667), (25, 0.958)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_averaged_gradients_see_through_random_signs(eot: int, share: float, loss: str) -> None:
    linear = Linear(torch.randn(3, 8, 8))
    images, labels = torch.rand(50, 3, 8, 8) * 0.8 + 0.1, torch.zeros(50, dtype=torch.int64)
    attacked = attack(NoisyGradient(linear), images, labels, AttackSpec("fgsm", eps=EPS, loss=loss, eot=eot)).images
    assert _right(images, attacked, linear) == pytest.approx(share, abs=0.02)


def test_eot_breaks_what_single_gradients_do_not() -> None:
    linear = Linear(torch.randn(3, 8, 8))
    images = torch.rand(60, 3, 8, 8) * 0.6 + 0.2
    labels = predict(linear, images)
    with torch.no_grad():
        needed = linear(images)[:, 1].abs() / linear.weight.abs().sum()
    few = needed < needed.median()
    spec = AttackSpec("bim", eps=1.3 * needed[few].max().item(), steps=2, step_size=1.0)
    fell = {
        eot: attack(NoisyGradient(linear), images, labels, replace(spec, eot=eot)).success[few].float().mean() for eot in (1, 40)
    }
    assert fell[40] > 0.95
    assert fell[1] < fell[40] - 0.05


def test_eot_asks_for_so_many_gradients_at_every_step() -> None:
    network, images, passes = small_cnn(nn.Tanh), torch.rand(4, 3, 6, 6), []
    labels = predict(network, images)
    network.register_forward_hook(lambda module, inputs, output: passes.append(inputs[0].requires_grad))
    attack(network, images, labels, AttackSpec("pgd", steps=3, eot=5))
    assert passes == [True] * 15 + [False], "and one pass for the success"


def test_a_deterministic_network_is_attacked_alike_with_and_without_eot() -> None:
    network, images = small_cnn(nn.Tanh), torch.rand(8, 3, 6, 6)
    labels = predict(network, images)
    for loss in ("ce", "margin"):
        one, four = (attack(network, images, labels, AttackSpec("pgd", loss=loss, eot=eot)).images for eot in (1, 4))
        assert torch.equal(one, four)


def test_restarts_attack_only_what_still_stands() -> None:
    network, images, sizes = small_cnn(nn.Tanh), torch.rand(200, 3, 6, 6), []
    labels = predict(network, images)
    network.register_forward_hook(lambda module, inputs, output: sizes.append((inputs[0].requires_grad, len(output))))
    attack(network, images, labels, AttackSpec("ffgsm", eps=0.05, restarts=4))
    attacked = [size for gradient, size in sizes if gradient]
    assert len(attacked) == 4
    assert attacked[0] == 200
    assert attacked[0] > attacked[1] > attacked[2] >= attacked[3] > 0
    assert [size for gradient, size in sizes if not gradient] == [*attacked[:3], 200], "one look after each, and the success"


def test_a_start_does_not_depend_on_which_other_images_stand() -> None:
    network, images = small_cnn(nn.Tanh), torch.rand(60, 3, 6, 6)
    labels = predict(network, images)
    spec = AttackSpec("pgd", eps=0.05, steps=1, restarts=3, step_size=1e-6)
    whole = attack(network, images, labels, spec)
    fallen = torch.where(torch.arange(60) < 30, (labels + 1) % 4, labels)  # half of the images need no second start
    half = attack(network, images, fallen, spec)
    stood = ~whole.success[30:]
    assert stood.sum() > 5
    assert torch.allclose(half.images[30:][stood], whole.images[30:][stood], rtol=0, atol=3e-6)


class Guarded(nn.Module):
    """Class 1 where a·x > 0; the last column is the detector's, positive where b·x > 0.

    Of the pixels that raise a·x the first half raise b·x too, so that an attack that heeds the class alone is detected.
    """

    def __init__(self, shape: tuple[int, int, int] = (1, 4, 4)) -> None:
        super().__init__()
        self.a = torch.ones(shape)
        self.b = torch.ones(shape)
        self.b[:, shape[1] // 2 :] = 0

    def forward(self, images: Tensor) -> Tensor:
        score = (self.a * (images - 0.5)).flatten(1).sum(1)
        seen = (self.b * (images - 0.5)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score, seen], dim=1)


class Unguarded(Guarded):
    """The same without its detector."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, :2]


@pytest.fixture
def grey() -> Tensor:
    """Images of class 0 that the detector passes: a·x about -0.3, b·x about -0.15."""
    return 0.5 - 0.3 / 16 + 0.01 * (torch.rand(30, 1, 4, 4) - 0.5)


@pytest.mark.parametrize("name", ["bim", "pgd", "mim"])
def test_the_joint_attack_evades_a_detector_that_catches_the_plain_one(name: str, grey: Tensor) -> None:
    labels = torch.zeros(30, dtype=torch.int64)
    spec = AttackSpec(name, eps=0.1)  # moves a·x by 1.6 and b·x by 0.8
    plain = attack(Unguarded(), grey, labels, spec)
    assert plain.success.all(), "the class falls either way"
    with torch.no_grad():
        assert (Guarded()(plain.images)[:, 2] > 0).all(), "and the detector sees it"
    joint = attack(Guarded(), grey, labels, replace(spec, loss="joint"))
    assert joint.success.all()
    with torch.no_grad():
        outputs = Guarded()(joint.images)
    assert (outputs[:, 1] > outputs[:, 0]).all()
    assert (outputs[:, 2] <= 0).all()


def test_joint_success_is_a_wrong_class_and_no_detection(grey: Tensor) -> None:
    class Suspicious(Guarded):
        """Detects everything."""

        def forward(self, images: Tensor) -> Tensor:
            outputs = super().forward(images)
            return torch.cat([outputs[:, :2], outputs[:, 2:].detach() * 0 + 1e-3], dim=1)

    labels = torch.zeros(30, dtype=torch.int64)
    caught = attack(Suspicious(), grey, labels, AttackSpec("pgd", eps=0.1, loss="joint"))
    assert not caught.success.any()
    assert (predict(Unguarded(), caught.images) == 1).all()
    nothing = attack(Guarded(), grey, labels, AttackSpec("pgd", eps=0, loss="joint"))
    assert not nothing.success.any()
    wrong = attack(Guarded(), grey, 1 - labels, AttackSpec("pgd", eps=0, loss="joint"))
    assert wrong.success.all(), "the label is not theirs, and nothing is detected"


def test_the_joint_attack_keeps_a_success_that_later_steps_lose(grey: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.zeros(30, dtype=torch.int64)
    last, run = [], BasicIterative.run

    def noted(self: BasicIterative, *words: object, **options: object) -> Tensor:
        last.append(run(self, *words, **options))
        return last[-1]

    monkeypatch.setattr(BasicIterative, "run", noted)
    held, kept = [], []
    for steps in range(1, 13):
        spec = AttackSpec("bim", eps=0.1, steps=steps, step_size=0.04, loss="joint")
        kept.append(attack(Guarded(), grey, labels, spec).success)
        held.append((predict(Unguarded(), last[-1]) != labels) & (Guarded()(last[-1])[:, 2] <= 0))
    held, kept = torch.stack(held), torch.stack(kept)
    assert (held[:-1] & ~held[1:]).any(), "a further step may undo a success"
    assert torch.equal(kept, held.cummax(0).values.bool()), "which is kept nevertheless"


def test_joint_restarts_go_on_where_an_image_is_wrong_but_detected(grey: Tensor) -> None:
    labels, sizes = torch.zeros(30, dtype=torch.int64), []
    network = Guarded()
    network.register_forward_hook(lambda module, inputs, output: sizes.append((inputs[0].requires_grad, len(output))))
    spec = AttackSpec("fgsm", eps=0.1, loss="joint", restarts=3)
    attacked = attack(network, grey, labels, spec)
    assert [size for gradient, size in sizes if gradient] == [30, 30, 30]
    assert not attacked.success.any(), "one step moves every pixel up"
    assert (predict(Unguarded(), attacked.images) == 1).all()


def test_pgd_within_a_ball_against_a_linear_classifier_goes_along_its_weight_as_far_as_it_may() -> None:
    linear, images, labels = Linear(torch.randn(3, 4, 4)), torch.rand(6, 3, 4, 4) * 0.4 + 0.3, torch.tensor([0, 1, 0, 1, 1, 0])
    push = torch.where(labels == 0, 1.0, -1.0).view(-1, 1, 1, 1) * linear.weight.detach() / linear.weight.detach().norm()
    attacked = attack(linear, images, labels, AttackSpec("pgd-l2", eps=0.2, steps=40, loss="margin")).images
    assert torch.allclose(attacked, images + 0.2 * push, rtol=0, atol=2e-3)
    assert (attacked - images).flatten(1).norm(dim=1).max() <= 0.2 + 1e-6


def test_pgd_within_a_ball_goes_towards_a_random_target() -> None:
    network, images = small_cnn(nn.Tanh), torch.rand(40, 3, 6, 6)
    labels = predict(network, images)
    spec = AttackSpec("pgd-l2", eps=2.0, labels="random_target")
    reached = predict(network, attack(network, images, labels, spec).images)
    assert (reached != labels).float().mean() > 0.9
    assert len(set(reached.tolist())) > 2, "an untargeted attack goes to the nearest class, a targeted one to any"


def test_starts_within_a_ball_fill_it_and_do_not_depend_on_which_other_images_stand() -> None:
    network, images = small_cnn(nn.Tanh), torch.full((60, 3, 6, 6), 0.5)
    labels = predict(network, images)
    spec = AttackSpec("pgd-l2", eps=0.3, steps=1, restarts=2, step_size=1e-6)
    whole = attack(network, images, labels, spec).images
    lengths = (whole - images).flatten(1).norm(dim=1)
    assert 0.9 * 0.3 < lengths.median() <= 0.3 + 1e-6, "in 108 dimensions nearly all of a ball lies at its edge"
    few = attack(network, images, torch.where(torch.arange(60) < 30, (labels + 1) % 4, labels), spec).images
    assert torch.allclose(few[30:], whole[30:], rtol=0, atol=1e-6)


def test_pgd_within_a_ball_goes_as_far_where_confidence_leaves_a_tiny_gradient() -> None:
    linear, images = Linear(torch.randn(3, 4, 4)), torch.rand(60, 3, 4, 4) * 0.4 + 0.3
    images = images[predict(linear, images) == 0]  # the class whose loss has a gradient of e⁻⁶⁰ there, and not of 1 − 1
    with torch.no_grad():
        linear.weight.mul_(60 / linear(images)[:, 1].abs().max())
    attacked = attack(linear, images, predict(linear, images), AttackSpec("pgd-l2", eps=0.2, steps=10)).images
    assert len(images) > 10
    assert ((attacked - images) * linear.weight.detach() / linear.weight.detach().norm()).sum((1, 2, 3)).min() > 0.18


class _Root(nn.Module):
    """Its gradient is 0 · inf where a channel is all black."""

    def forward(self, images: Tensor) -> Tensor:
        return images.square().sum((2, 3)).sqrt()


@pytest.mark.parametrize("name", ["fgsm", "bim", "mim"])
def test_a_gradient_that_is_no_number_ends_the_attack(name: str) -> None:
    images = torch.rand(3, 3, 4, 4)
    images[1] = 0
    with pytest.raises(UserError, match="NaN or infinite entries, on 1 of"):
        attack(_Root(), images, torch.tensor([0, 0, 0]), AttackSpec(name, steps=1, labels="random_target"))


def test_logits_that_are_no_numbers_have_no_class() -> None:
    with pytest.raises(UserError, match="logits contain NaN"):
        predict(lambda images: images.mean((2, 3)) / 0 * 0, torch.rand(2, 3, 4, 4))


def test_pgd_coarse_is_constant_on_rectangles_and_its_steps_follow_the_gradient() -> None:
    """Linear logits, so that the best perturbation is the sign of the weights summed over a rectangle."""
    torch.manual_seed(0)
    weights = torch.randn(2, 3 * 8 * 8)

    class Sloped(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) @ weights.T

    images, labels = torch.full((32, 3, 8, 8), 0.5), torch.zeros(32, dtype=torch.long)
    attacked = attack(Sloped(), images, labels, AttackSpec("pgd-coarse", eps=0.1, steps=20), seed=3).images
    torch.manual_seed(3)
    grid = rectangles(images.shape, images.device)  # the attack's first draw
    slope = (weights[1] - weights[0]).view(3, 8, 8)
    for image, numbers in zip(attacked - images, grid, strict=True):
        for number in numbers.unique():
            inside = numbers == number
            for channel in range(3):
                values = image[channel][inside]
                assert torch.allclose(values, values[0].expand_as(values))
                assert values[0].item() == pytest.approx(0.1 * slope[channel][inside].sum().sign().item(), abs=1e-5)


def test_pgd_coarse_is_stronger_than_blocks_and_weaker_than_pgd() -> None:
    torch.manual_seed(0)
    network, images = small_cnn(nn.Tanh), torch.rand(64, 3, 6, 6)
    labels = predict(network, images)
    found = {
        name: attack(network, images, labels, AttackSpec(name, eps=24 / 255, steps=10)).success.float().mean().item()
        for name in ("blocks[0,1]", "pgd-coarse", "pgd")
    }
    assert found["blocks[0,1]"] < found["pgd-coarse"] < found["pgd"]
