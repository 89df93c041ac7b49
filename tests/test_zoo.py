"""Trained networks by name, run folder or file."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gandefense
from gandefense import classifiers, zoo
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.restorers.base import IdentityRestorer
from gandefense.restorers.trn import TwoStreamRestorationNetwork
from gandefense.weights_io import save_weights

NETWORK = {"channels": 3, "labels": 10, "width": 8, "blocks": 1, "streams": "both"}


@pytest.fixture
def classifier() -> nn.Module:
    return classifiers.build("resnet9", datasets.describe("cifar10")).eval()


@pytest.fixture
def saved(tmp_path: Path, classifier: nn.Module) -> Callable[..., Path]:
    """A weights file, by default of a classifier, with changes to its description (None drops an entry)."""

    def save(kind: str = "classifier", name: str = "model", **changes: Any) -> Path:
        path = tmp_path / f"{name}.safetensors"
        description: dict[str, Any] = {"kind": kind, "data": "cifar10"}
        module = classifier
        if kind == "classifier":
            description["architecture"] = "resnet9"
        else:
            description.update(network=NETWORK, classifier=str(tmp_path / "classifier.safetensors"))
            module = TwoStreamRestorationNetwork(**NETWORK)
        description.update(changes)
        save_weights(path, module.state_dict(), {key: value for key, value in description.items() if value is not None})
        return path

    return save


def test_a_classifier_loads_undefended(saved: Callable, classifier: nn.Module) -> None:
    images = torch.rand(2, 3, 32, 32)
    defended = gandefense.load(saved())
    assert not defended.training
    assert isinstance(defended.restorer, IdentityRestorer)
    with torch.no_grad():
        assert torch.allclose(defended(images), classifier(images), atol=1e-6), "but for the memory format"


def test_a_restorer_loads_with_the_classifier_it_was_trained_for(saved: Callable, classifier: nn.Module) -> None:
    saved(name="classifier")
    defended = gandefense.load(saved("trn", name="restorer"))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(defended(images), classifier(images), atol=1e-6), "an untrained TRN is the identity"
    assert set(defended.restore(images).maps) >= {"gradient_maps", "residual"}


def test_a_restorer_goes_before_somebody_elses_classifier(saved: Callable) -> None:
    mine = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    defended = gandefense.defend(mine, saved("trn"))
    assert defended.classifier is mine
    assert defended(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(UserError, match=r"3 channel"):
        defended(torch.rand(2, 1, 32, 32))


def test_none_leaves_images_as_they_are(classifier: nn.Module) -> None:
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(gandefense.defend(classifier, "none").restore(images).images, images)


def test_a_finished_run_folder_is_a_name_and_an_unfinished_one_says_how_to_go_on(saved: Callable, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("kind: classifier\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"not finished .*; go on with resume={tmp_path}"):
        gandefense.load(tmp_path)
    path = saved()
    assert zoo.find(tmp_path) == path
    assert gandefense.load(tmp_path).classifier is not None


@pytest.mark.parametrize("name", ["cifar10/nothing", "../weights", "", "run_folder"])
def test_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown network .* shipped: ") as caught:
        gandefense.load(name)
    listed = re.findall(r"([\w-]+)/\{([^}]+)\}", str(caught.value).split(" shipped: ")[1])
    assert sorted(f"{data}/{own}" for data, together in listed for own in together.split(", ")) == zoo.names()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("classifier", {"architecture": "resnet99"}, "unknown classifier 'resnet99'"),
        ("classifier", {"architecture": "resnet11"}, "does not fit"),
        ("classifier", {"architecture": None}, "architecture"),
        ("classifier", {"data": "cifar11"}, "unknown data set 'cifar11'"),
        ("trn", {"classifier": None}, "does not say which classifier it defends"),
        ("trn", {"network": None}, "network"),
        ("trn", {"network": {**NETWORK, "width": 16}}, "does not fit"),
        ("trn", {"network": {**NETWORK, "depth": 3}}, "depth"),
        ("trn", {"network": {**NETWORK, "streams": "three"}}, "unknown streams 'three'"),
        ("sculptor", {}, "is a 'sculptor', not a restorer"),
    ],
)
def test_a_description_that_does_not_fit_is_one_line(saved: Callable, kind: str, changes: dict[str, Any], message: str) -> None:
    saved(name="classifier")
    with pytest.raises(UserError, match=message) as caught:
        gandefense.load(saved(kind, **changes))
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_one_line(saved: Callable) -> None:
    path = saved()
    path.write_bytes(path.read_bytes()[:-1000])
    for load in (gandefense.load, zoo.load_classifier, zoo.describe):
        with pytest.raises(UserError, match="not a whole safetensors file"):
            load(path)


def test_a_restorer_is_no_classifier_and_a_classifier_no_restorer(saved: Callable, classifier: nn.Module) -> None:
    with pytest.raises(UserError, match="not a classifier"):
        zoo.load_classifier(saved("trn"))
    with pytest.raises(UserError, match="not a restorer"):
        gandefense.defend(classifier, saved())


def test_content_hash_is_that_of_the_weights_file(saved: Callable, tmp_path: Path) -> None:
    path = saved()
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "config.yaml").write_text("kind: classifier\n", encoding="utf-8")
    assert zoo.content_hash(path) == zoo.content_hash(str(path)) == zoo.content_hash(tmp_path) == expected
    with pytest.raises(UserError, match="unknown network 'nothing'"):
        zoo.content_hash("nothing")


def test_a_trial_is_for_own_parts_alone(saved: Callable) -> None:
    zoo.try_out(saved(), nn.Identity(), datasets.describe("cifar10"))  # no classifier at all, and nobody minds


@pytest.mark.parametrize("name", zoo.names())
def test_every_shipped_network_loads_and_answers(name: str) -> None:
    data = datasets.describe(zoo.describe(name)["data"])
    images = torch.rand(2, data.channels, data.size, data.size)
    with torch.no_grad():
        logits = gandefense.load(name)(images)
    assert logits.shape == (2, len(data.classes))
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["cifar10/trn", "cifar10/gan"])
def test_shipped_networks_come_with_their_convolutions_in_the_fast_memory_format(name: str) -> None:
    defended = zoo.load(name)
    wide = [weights for weights in defended.parameters() if weights.ndim == 4]
    assert wide and all(weights.is_contiguous(memory_format=torch.channels_last) for weights in wide)
    images = torch.rand(4, 3, 32, 32)
    expected = copy.deepcopy(defended).to(memory_format=torch.contiguous_format)(images)
    assert torch.allclose(defended(images), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar10/tnr", "did you mean cifar10/trn?"),
        ("cifar10/clasifier", "did you mean cifar10/classifier?"),
        ("jepg", "did you mean jpeg?"),
        ("nonsense", "; shipped: "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(name: str, hint: str) -> None:
    with pytest.raises(UserError, match="unknown network") as caught:
        zoo.find(name)
    assert hint in str(caught.value)
