"""Batches: range, augmentation, order."""

from __future__ import annotations

import pytest
import torch

from gandefense.data.batches import at_once, augmentation, batch_indices, batches, order, to_float
from gandefense.data.datasets import Images


def test_to_float_maps_bytes_to_the_unit_range() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    floats = to_float(images)
    assert floats.dtype == torch.float32
    assert torch.allclose(floats.flatten() * 255, torch.arange(256.0))
    assert (floats.min().item(), floats.max().item()) == (0.0, 1.0)
    assert images.flatten()[-1] == 255, "the source is left as it is"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("erase", [0.0, 1.0])
def test_augmentation_keeps_shape_and_range_and_changes_images(channels: int, erase: float) -> None:
    images = torch.rand(16, channels, 32, 32)
    augmented = augmentation(32, erase=erase)(images)
    assert augmented.shape == images.shape
    assert augmented.dtype == images.dtype
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    assert (augmented != images).flatten(1).any(1).sum() >= 12


def test_augmentation_shifts_and_mirrors_by_at_most_four_pixels() -> None:
    # One white pixel in the middle tells where every image went.
    images = torch.zeros(400, 1, 32, 32)
    images[:, :, 16, 10] = 1
    rows, columns = _positions(augmentation(32)(images))
    assert set(rows.tolist()) == set(range(12, 21))
    mirrored = columns > 16
    assert set(columns[~mirrored].tolist()) == set(range(6, 15))
    assert set(columns[mirrored].tolist()) == set(range(17, 26))
    assert 140 < mirrored.sum() < 260


def test_augmentation_of_larger_images_shifts_them_by_as_large_a_share() -> None:
    images = torch.zeros(40, 1, 128, 128)
    images[:, :, 64, 40] = 1
    rows, columns = _positions(augmentation(128)(images))
    assert rows.min() < 56 and rows.max() > 72 and rows.min() >= 48 and rows.max() <= 80
    assert (((columns - 40).abs() <= 16) | ((columns - 87).abs() <= 16)).all()


@pytest.mark.parametrize(
    ("size", "most", "count"),
    [(6, 256, 256), (32, 256, 256), (32, 500, 500), (64, 256, 64), (128, 256, 16), (512, 256, 1), (1024, 256, 1)],
)
def test_fewer_large_images_are_handled_at_a_time(size: int, most: int, count: int) -> None:
    assert at_once(size, most) == count


def _positions(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    place = images.flatten(1).argmax(1)
    return place // images.shape[-1], place % images.shape[-1]


def test_augmentation_repeats_with_the_random_state() -> None:
    images, augment = torch.rand(8, 3, 32, 32), augmentation(32, erase=0.5)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(images))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (12, 4), (5, 5), (7, 100), (1, 1)])
def test_every_epoch_visits_each_index_at_most_once_up_to_the_remainder(count: int, batch_size: int) -> None:
    per_epoch = count // min(batch_size, count)
    epochs = []
    for epoch in range(4):
        visited = torch.cat([batch_indices(count, batch_size, epoch * per_epoch + step, seed=5) for step in range(per_epoch)])
        assert len(visited) == per_epoch * min(batch_size, count)
        assert len(visited.unique()) == len(visited)
        assert visited.min() >= 0
        assert visited.max() < count
        epochs.append(tuple(visited.tolist()))
    if count >= 5:
        assert len(set(epochs)) == 4, "every epoch has an order of its own"


def test_a_batch_is_a_function_of_seed_and_step_only() -> None:
    torch.manual_seed(1)
    first = batch_indices(1000, 64, 37, seed=2)
    torch.manual_seed(2)
    batch_indices(1000, 64, 3, seed=9)
    state = torch.get_rng_state()
    assert torch.equal(batch_indices(1000, 64, 37, seed=2), first)
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    assert not torch.equal(batch_indices(1000, 64, 37, seed=3), first)
    assert not torch.equal(batch_indices(1000, 64, 38, seed=2), first)


def test_order_is_a_permutation_that_differs_by_epoch_and_seed() -> None:
    orders = {(epoch, seed): tuple(order(50, epoch, seed).tolist()) for epoch in range(3) for seed in range(3)}
    assert all(sorted(indices) == list(range(50)) for indices in orders.values())
    assert len(set(orders.values())) == 9


@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_batches_walk_once_through_the_data_in_its_order(batch_size: int) -> None:
    data = Images(torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8), torch.arange(10), torch.arange(10))
    pieces = list(batches(data, batch_size))
    assert [len(labels) for _, labels in pieces[:-1]] == [batch_size] * (len(pieces) - 1)
    assert torch.equal(torch.cat([labels for _, labels in pieces]), data.labels)
    assert torch.equal(torch.cat([images for images, _ in pieces]), to_float(data.images))
