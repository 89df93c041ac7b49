"""Evaluations of two classes, of randomised restorers, and of those that leave the range or cut the gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gandefense
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.evaluation import work
from tests.helpers.evaluations import WHITE


def two_classes() -> torch.nn.Module:
    """A classifier of two classes, bright against dark, for attributes such as a face's."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    with torch.no_grad():
        network[1].weight[0], network[1].weight[1] = -0.01, 0.01
        network[1].bias.copy_(torch.tensor([15.36, -15.36]))
    return network


def test_a_binary_attribute_gets_attacks_that_two_classes_allow(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    description = datasets.describe("cifar10")
    monkeypatch.setitem(datasets.DATASETS, "cifar10", replace(description, classes=("dark", "bright")))
    real = datasets.load

    def load(config: DataConfig, split: str, *, seed: int = 0) -> Any:
        data = real(config, split, seed=seed)
        return data._replace(labels=(data.images.float().mean((1, 2, 3)) > 127.5).long())

    monkeypatch.setattr(datasets, "load", load)
    attacks: list[dict[str, Any]] = [
        {"attack": "apgd-ce", "eps": "8/255", "steps": 3},
        {"attack": "fab", "eps": "8/255", "steps": 3},
    ]
    attacks += [{"attack": "autoattack", "eps": "8/255", "steps": 3, "queries": 20}]
    attacks += [{"attack": "pgd", "eps": "8/255", "steps": 3, "loss": "margin"}]
    black = {"queries": [{"attack": "square", "eps": "8/255", "queries": 20}]}
    settings |= {"classifier": f"{__name__}.two_classes", "restorers": [f"{__name__}.Noisy"], "gray_box": [], "images": 0}
    results = gandefense.evaluate(**settings | {"black_box": black, "white_box": {"views": ["exact"], "attacks": attacks}})
    assert results["data"]["classes"] == 2
    assert [row["attack"] for row in results["rows"]] == ["none", "square", "apgd-ce", "fab", "autoattack", "pgd"]
    assert results["classifier"]["accuracy"] == 1
    monkeypatch.setattr(work, "attack", None)
    with pytest.raises(UserError, match="apgd-t: needs at least 4 classes, the network has 2"):
        attacks = [{"attack": "apgd-t", "eps": "8/255", "steps": 3}]
        gandefense.evaluate(**settings | {"overwrite": True, "white_box": {"views": ["exact"], "attacks": attacks}})


class Cut(gandefense.Restorer):
    """Leaves images as they are, and no gradient."""

    def forward(self, images: torch.Tensor) -> gandefense.Restoration:
        nothing = torch.zeros(len(images))
        return gandefense.Restoration(images.detach(), nothing, nothing.bool(), nothing, {})


def test_a_view_without_a_gradient_is_refused_before_any_attack(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "attack", None)
    with pytest.raises(UserError, match=r"Cut has no gradient in the view exact.*take the view straight_through"):
        gandefense.evaluate(**settings | {"restorers": [f"{__name__}.Cut"], "white_box": {**WHITE, "views": ["exact"]}})
    assert not Path(settings["output"]).exists()


class Overshooting(gandefense.Restorer):
    """Leaves the range by a rounding error, as filters do."""

    def forward(self, images: torch.Tensor) -> gandefense.Restoration:
        nothing = torch.zeros(len(images))
        return gandefense.Restoration(torch.ones_like(images) * (1 + 2e-7), nothing, nothing.bool(), nothing, {})


def test_a_restorers_rounding_is_forgiven(settings: dict[str, Any]) -> None:
    name = f"{__name__}.Overshooting"
    settings |= {"restorers": [name], "limit": 4, "gray_box": [], "white_box": {"views": [], "attacks": []}, "images": 0}
    assert gandefense.evaluate(**settings)["restoration"][name][0]["n"] == 4


class Branches(gandefense.Restorer):
    """Takes one of two ways, chosen once a batch: most pairs of passes agree."""

    def forward(self, images: torch.Tensor) -> gandefense.Restoration:
        nothing = torch.zeros(len(images))
        chosen = images if torch.rand(()) < 0.5 else images.flip(-1)
        return gandefense.Restoration(chosen, nothing, nothing.bool(), nothing, {})


def test_seldom_randomness_is_noticed(settings: dict[str, Any]) -> None:
    name = f"{__name__}.Branches"
    settings |= {"restorers": [name], "limit": 4, "gray_box": [], "white_box": {"views": [], "attacks": []}, "images": 0}
    assert gandefense.evaluate(**settings)["randomised"][name]


class Noisy(gandefense.Restorer):
    """Adds noise: two passes over the same images differ."""

    def forward(self, images: torch.Tensor) -> gandefense.Restoration:
        nothing = torch.zeros(len(images))
        noisy = (images + 0.4 * torch.randn_like(images)).clamp(0, 1)
        return gandefense.Restoration(noisy, nothing, nothing.bool(), nothing, {})


def test_a_randomised_defence_is_resubmitted(settings: dict[str, Any]) -> None:
    name = f"{__name__}.Noisy"
    white = {"views": ["exact"], "attacks": [{"attack": "pgd", "eps": "24/255", "steps": 2, "eot": 2}]}
    curves = {"eot": [1, 2], "attack": {"attack": "pgd", "steps": 1}, "view": "exact", "images": 5}
    results = gandefense.evaluate(**{**settings, "restorers": [name], "white_box": white, "curves": curves, "resubmissions": 4})
    assert results["randomised"] == {"none": False, name: True}
    white_row = results["rows"][-1]
    assert (white_row["eot_samples"], white_row["resubmissions"]) == (2, 4)
    assert all(row["resubmitted_accuracy"] <= row["accuracy"] for row in results["rows"])
    assert any(row["resubmitted_accuracy"] < row["accuracy"] for row in results["rows"]), "noise this strong changes its mind"
    assert results["worst_case"][name]["white_box"]["accuracy"] <= white_row["resubmitted_accuracy"]
    assert [point["samples"] for point in results["curves"][name]["eot"]["points"]] == [1, 2]
