"""Weights files: changed bytes, headers and descriptions; what loads works, and what does not is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from gandefense.restorers.baselines.ape_gan import APEGenerator
from gandefense.restorers.baselines.ddsa import SparseAutoEncoder
from gandefense.restorers.baselines.defense_gan import DefenseGANRestorer, ImageGenerator
from gandefense.restorers.baselines.denoiser import DenoisingUNet
from gandefense.restorers.baselines.magnet import build_autoencoders
from gandefense.restorers.gan import GANNetworks
from gandefense.restorers.trn import TwoStreamRestorationNetwork
from tests.fuzz.mutations import fuzz, mutated_safetensors, numbers, rewritten, survives, time_limit, words

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SHAPE = {"channels": 3, "labels": 10, "width": 8, "blocks": 1}
NETWORK = {"channels": 3, "size": 32, "width": 8}
GAN = {"kind": "gan", "data": "cifar10", "network": NETWORK, "loop": {"threshold": 0.0, "rounds": 2, "tolerance": 0.01}}
# kind → what builds its tiny network, and what its file says besides the data and the classifier
MAGNET = {"channels": 3, "structures": [["3"], ["2", "average"]], "activation": "sigmoid"}
DETECTORS = [{"kind": "l1"}, {"kind": "jsd", "autoencoder": 1, "temperature": 10.0, "drop_rate": 0.01}]
SEARCH = {"steps": 2, "restarts": 1, "rate": 10.0, "momentum": 0.7, "fixed_starts": False, "truncated": 1}
TINY: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "trn": (TwoStreamRestorationNetwork, {"network": SHAPE, "threshold": 1.0, "top_k": None}),
    "magnet": (build_autoencoders, {"network": MAGNET, "detectors": DETECTORS, "thresholds": [0.1, 0.2]}),
    "ddsa": (
        SparseAutoEncoder,
        {"network": {"channels": 3, "size": 32, "width": 2, "features": 1, "code": 4, "target": 0.1}, "threshold": 1.0},
    ),
    "denoiser": (DenoisingUNet, {"network": {"channels": 3, "widths": [8, 8], "norm": "group"}, "threshold": 1.0}),
    "ape_gan": (APEGenerator, {"network": {"channels": 3, "width": 2}}),
    "defense_gan": (
        ImageGenerator,
        {"network": {"channels": 3, "size": 32, "latent": 2, "width": 1}, "search": SEARCH, "threshold": 1.0},
    ),
}
KINDS = ["classifier", *TINY]


def test_every_kind_of_restorer_is_here() -> None:
    assert {*TINY, "gan"} == set(zoo.RESTORERS)


@pytest.fixture(scope="module")
def files(place: Path) -> dict[str, Path]:
    """A small classifier, and small restorers that name it."""
    torch.manual_seed(0)
    classifier = classifiers.build("tiny", datasets.describe("cifar10")).eval()
    paths = {name: place / f"{name}.safetensors" for name in KINDS}
    about = {"kind": "classifier", "architecture": "tiny", "data": "cifar10"}
    weights_io.save_weights(paths["classifier"], classifier.state_dict(), about)
    defended = {"classifier": str(paths["classifier"]), "classifier_fingerprint": fingerprint(classifier)}
    for kind, (build, says) in TINY.items():
        about = {"kind": kind, "data": "cifar10", **says, **defended}
        weights_io.save_weights(paths[kind], build(**says["network"]).state_dict(), about)
    return paths


@pytest.fixture(autouse=True)
def _nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A weights file must not choose what code is imported."""
    asked = []
    monkeypatch.setattr(own_parts, "resolve", asked.append)
    yield
    assert not asked


def _used(defended: DefendedClassifier | None) -> None:
    if defended is None:
        return
    restorer = defended.restorer
    if isinstance(restorer, DefenseGANRestorer):
        if restorer.search.steps * restorer.search.restarts > 64:  # it would only take long
            return
        if restorer.generator.shape != IMAGES.shape[1:]:  # sizes that round up alike have the same tensors
            with pytest.raises(UserError, match="makes images of shape"):
                restorer(IMAGES)
            return
    with time_limit(), torch.no_grad():
        assert defended(IMAGES).shape == (2, 10)
        assert defended.restore(IMAGES).images.shape == IMAGES.shape


@pytest.mark.parametrize("kind", KINDS)
@fuzz
@given(data=st.data())
def test_a_file_loads_and_works_or_is_refused(place: Path, files: dict[str, Path], data: st.DataObject, kind: str) -> None:
    path = place / "case.safetensors"
    path.write_bytes(data.draw(mutated_safetensors(files[kind].read_bytes())))
    survives(lambda: weights_io.load_weights(path))
    _used(survives(lambda: zoo.load(path)))


VALUES = ["os.system", "gandefense.zoo.load", "full", "paper", "batch", "both", [], {}, None, True, 8, 3]
DESCRIPTION_VALUES = st.one_of(numbers, words, st.sampled_from(VALUES))


@pytest.mark.parametrize("kind", KINDS)
@fuzz
@given(data=st.data())
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
