"""Splits, limits and the real CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gandefense.config import DataConfig
from gandefense.data import datasets, sources
from gandefense.errors import UserError
from tests.helpers import small_cifar10 as small


def test_train_and_validation_are_disjoint_and_complete(small_cifar10: Path) -> None:
    train, validation = (datasets.load(DataConfig(), split) for split in ("train", "validation"))
    assert (len(train.index), len(validation.index)) == (5 * small.RECORDS - small.VALIDATION, small.VALIDATION)
    assert sorted([*train.index.tolist(), *validation.index.tolist()]) == list(range(5 * small.RECORDS))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_index_says_which_image_of_the_source_it_is(small_cifar10: Path, split: str) -> None:
    images, labels = sources.read("cifar10", "test" if split == "test" else "train")
    loaded = datasets.load(DataConfig(limit=20), split, seed=3)
    assert (loaded.images.dtype, loaded.labels.dtype, loaded.index.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert np.array_equal(loaded.images.numpy(), images[loaded.index])
    assert np.array_equal(loaded.labels.numpy(), labels[loaded.index])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_without_a_limit_the_order_is_the_sources_whatever_the_seed(small_cifar10: Path, split: str) -> None:
    first, second = (datasets.load(DataConfig(), split, seed=seed) for seed in (0, 1))
    assert torch.equal(first.index, second.index)
    assert torch.equal(first.index, first.index.sort().values)


def test_validation_images_stay_the_same_for_ever(small_cifar10: Path) -> None:
    # Another shuffle would let images that a shipped network was trained on into the validation set.
    assert datasets.load(DataConfig(), "validation").index[:8].tolist() == [5, 7, 8, 22, 25, 26, 27, 32]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_limit_is_a_prefix_of_a_seeded_shuffle(small_cifar10: Path, split: str) -> None:
    def indices(limit: int, seed: int) -> list[int]:
        return datasets.load(DataConfig(limit=limit), split, seed=seed).index.tolist()

    everything = datasets.load(DataConfig(), split).index.tolist()
    assert indices(10, 0) == indices(30, 0)[:10] == indices(10, 0)
    assert indices(10, 0) != indices(10, 1)
    assert indices(10, 0) != everything[:10]
    assert set(indices(30, 0)) <= set(everything)
    assert sorted(indices(10**6, 0)) == everything


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        (DataConfig(name="cifar11"), "train", f"unknown data set 'cifar11'; known: {', '.join([*datasets.DATASETS, 'celeba'])}"),
        (DataConfig(), "training", "unknown split 'training'; known: train, validation, test"),
        (DataConfig(limit=0), "train", "data.limit must be at least 1, got 0"),
        (DataConfig(limit=-3), "test", "data.limit must be at least 1, got -3"),
    ],
)
def test_bad_requests_are_refused(small_cifar10: Path, config: DataConfig, split: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        datasets.load(config, split)
    assert str(caught.value) == message


@pytest.mark.skipif(
    any(not (sources.data_root() / "cifar10" / name).is_file() for name in sources.CIFAR10_FILES), reason="CIFAR-10 is not here"
)
def test_the_real_cifar10() -> None:
    test = datasets.load(DataConfig(download=False), "test")
    assert (test.images.shape, test.images.dtype) == ((10_000, 3, 32, 32), torch.uint8)
    assert test.labels.bincount().tolist() == [1000] * 10
    assert [datasets.describe("cifar10").classes[label] for label in test.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    train, validation = (datasets.load(DataConfig(download=False), split) for split in ("train", "validation"))
    assert (len(train.labels), len(validation.labels)) == (48_000, 2_000)
    assert validation.index[:5].tolist() == [33, 41, 56, 64, 102]
    description = datasets.describe("cifar10")
    flat = torch.cat([train.images, validation.images]).transpose(0, 1).flatten(1)[:, ::7].float() / 255
    assert torch.allclose(flat.mean(1), torch.tensor(description.mean), atol=1e-3)
    assert torch.allclose(flat.std(1), torch.tensor(description.std), atol=1e-3)
