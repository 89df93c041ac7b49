"""Gradient maps of an attacked set on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gandefense.attacks import cache
from gandefense.attacks.cache import AttackedSet, AttackedSetConfig, attacked_set
from gandefense.data.batches import Images
from gandefense.restorers import cached_maps as module
from gandefense.restorers.cached_maps import CachedMaps, cached_maps
from gandefense.restorers.gradient_maps import gradient_maps
from tests.helpers.networks import small_cnn

CPU = torch.device("cpu")
ROWS = 14  # four chunks, the last of two rows


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 4)


@pytest.fixture
def classifier() -> nn.Sequential:
    return small_cnn(nn.ReLU).requires_grad_(True)


@pytest.fixture
def attacked(classifier: nn.Module, tmp_path: Path) -> AttackedSet:
    images = Images((torch.rand(8, 3, 6, 6) * 255).byte(), torch.arange(8) % 4, torch.arange(8))
    config = AttackedSetConfig(rows=ROWS, attacks=["fgsm", "none"], budgets=[8 / 255], precision="float32")
    return attacked_set(classifier, images, config, device=CPU, root=str(tmp_path))


@pytest.fixture
def make(classifier: nn.Module, attacked: AttackedSet) -> Callable[..., CachedMaps]:
    def make(precision: str = "float32", **options: int) -> CachedMaps:
        return cached_maps(classifier, attacked, 4, device=CPU, precision=precision, **options)

    return make


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches whose maps are really computed, by their size."""
    made = []

    def counted(classifier: nn.Module, images: torch.Tensor, **options: object) -> object:
        made.append(len(images))
        return gradient_maps(classifier, images, **options)

    monkeypatch.setattr(module, "gradient_maps", counted)
    return made


@pytest.mark.parametrize("top_k", [None, 2])
def test_they_are_the_gradient_maps_within_rounding(
    make: Callable, classifier: nn.Module, attacked: AttackedSet, top_k: int | None
) -> None:
    chosen = torch.tensor([13, 0, 5, 5, 9])
    stored, expected = make(top_k=top_k).rows(chosen), gradient_maps(classifier, attacked.rows(chosen), top_k=top_k)
    labels = top_k or 4
    assert stored.maps.shape == (5, labels * 3, 6, 6)
    assert stored.log_norms.shape == (5, labels)
    assert (stored.maps.dtype, stored.log_norms.dtype) == (torch.float32, torch.float32)
    assert (stored.maps - expected.maps).abs().max() <= 0.5 / 127 + 1e-5
    assert torch.allclose(stored.log_norms, expected.log_norms, rtol=1e-3, atol=1e-3)
    assert stored.maps.abs().max() > 0.5


def test_bf16_maps_are_near_the_exact_ones(make: Callable) -> None:
    rows = torch.arange(ROWS)
    rough, exact = make("bf16").rows(rows), make().rows(rows)
    assert not torch.equal(rough.maps, exact.maps)
    assert (rough.maps - exact.maps).abs().mean() < 0.05


def test_maps_are_made_once_for_each_choice_of_labels_and_precision(make: Callable, calls: list[int]) -> None:
    first = make().rows(torch.arange(ROWS))
    assert calls == [4, 4, 4, 2]
    assert torch.equal(make().rows(torch.arange(ROWS)).maps, first.maps)
    assert len(calls) == 4
    make("bf16")
    make(top_k=2)
    assert len(calls) == 12
    make()
    assert len(calls) == 12


def test_interrupted_maps_go_on_where_they_stopped(
    make: Callable, attacked: AttackedSet, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, counted = [], module.gradient_maps

    def breaks(*words: object, **options: object) -> object:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return counted(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "gradient_maps", breaks)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert calls == [4, 4]
    resumed = make().rows(torch.arange(ROWS))
    assert calls == [4, 4, 4, 2], "finished chunks are not made again"
    (folder,) = attacked.folder.glob("maps-*")
    for file in folder.iterdir():
        file.unlink()
    fresh = make().rows(torch.arange(ROWS))
    assert torch.equal(resumed.maps, fresh.maps)
    assert torch.equal(resumed.log_norms, fresh.log_norms)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _reshape(path: Path) -> None:
    np.save(path, np.zeros((3, 3), np.int8))


@pytest.mark.parametrize("damage", [_truncate, _empty, _reshape, Path.unlink])
@pytest.mark.parametrize("name", ["maps.npy", "log_norms.npy", "done.npy"])
def test_damaged_maps_are_made_again(
    make: Callable, attacked: AttackedSet, calls: list[int], damage: Callable, name: str
) -> None:
    whole = make().rows(torch.arange(ROWS))
    (folder,) = attacked.folder.glob("maps-*")
    damage(folder / name)
    calls.clear()
    again = make().rows(torch.arange(ROWS))
    assert torch.equal(again.maps, whole.maps)
    assert torch.equal(again.log_norms, whole.log_norms)
    assert calls


def test_the_classifiers_parameters_are_as_they_were(make: Callable, classifier: nn.Module) -> None:
    make()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in classifier.parameters())
