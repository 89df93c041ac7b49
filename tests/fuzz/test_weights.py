"""Weights files: changed bytes, headers and descriptions; what loads works, and what does not is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gandefense import classifiers, own_parts, weights_io, zoo
from gandefense.attacks.cache import fingerprint
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.restorers import gan
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.gan import GANNetworks
from gandefense.restorers.trn import TwoStreamRestorationNetwork
from tests.fuzz.mutations import fuzz, mutated_safetensors, numbers, rewritten, survives, words

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SHAPE = {"channels": 3, "labels": 10, "width": 8, "blocks": 1}
NETWORK = {"channels": 3, "size": 32, "width": 8}
GAN = {"kind": "gan", "data": "cifar10", "network": NETWORK, "loop": {"threshold": 0.0, "rounds": 2, "tolerance": 0.01}}


@pytest.fixture(scope="module")
def files(place: Path) -> dict[str, Path]:
    """A small classifier and a small TRN that was trained for it."""
    torch.manual_seed(0)
    classifier = classifiers.build("tiny", datasets.describe("cifar10")).eval()
    paths = {name: place / f"{name}.safetensors" for name in ("classifier", "trn")}
    about = {"kind": "classifier", "architecture": "tiny", "data": "cifar10"}
    weights_io.save_weights(paths["classifier"], classifier.state_dict(), about)
    about = {"kind": "trn", "data": "cifar10", "network": SHAPE, "threshold": 1.0, "top_k": None}
    about |= {"classifier": str(paths["classifier"]), "classifier_fingerprint": fingerprint(classifier)}
    weights_io.save_weights(paths["trn"], TwoStreamRestorationNetwork(**SHAPE).state_dict(), about)
    return paths


@pytest.fixture(autouse=True)
def _nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A weights file must not choose what code is imported."""
    asked = []
    monkeypatch.setattr(own_parts, "resolve", asked.append)
    yield
    assert not asked


def _used(defended: DefendedClassifier | None) -> None:
    if defended is not None:
        with torch.no_grad():
            assert defended(IMAGES).shape == (2, 10)
            assert defended.restore(IMAGES).images.shape == IMAGES.shape


@fuzz
@given(data=st.data(), kind=st.sampled_from(["classifier", "trn"]))
def test_a_file_loads_and_works_or_is_refused(place: Path, files: dict[str, Path], data: st.DataObject, kind: str) -> None:
    path = place / "case.safetensors"
    path.write_bytes(data.draw(mutated_safetensors(files[kind].read_bytes())))
    survives(lambda: weights_io.load_weights(path))
    _used(survives(lambda: zoo.load(path)))


VALUES = ["os.system", "gandefense.zoo.load", "full", "paper", "batch", "both", [], {}, None, True, 8, 3]
DESCRIPTION_VALUES = st.one_of(numbers, words, st.sampled_from(VALUES))


@fuzz
@given(data=st.data(), kind=st.sampled_from(["classifier", "trn"]))
def test_a_description_fits_or_is_refused(place: Path, files: dict[str, Path], data: st.DataObject, kind: str) -> None:
    tensors, about = weights_io.load_weights(files[kind])
    path = place / "described.safetensors"
    weights_io.save_weights(path, tensors, data.draw(rewritten(about, DESCRIPTION_VALUES)))
    defended = survives(lambda: zoo.load(path))
    if defended is not None and defended.restorer is not None:
        _used(defended)


@pytest.fixture(scope="module")
def gan_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return GANNetworks(**NETWORK).state_dict()


@fuzz
@given(about=rewritten(GAN, DESCRIPTION_VALUES))
def test_a_gan_description_fits_or_is_refused(gan_tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    restorer = survives(lambda: gan.from_weights(gan_tensors, about, nn.Identity(), Path("here")))
    if restorer is not None:
        assert 1 <= restorer.rounds <= gan.MOST_ROUNDS and isinstance(restorer.threshold, (int, float))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**9},
        {"blocks": 10**9},
        {"blocks": 1024},
        {"width": 1024, "blocks": 64},
        {"labels": 2**40},
        {"width": -8},
        {"width": 1e999},
    ],
)
def test_a_description_of_a_huge_network_costs_no_memory(place: Path, files: dict[str, Path], change: dict) -> None:
    tensors, about = weights_io.load_weights(files["trn"])
    weights_io.save_weights(place / "huge.safetensors", tensors, {**about, "network": {**SHAPE, **change}})
    assert survives(lambda: zoo.load(place / "huge.safetensors")) is None


@pytest.mark.parametrize("named", ["os.system", "gandefense.zoo.load", "antigravity.x"])
def test_a_file_does_not_choose_what_is_imported(place: Path, files: dict[str, Path], named: str) -> None:
    tensors, about = weights_io.load_weights(files["trn"])
    weights_io.save_weights(place / "names.safetensors", tensors, {**about, "classifier": named})
    with pytest.raises(UserError, match="if you trust it"):
        zoo.load(place / "names.safetensors")
