"""The GAN defence's loop: detect → clean → regenerate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gandefense.attacks.threats import VIEWS
from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.gan import SOFTNESS, GANNetworks, GANRestorer, Judged, Round, from_weights
from tests.helpers.networks import small_cnn

SIZE = 6
NETWORK = {"channels": 3, "size": 32, "ismn": "full", "width": 8, "norm": "group"}


class Dimming(nn.Module):
    """Stands for GANNetworks: an image's attack logit is its mean brightness; cleaning and regenerating dim it.

    With brightness m, cleaned = image × `cleaning` and regenerated = image × `dimming`. `seen` keeps the number of
    images in each call.
    """

    def __init__(self, *, cleaning: float = 0.9, dimming: float = 0.5) -> None:
        super().__init__()
        self.cleaning, self.dimming = cleaning, dimming
        self.seen: list[tuple[str, int]] = []

    def judge(self, images: Tensor) -> Judged:
        self.seen.append(("judge", len(images)))
        logit, sparsity = images.mean((1, 2, 3)), images.mean(1, keepdim=True)
        return Judged(images * self.cleaning, images, logit, images.amax((1, 2, 3)), sparsity)

    def regenerate(self, judged: Judged, *, constant_level: bool = False) -> Tensor:
        self.seen.append(("regenerate", len(judged.logit)))
        return judged.code * self.dimming  # here the code is the image


class Smooth(nn.Module):
    """Stands for GANNetworks in float64, with derivatives everywhere and a level that conditions what is regenerated."""

    def __init__(self, *, logit: float) -> None:
        super().__init__()
        self.clean = nn.Conv2d(3, 3, 3, padding=1)
        self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.bias = logit
        self.double()

    def forward(self, images: Tensor, *, constant_level: bool = False) -> Round:
        judged = self.judge(images)
        return Round(judged.cleaned, self.regenerate(judged, constant_level=constant_level), *judged[2:])

    def judge(self, images: Tensor) -> Judged:
        cleaned = torch.sigmoid(4 * (images - 0.5) + self.clean(images))
        logit = self.bias + 0.1 * torch.tanh(images.flatten(1).sum(1))
        level = (images - cleaned).square().flatten(1).mean(1).sqrt()
        return Judged(cleaned, images, logit, level, cleaned.mean(1, keepdim=True))

    def regenerate(self, judged: Judged, *, constant_level: bool = False) -> Tensor:
        used = judged.level.detach() if constant_level else judged.level
        return torch.sigmoid(3 * (judged.cleaned - 0.5) + self.again(judged.cleaned) + 6 * used.view(-1, 1, 1, 1))


def _flat(*brightness: float) -> Tensor:
    """Images of one brightness each."""
    return torch.tensor(brightness).view(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE).clone()


def _restorer(networks: nn.Module, **options: float) -> GANRestorer:
    return GANRestorer(networks, **{"threshold": 0.2, "rounds": 3, "tolerance": 10.0, **options}).eval()


def test_an_unflagged_image_leaves_bit_for_bit_and_a_flagged_one_is_cleaned() -> None:
    images = torch.rand(6, 3, SIZE, SIZE) * torch.tensor([0.1, 1, 0.1, 1, 1, 0.1]).view(-1, 1, 1, 1)
    restoration = _restorer(Dimming(dimming=0.25))(images)
    assert restoration.flagged.tolist() == [False, True, False, True, True, False]
    assert torch.equal(restoration.images[~restoration.flagged], images[~restoration.flagged])
    assert torch.equal(restoration.images[restoration.flagged], images[restoration.flagged] * 0.25)
    assert torch.equal(restoration.score, images.mean((1, 2, 3)))
    assert torch.equal(restoration.level, images.amax((1, 2, 3)))


def test_a_score_on_the_threshold_is_not_flagged() -> None:
    restoration = _restorer(Dimming(), threshold=0.5)(_flat(0.5, 0.5625))
    assert restoration.flagged.tolist() == [False, True]


def test_finished_images_leave_the_batch_and_the_order_is_kept() -> None:
    networks = Dimming()
    images = _flat(0.1, 0.9, 0.3, 0.5, 0.15, 0.7)
    restoration = _restorer(networks, rounds=4)(images)
    # 0.3 passes after one round; 0.5 and 0.7 after two; 0.9 after three (0.1125)
    assert torch.allclose(restoration.images, _flat(0.1, 0.1125, 0.15, 0.125, 0.15, 0.175))
    steps = [("judge", 6), ("regenerate", 4), ("judge", 4), ("regenerate", 3), ("judge", 3), ("regenerate", 1), ("judge", 1)]
    assert networks.seen == steps


@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
def test_the_round_limit_is_respected(rounds: int) -> None:
    networks = Dimming(dimming=0.9)
    restoration = _restorer(networks, rounds=rounds, threshold=0.0)(_flat(0.8, 0.6))
    assert torch.allclose(restoration.images, _flat(0.8, 0.6) * 0.9**rounds)
    assert networks.seen.count(("regenerate", 2)) == rounds
    assert [name for name in restoration.maps if name.startswith("round_")] == [f"round_{i + 1}" for i in range(rounds)]


@pytest.mark.parametrize(
    ("tolerance", "brightness"),
    [
        (0.5, 0.25),  # cleaned 0.45, regenerated 0.25: they agree at once
        (0.15, 0.125),  # 0.25 and 0.125 agree, 0.45 and 0.25 do not
        (0.08, 0.0625),
        (0.0, 0.5 / 2**5),  # never: the round limit ends it
    ],
)
def test_an_image_that_passes_goes_on_until_two_versions_agree(tolerance: float, brightness: float) -> None:
    restoration = _restorer(Dimming(), threshold=0.4, rounds=5, tolerance=tolerance)(_flat(0.5))
    assert torch.allclose(restoration.images, _flat(brightness))


def test_maps_hold_every_round_and_what_was_removed() -> None:
    images = _flat(0.1, 0.9, 0.3)
    restoration = _restorer(Dimming())(images)
    assert set(restoration.maps) == {"sparsity", "cleaned", "round_1", "round_2", "round_3", "residual"}
    assert torch.allclose(restoration.maps["round_1"], _flat(0.1, 0.45, 0.15))
    assert torch.allclose(restoration.maps["round_2"], _flat(0.1, 0.225, 0.15))
    assert torch.allclose(restoration.maps["round_3"], _flat(0.1, 0.1125, 0.15))
    assert torch.equal(restoration.images, restoration.maps["round_3"])
    assert torch.equal(restoration.maps["residual"], images - restoration.images)
    assert torch.allclose(restoration.maps["cleaned"], images * 0.9)
    assert restoration.maps["sparsity"].shape == (3, 1, SIZE, SIZE)


@pytest.mark.parametrize("view", [None, "detached", "exact"])
def test_a_batch_with_nothing_flagged_comes_back_as_it_is(view: str | None) -> None:
    networks, images = Dimming(), _flat(0.1, 0.05, 0.15)
    restorer = _restorer(networks)
    restored = restorer(images).images if view is None else restorer.differentiable(images, view)
    assert torch.equal(restored, images)
    assert networks.seen == [("judge", 3)]


@pytest.mark.parametrize("brightness", [0.1, 0.3, 0.9])
def test_a_batch_of_one_is_restored_like_a_part_of_a_larger_one(brightness: float) -> None:
    alone = _restorer(Dimming())(_flat(brightness))
    together = _restorer(Dimming())(_flat(0.1, brightness, 0.8))
    assert torch.equal(alone.images, together.images[1:2])
    assert alone.flagged.shape == alone.score.shape == (1,)


def test_an_empty_batch_is_an_empty_restoration() -> None:
    restoration = _restorer(Dimming())(torch.zeros(0, 3, SIZE, SIZE))
    assert restoration.images.shape == (0, 3, SIZE, SIZE)
    assert restoration.flagged.shape == (0,)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE, dtype=torch.float64) * 0.6 + 0.2


def _gradient(restore: Callable[[Tensor], Tensor], images: Tensor, weights: Tensor) -> Tensor:
    point = images.clone().requires_grad_(True)
    return torch.autograd.grad((restore(point) * weights).sum(), point)[0]


def _slope(restore: Callable[[Tensor], Tensor], images: Tensor, along: Tensor, weights: Tensor, step: float) -> float:
    with torch.no_grad():
        return (((restore(images + step * along) - restore(images - step * along)) * weights).sum() / (2 * step)).item()


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_exact_view_agrees_with_finite_differences_through_all_rounds(images: Tensor, rounds: int) -> None:
    """The logit is far above the threshold, so that no decision changes in the neighbourhood."""
    restorer = _restorer(Smooth(logit=10.0), threshold=5.0, rounds=rounds)
    weights = torch.randn_like(images)
    exact, detached = (
        _gradient(lambda x, v=view: restorer.differentiable(x, v), images, weights) for view in ("exact", "detached")
    )
    for _ in range(5):
        along = torch.randn_like(images)
        measured = _slope(lambda x: restorer(x).images, images, along, weights, 1e-6)
        assert (exact * along).sum().item() == pytest.approx(measured, rel=1e-5)
    assert not torch.allclose(detached, exact, rtol=1e-2)


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_detached_view_holds_the_level_of_every_round_constant(images: Tensor, rounds: int) -> None:
    networks, weights = Smooth(logit=10.0), torch.randn(3, 3, SIZE, SIZE, dtype=torch.float64)
    restorer = _restorer(networks, threshold=5.0, rounds=rounds)

    def at_constant_level(point: Tensor) -> Tensor:
        for _ in range(rounds):
            level = networks(point).level.detach()
            cleaned = networks(point).cleaned
            point = torch.sigmoid(3 * (cleaned - 0.5) + networks.again(cleaned) + 6 * level.view(-1, 1, 1, 1))
        return point

    expected = _gradient(at_constant_level, images, weights)
    assert torch.allclose(_gradient(lambda x: restorer.differentiable(x, "detached"), images, weights), expected)


@pytest.mark.parametrize("view", ["detached", "exact"])
def test_hard_decisions_give_an_unflagged_image_the_identitys_gradient(images: Tensor, view: str) -> None:
    restorer, weights = _restorer(Smooth(logit=0.0), threshold=5.0), torch.randn_like(images)
    assert torch.equal(_gradient(lambda x: restorer.differentiable(x, view), images, weights), weights)


def test_the_smooth_view_differentiates_the_decision_of_an_unflagged_image(images: Tensor) -> None:
    networks, weights = Smooth(logit=0.0), torch.randn_like(images)
    restorer = _restorer(networks, threshold=1.0)

    def smooth(point: Tensor) -> Tensor:
        return restorer.differentiable(point, "smooth")

    assert not restorer(images).flagged.any()
    gradient = _gradient(smooth, images, weights)
    assert not torch.allclose(gradient, weights, rtol=1e-2)
    along = torch.randn_like(images)
    assert (gradient * along).sum().item() == pytest.approx(_slope(smooth, images, along, weights, 1e-6), rel=1e-5)
    made = networks(images)
    share = torch.sigmoid((made.logit - 1.0) / SOFTNESS).view(-1, 1, 1, 1)
    assert torch.allclose(smooth(images), (1 - share) * images + share * made.regenerated)


@pytest.fixture(scope="module")
def trained() -> GANNetworks:
    """The real networks with output layers that are not zero, as after a training."""
    torch.manual_seed(0)
    networks = GANNetworks(**NETWORK).eval()
    for layer in (networks.ismn.out, networks.generator.out):
        nn.init.normal_(layer.weight, std=0.02)
    return networks


def test_the_real_networks_hold_the_level_constant_when_asked(trained: GANNetworks) -> None:
    """Nothing but the level is perturbed: its share of the gradient is the difference of the two."""
    images = torch.rand(2, 3, 32, 32) * 0.4 + 0.3
    weights = torch.randn_like(images)
    level = trained.perturbation.head[-1].weight.data[1]
    free, held = (_gradient(lambda x, c=c: trained(x, constant_level=c).regenerated, images, weights) for c in (False, True))
    assert not torch.allclose(free, held, rtol=1e-3, atol=1e-9)
    before = level.clone()
    try:
        level.zero_()  # a level that does not depend on the image has no gradient to hold back
        free, held = (_gradient(lambda x, c=c: trained(x, constant_level=c).regenerated, images, weights) for c in (False, True))
    finally:
        level.copy_(before)
    assert torch.allclose(free, held, rtol=1e-4, atol=1e-7)


def _threshold(networks: GANNetworks, images: Tensor, which: str) -> float:
    """A threshold under all logits, over all, or between two of them."""
    with torch.no_grad():
        logits = networks.detect(images).sort().values
    return {"all": logits[0] - 1, "none": logits[-1] + 1, "some": (logits[1] + logits[2]) / 2}[which].item()


@pytest.mark.parametrize(("which", "count"), [("all", 4), ("some", 2), ("none", 0)])
def test_the_real_networks_in_the_loop(trained: GANNetworks, which: str, count: int) -> None:
    images = torch.rand(4, 3, 32, 32)
    restorer = GANRestorer(trained, threshold=_threshold(trained, images, which), tolerance=0.0).eval()
    with torch.no_grad():
        restoration = restorer(images)
    assert restoration.flagged.sum() == count
    assert torch.equal(restoration.flagged, restoration.score > restorer.threshold)
    changed = (restoration.images != images).flatten(1).any(1)
    assert torch.equal(changed, restoration.flagged)
    assert restoration.images.min() >= 0
    assert restoration.images.max() <= 1
    assert (restoration.level >= 0).all()
    with torch.no_grad():
        assert torch.allclose(trained.detect(images), restoration.score, atol=1e-6)


def test_the_exact_gradient_of_the_real_networks_agrees_with_finite_differences() -> None:
    """Parts of the networks compute in float32 whatever they are given, hence the large step."""
    torch.manual_seed(1)
    networks = GANNetworks(**NETWORK).eval()
    for layer in (networks.ismn.out, networks.generator.out):
        nn.init.normal_(layer.weight, std=0.02)
    networks.double()
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64) * 0.4 + 0.3
    restorer = GANRestorer(networks, threshold=-100.0, tolerance=0.0).eval()
    weights, along = torch.randn_like(images), torch.randn_like(images)
    gradient = _gradient(lambda x: restorer.differentiable(x, "exact"), images, weights)
    measured = _slope(lambda x: restorer(x).images, images, along, weights, 1e-5)
    assert (gradient * along).sum().item() == pytest.approx(measured, rel=2e-2)
    assert not torch.allclose(gradient, weights, rtol=1e-2)


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_has_a_finite_gradient_and_touches_no_parameter(trained: GANNetworks, view: str) -> None:
    images, classifier = torch.rand(4, 3, 32, 32), small_cnn(nn.ReLU, size=32)
    trained.requires_grad_(True)
    restorer = GANRestorer(trained, threshold=_threshold(trained, images, "some"))
    network = DefendedClassifier(restorer, classifier).view(view)
    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(point)[:, 0].sum(), point)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    assert all(parameter.grad is None for parameter in restorer.parameters())


@pytest.mark.parametrize("view", ["straight_through", "detached", "exact"])
def test_the_hard_views_restore_what_the_defence_restores(trained: GANNetworks, view: str) -> None:
    images, classifier = torch.rand(4, 3, 32, 32), small_cnn(nn.ReLU, size=32)
    restorer = GANRestorer(trained, threshold=_threshold(trained, images, "some"))
    defended = DefendedClassifier(restorer, classifier)
    with torch.no_grad():
        expected = classifier(defended.restore(images).images)
    assert torch.allclose(defended.view(view)(images), expected, atol=1e-5)


def test_from_weights_round_trip(trained: GANNetworks) -> None:
    images = torch.rand(4, 3, 32, 32)
    loop = {"threshold": _threshold(trained, images, "some"), "rounds": 3, "tolerance": 0.01}
    description = {"network": NETWORK, "loop": loop}
    restorer = from_weights(trained.state_dict(), description, nn.Identity(), Path("here")).eval()
    assert (restorer.threshold, restorer.rounds, restorer.tolerance) == (loop["threshold"], 3, 0.01)
    with torch.no_grad():
        assert torch.equal(restorer(images).images, GANRestorer(trained, **loop)(images).images)
    restorer.rounds = 7
    assert loop["rounds"] == 3, "the description is not shared with the restorer"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"channels": 3}}, "description of the network is incomplete"),
        ({"network": None}, "description of the network is incomplete"),
        ({"loop": ...}, "description of the network is incomplete"),
        ({"network": {**NETWORK, "width": 16}}, "does not fit"),
        ({"network": {**NETWORK, "ismn": "half"}}, "unknown ISMN 'half'"),
        ({"loop": {"turns": 2}}, "description of the network is incomplete"),
    ],
)
def test_a_description_that_does_not_fit_is_one_line(trained: GANNetworks, change: dict, message: str) -> None:
    description = {"network": NETWORK, "loop": {"threshold": 0.0}, **change}
    description = {key: value for key, value in description.items() if value is not ...}
    with pytest.raises(UserError, match=message) as caught:
        from_weights(trained.state_dict(), description, nn.Identity(), Path("here"))
    assert "\n" not in str(caught.value)
    assert "here" in str(caught.value) or "unknown" in message
