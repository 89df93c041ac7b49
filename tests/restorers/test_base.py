"""What a defence looks like to its user and to its attacker."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gandefense.attacks.threats import VIEWS
from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier, IdentityRestorer, Restoration, Restorer
from tests.helpers.networks import Linear


class Halving(Restorer):
    """Halves every pixel; the gradient through it is ½, or ¼ where a view is asked for that holds half of it constant."""

    def forward(self, images: Tensor) -> Restoration:
        halved = images / 2
        score = halved.flatten(1).mean(1)
        return Restoration(halved, score, score > 0.25, torch.full_like(score, torch.nan), {"halved": halved})

    def scored(self, images: Tensor, view: str) -> tuple[Tensor, Tensor]:
        halved = images / 4 + images.detach() / 4 if view == "detached" else images / 2
        return halved, halved.flatten(1).mean(1)


@pytest.fixture
def classifier() -> Linear:
    return Linear(torch.randn(3, 4, 4))


@pytest.fixture
def defended(classifier: Linear) -> DefendedClassifier:
    return DefendedClassifier(Halving(), classifier, channels=3)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 4, 4)


def _gradient(network: nn.Module, images: Tensor) -> Tensor:
    point = images.clone().requires_grad_(True)
    return torch.autograd.grad(network(point)[:, 1].sum(), point)[0]


@pytest.mark.parametrize(
    ("view", "factor", "gradient"),
    [
        ("oblivious", 1, 1),
        ("straight_through", 0.5, 1),
        ("detached", 0.5, 0.25),
        ("exact", 0.5, 0.5),
        ("smooth", 0.5, 0.5),
    ],
)
def test_views(
    defended: DefendedClassifier, classifier: Linear, images: Tensor, view: str, factor: float, gradient: float
) -> None:
    """What the classifier sees is `factor` times the image; the gradient is `gradient` times the classifier's own."""
    network = defended.view(view)
    assert isinstance(network, nn.Module)
    assert torch.allclose(network(images), classifier(images * factor), atol=1e-6)
    assert torch.allclose(_gradient(network, images), gradient * classifier.weight.expand_as(images), atol=1e-6)


@pytest.mark.parametrize(("view", "factor"), [("straight_through", 0.25), ("detached", 0.25), ("exact", 0.5)])
def test_a_view_with_a_detector_has_its_score_in_a_last_column(
    defended: DefendedClassifier, classifier: Linear, images: Tensor, view: str, factor: float
) -> None:
    threshold, spread = 0.2, 0.05
    outputs = defended.view(view, detector=(threshold, spread))(images)
    assert torch.allclose(outputs[:, :-1], classifier(images / 2))
    assert torch.allclose(outputs[:, -1], (images.flatten(1).mean(1) / 2 - threshold) / spread)
    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(defended.view(view, detector=(threshold, spread))(point)[:, -1].sum(), point)
    assert torch.allclose(gradient, torch.full_like(images, factor / (images[0].numel() * spread)))


def test_the_smooth_view_tells_the_real_score(classifier: Linear, images: Tensor) -> None:
    """Only its gradient is that of the softened pass; otherwise a success against the detector would be none."""

    class Softened(Halving):
        def scored(self, images: Tensor, view: str) -> tuple[Tensor, Tensor]:
            restored, score = super().scored(images, view)
            return restored, 3 * score + 1

    view = DefendedClassifier(Softened(), classifier).view("smooth", detector=(0.2, 0.05))
    assert torch.allclose(view(images)[:, -1], (images.flatten(1).mean(1) / 2 - 0.2) / 0.05)
    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(view(point)[:, -1].sum(), point)
    assert torch.allclose(gradient, torch.full_like(images, 1.5 / (images[0].numel() * 0.05)))


def test_every_view_is_tested_above_and_an_unknown_one_is_refused(defended: DefendedClassifier) -> None:
    assert set(VIEWS) == {"oblivious", "straight_through", "detached", "exact", "smooth"}
    with pytest.raises(UserError, match=r"unknown view 'exactly'; known: .*exact"):
        defended.view("exactly")


def test_views_start_in_eval_mode_and_share_the_networks(defended: DefendedClassifier, classifier: Linear) -> None:
    network = defended.view("exact")
    assert not network.training
    assert any(parameter is classifier.weight for parameter in network.parameters())


def test_oblivious_never_runs_the_restorer(classifier: Linear, images: Tensor) -> None:
    class Forbidden(Restorer):
        def forward(self, images: Tensor) -> Restoration:
            raise AssertionError("the restorer ran")

    network = DefendedClassifier(Forbidden(), classifier).view("oblivious")
    assert torch.equal(network(images), classifier(images))
    assert torch.allclose(_gradient(network, images), classifier.weight.expand_as(images))


def test_a_restorer_without_views_of_its_own_is_differentiated_as_it_is(classifier: Linear, images: Tensor) -> None:
    class Plain(Restorer):
        def forward(self, images: Tensor) -> Restoration:
            nothing = images.new_zeros(len(images))
            return Restoration(images / 2, nothing, nothing.bool(), nothing, {})

    defended = DefendedClassifier(Plain(), classifier)
    for view in ("detached", "exact", "smooth"):
        assert torch.allclose(_gradient(defended.view(view), images), classifier.weight.expand_as(images) / 2)


def test_the_defended_classifier_has_the_gradient_of_the_exact_view(defended: DefendedClassifier, images: Tensor) -> None:
    assert torch.equal(_gradient(defended, images), _gradient(defended.view("exact"), images))


def test_the_same_logits_with_and_without_gradients(defended: DefendedClassifier, classifier: Linear, images: Tensor) -> None:
    with torch.no_grad():
        silent = defended(images)
    assert not silent.requires_grad
    assert torch.allclose(silent, classifier(images / 2))
    assert torch.allclose(silent, defended(images.clone().requires_grad_(True)))


def test_restore_says_everything_without_gradients(defended: DefendedClassifier, images: Tensor) -> None:
    restoration = defended.restore(images.clone().requires_grad_(True))
    assert torch.equal(restoration.images, images / 2)
    assert not restoration.images.requires_grad
    assert (restoration.score.shape, restoration.flagged.shape, restoration.flagged.dtype) == ((5,), (5,), torch.bool)
    assert torch.equal(restoration.maps["halved"], images / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[0], "expected images of shape"),
        (lambda images: images[:, :1], "expected images with 3 channel"),
        (lambda images: images * 255, "must lie in"),
        (lambda images: (images * 255).byte(), "expected float images"),
        (lambda images: images / 0 * 0, "NaN or infinite"),
    ],
)
def test_bad_images_are_refused(defended: DefendedClassifier, images: Tensor, change: object, message: str) -> None:
    for use in (defended, defended.restore):
        with pytest.raises(UserError, match=message):
            use(change(images))
    with pytest.raises(ValueError, match=message):
        defended(change(images))


def test_the_identity_restorer(classifier: Linear, images: Tensor) -> None:
    restoration = IdentityRestorer()(images)
    assert torch.equal(restoration.images, images)
    assert not restoration.flagged.any()
    assert restoration.level.isnan().all()
    defended = DefendedClassifier(IdentityRestorer(), classifier)
    for view in VIEWS:
        assert torch.allclose(_gradient(defended.view(view), images), classifier.weight.expand_as(images))


def test_a_defended_classifier_starts_in_eval_mode() -> None:
    classifier = nn.Sequential(nn.Dropout(), nn.Flatten()).train()
    assert not any(module.training for module in DefendedClassifier(IdentityRestorer(), classifier).modules())
