"""Passes and parameters, counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gandefense.evaluation import cost
from gandefense.restorers.base import DefendedClassifier, IdentityRestorer, Restoration, Restorer
from gandefense.restorers.gradient_maps import gradient_maps


class Mapped(Restorer):
    """A restorer with a layer of its own that reads the classifier's gradient maps."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Restoration:
        gradient_maps(self.classifier, images)
        return IdentityRestorer()(images)


@pytest.fixture
def classifier() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 4))


def test_cost_of_gradient_maps(classifier: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "LEAST_SECONDS", 0.0)
    found = cost.measure(DefendedClassifier(Mapped(classifier), classifier), torch.rand(5, 3, 4, 4))
    assert (found["forward_passes"], found["backward_passes"]) == (2, 4)  # maps and prediction; a backward pass a label
    assert found["parameters"] == 3 * 3 + 3, "the classifier's parameters are not the restorer's"
    assert found["classifier_parameters"] == 48 * 4 + 4
    assert found["images_per_second"] > 0 and found["batch_size"] == 5 and found["peak_memory_bytes"] is None


def test_cost_of_no_defence(classifier: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "LEAST_SECONDS", 0.0)
    found = cost.measure(DefendedClassifier(IdentityRestorer(), classifier), torch.rand(2, 3, 4, 4))
    assert (found["forward_passes"], found["backward_passes"], found["parameters"]) == (1, 0, 0)


def test_the_counter_leaves_no_hook(classifier: nn.Module) -> None:
    with cost.counted_passes(classifier) as counts:
        classifier(torch.rand(2, 3, 4, 4))
    classifier(torch.rand(2, 3, 4, 4))
    assert counts == {"forward": 2, "backward": 0} and not classifier._forward_hooks
