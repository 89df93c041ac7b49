"""The fused detector: known signals, monotone, differentiable, and read from a file without surprises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.fused_detector import SMALLEST, FusedDetector, Signal, from_description
from gandefense.restorers.gan import GANNetworks, GANRestorer, Judged, from_weights
from gandefense.restorers.signals import jensen_shannon, reconstruction_error
from tests.helpers.networks import small_cnn

NETWORK = {"channels": 3, "size": 32, "ismn": "full", "width": 8, "norm": "group"}
FOUR = [Signal("perturbation", 1.0, 0.5, 2.0), Signal("l1", 1.0, -3.0, 0.5), Signal("jsd", 10.0, -8.0, 1.0)]


def _judged(images: Tensor, by: float = 0.1) -> Judged:
    code = images.flatten(1)[:, :4]
    return Judged((images - by).clamp(0, 1), code, images.mean((1, 2, 3)), images.amax((1, 2, 3)), images[:, :1])


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 32, 32) * 0.5 + 0.25


def test_signals_are_what_their_names_say(images: Tensor) -> None:
    classifier, judged = small_cnn(nn.ReLU, size=32), _judged(images)
    detector = FusedDetector(classifier, [*FOUR, Signal("l2")])
    marks = detector.marks(images, judged)
    assert torch.equal(marks[:, 0], judged.logit)
    assert torch.allclose(marks[:, 1], torch.full((5,), math.log(0.1)), atol=1e-4), "every pixel is off by 0.1"
    before, after = classifier(images), classifier(judged.cleaned)
    assert torch.allclose(marks[:, 2], (jensen_shannon(before / 10, after / 10) + SMALLEST).log(), atol=1e-4)
    assert torch.allclose(marks[:, 3], reconstruction_error(images, judged.cleaned, 2).log(), atol=1e-4)


def test_the_score_is_a_sum_in_units_of_each_signals_spread() -> None:
    detector = FusedDetector(nn.Identity(), FOUR)
    marks = torch.tensor([[2.5, -3.0, -8.0], [0.5, -2.0, -8.0], [0.5, -3.0, -7.5], [0.5, -3.0, -8.0]])
    nothing, one, two, half = (math.log(1 + math.exp(value)) for value in (0.0, 1.0, 2.0, 0.5))
    expected = [one + 2 * nothing, two + 2 * nothing, half + 2 * nothing, 3 * nothing]
    assert detector.fuse(marks).tolist() == pytest.approx(expected, rel=1e-5)
    below = detector.fuse(torch.tensor([[2.5, -100.0, -100.0]])).item()
    assert below == pytest.approx(one, rel=1e-5), "nothing cancels a signal that stands out"
    assert (detector.fuse(marks + torch.rand(4, 3)) >= detector.fuse(marks)).all(), "it falls with no signal"


def test_equal_answers_are_finite_and_have_a_finite_gradient(images: Tensor) -> None:
    """Where nothing is removed error and divergence are 0, whose logarithm is not finite."""
    detector = FusedDetector(small_cnn(nn.ReLU, size=32), FOUR)
    point = images.clone().requires_grad_(True)
    marks = detector.marks(point, _judged(point, by=0.0))
    assert marks.isfinite().all()
    assert torch.autograd.grad(marks.sum(), point)[0].isfinite().all()


@pytest.fixture(scope="module")
def networks() -> GANNetworks:
    torch.manual_seed(0)
    made = GANNetworks(**NETWORK).eval().requires_grad_(False)
    for layer in (made.ismn.out, made.generator.out):
        nn.init.normal_(layer.weight, std=0.02)
    return made


def _restorer(networks: GANNetworks, classifier: nn.Module, images: Tensor) -> GANRestorer:
    """Flags two of five images, by the fused score."""
    detector = FusedDetector(classifier, FOUR)
    with torch.no_grad():
        scores = detector(images, networks.judge(images)).sort().values
    detector.threshold = ((scores[2] + scores[3]) / 2).item()
    return GANRestorer(networks, threshold=1e9, rounds=2, tolerance=1.0, detector=detector).eval()


def test_the_fused_score_decides_who_is_flagged(networks: GANNetworks, images: Tensor) -> None:
    restorer = _restorer(networks, small_cnn(nn.ReLU, size=32), images)
    with torch.no_grad():
        restoration = restorer(images)
        expected = restorer.detector(images, networks.judge(images))
    assert torch.equal(restoration.score, expected)
    assert restoration.flagged.sum() == 2
    assert torch.equal((restoration.images != images).flatten(1).any(1), restoration.flagged)


@pytest.mark.parametrize("view", ["detached", "exact", "smooth"])
def test_an_attacker_may_follow_the_fused_score(networks: GANNetworks, images: Tensor, view: str) -> None:
    classifier = small_cnn(nn.Softplus, size=32).requires_grad_(False)
    restorer = _restorer(networks, classifier, images)
    joint = DefendedClassifier(restorer, classifier).view(view, detector=(restorer.limit, 0.5))
    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(joint(point)[:, -1].sum(), point)
    assert gradient.isfinite().all() and (gradient.abs().amax((1, 2, 3)) > 0).all()
    with torch.no_grad():
        before, after = (restorer.scored(images + step * gradient.sign(), "exact")[1] for step in (0.0, 1e-3))
    assert (after > before).all(), "a small step along it is seen by the detector"


def test_a_file_gives_the_same_detector_again_and_none_without_one(networks: GANNetworks, images: Tensor) -> None:
    classifier = small_cnn(nn.ReLU, size=32)
    restorer = _restorer(networks, classifier, images)
    description = {"network": NETWORK, "loop": {"threshold": 0.25, "rounds": 2, "tolerance": 1.0}}
    plain = from_weights(networks.state_dict(), description, classifier, Path("here")).eval()
    fused = from_weights(
        networks.state_dict(), {**description, "detector": restorer.detector.description()}, classifier, Path("here")
    ).eval()
    assert plain.detector is None and plain.limit == 0.25
    with torch.no_grad():
        assert torch.equal(fused(images).score, restorer(images).score)
        assert torch.equal(plain(images).score, networks.detect(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signals": []}, "here: a detector takes 1 … 16 signals, got 0"),
        ({"signals": [{"kind": "l3"}]}, "here: unknown signal 'l3'; known: perturbation, l1, l2, jsd"),
        ({"signals": [{"kind": ["l1"]}]}, "here: unknown signal"),
        ({"signals": [{"kind": "l1", "spread": 0.0}]}, "spread are above 0"),
        ({"signals": [{"kind": "jsd", "temperature": -1.0}]}, "spread are above 0"),
        ({"signals": [{"kind": "l1", "centre": math.nan}]}, "detector's centre must be a number"),
        ({"signals": [{"kind": "l1", "size": 3}]}, "description of the detector is incomplete"),
        ({"signals": ["l1"]}, "description of the detector is incomplete"),
        ({"threshold": "much"}, "detector's threshold must be a number"),
        ({"threshold": ...}, "description of the detector is incomplete"),
    ],
)
def test_a_bad_description_is_one_line(change: dict[str, Any], message: str) -> None:
    about = {"signals": [{"kind": "l1"}], "threshold": 1.0, **change}
    about = {key: value for key, value in about.items() if value is not ...}
    with pytest.raises(UserError, match=message):
        from_description(about, nn.Identity(), source="here")
    with pytest.raises(UserError, match="incomplete"):
        from_description([about], nn.Identity(), source="here")
