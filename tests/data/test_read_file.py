"""A user's own test images: data.file."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.data.batches import to_float
from gandefense.data.datasets import read_file
from gandefense.errors import UserError

CIFAR10 = datasets.DATASETS["cifar10"]


def _images(kind: torch.dtype = torch.float32, shape: tuple[int, ...] = (5, 3, 32, 32)) -> Tensor:
    return (torch.rand(shape) * 255).byte() if kind == torch.uint8 else torch.rand(shape).to(kind)


def _with(value: float) -> Tensor:
    """Images of which one pixel has a given value."""
    images = _images()
    images[3, 1, 4, 5] = value
    return images


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(**tensors: Tensor) -> str:
        path = tmp_path / "mine.safetensors"
        save_file(tensors, path)
        return str(path)

    return write


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("label_kind", [torch.int64, torch.int32, torch.uint8])
def test_a_good_file(write: Callable, kind: torch.dtype, label_kind: torch.dtype) -> None:
    images, labels = _images(kind), torch.tensor([0, 9, 3, 3, 1])
    data = read_file(write(images=images, labels=labels.to(label_kind)), CIFAR10)
    assert data.images.dtype == (torch.uint8 if kind == torch.uint8 else torch.float32)
    assert torch.equal(data.images, images if kind == torch.uint8 else images.float())
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == [0, 9, 3, 3, 1]
    assert data.index.tolist() == [0, 1, 2, 3, 4]
    assert to_float(data.images).max() <= 1


def test_rounding_errors_at_the_ends_of_the_range_are_clipped(write: Callable) -> None:
    images = _images()
    images[0], images[1] = -5e-7, 1 + 5e-7
    read = read_file(write(images=images, labels=torch.zeros(5, dtype=torch.long)), CIFAR10).images
    assert (read.min(), read.max()) == (0, 1)


def test_load_takes_the_file_for_the_test_split_only(write: Callable, small_cifar10: Path) -> None:
    images, labels = _images(), torch.tensor([0, 9, 3, 3, 1])
    config = DataConfig(file=write(images=images, labels=labels))
    assert torch.equal(datasets.load(config, "test").images, images)
    assert len(datasets.load(config, "validation").labels) == 60
    config.limit = 2
    some = datasets.load(config, "test", seed=3)
    assert torch.equal(some.images, images[some.index])
    assert len(some.labels) == 2


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (_with(torch.nan), torch.zeros(5).long(), "images contain NaN or infinite values"),
        (_with(torch.inf), torch.zeros(5).long(), "images contain NaN or infinite values"),
        (_with(1.001), torch.zeros(5).long(), r"images must lie in \[0, 1\], got \[.*, 1.001\]"),
        (_with(-0.001), torch.zeros(5).long(), r"images must lie in \[0, 1\], got \[-0.001, "),
        (_images() * 255, torch.zeros(5).long(), r"images must lie in \[0, 1\]"),
        (_images(torch.uint8).int(), torch.zeros(5).long(), "expected float images .*; divide 8-bit images by 255"),
        (_images(shape=(5, 1, 32, 32)), torch.zeros(5).long(), r"expected images with 3 channel\(s\), got 1"),
        (_images(shape=(5, 32, 32, 3)), torch.zeros(5).long(), r"expected images with 3 channel\(s\), got 32"),
        (_images(torch.uint8, (5, 1, 32, 32)), torch.zeros(5).long(), r"expected images with 3 channel\(s\), got 1"),
        (_images(shape=(3, 32, 32)), torch.zeros(5).long(), r"expected images of shape \(B, C, H, W\)"),
        (_images(shape=(5, 3, 28, 28)), torch.zeros(5).long(), "expected 32×32 pixels"),
        (_images(shape=(5, 3, 32, 28)), torch.zeros(5).long(), "expected 32×32 pixels"),
        (_images(torch.uint8, (5, 3, 64, 64)), torch.zeros(5).long(), "expected 32×32 pixels"),
        (_images(), torch.zeros(5), "expected one integer label per image, got torch.float32"),
        (_images(), torch.zeros(5).bool(), "expected one integer label per image, got torch.bool"),
        (_images(), torch.zeros(5, dtype=torch.complex64), "expected one integer label per image, got torch.complex64"),
        (_images(), torch.zeros(4).long(), r"expected one integer label per image, got torch.int64 \(4,\)"),
        (_images(), torch.zeros(5, 1).long(), "expected one integer label per image"),
        (_images(shape=(0, 3, 32, 32)), torch.zeros(0).long(), "expected one integer label per image"),
        (_images(), torch.tensor([0, 1, 2, 3, 10]), "labels must lie in 0 … 9"),
        (_images(), torch.tensor([0, -1, 2, 3, 4]), "labels must lie in 0 … 9"),
        (_images(), torch.tensor([0, 1, 2, 3, 2**60]), "labels must lie in 0 … 9"),
    ],
)
def test_wrong_contents_are_one_line(write: Callable, images: Tensor, labels: Tensor, message: str) -> None:
    path = write(images=images, labels=labels)
    with pytest.raises(UserError, match=message) as caught:
        read_file(path, CIFAR10)
    assert str(caught.value).startswith(f"data.file {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_labels_are_read_like_signed_ones(write: Callable, kind: torch.dtype) -> None:
    labels = torch.tensor([0, 9, 3, 3, 1])
    assert read_file(write(images=_images(), labels=labels.to(kind)), CIFAR10).labels.tolist() == labels.tolist()
    with pytest.raises(UserError, match="labels must lie in 0 … 9"):
        read_file(write(images=_images(), labels=(labels + 1).to(kind)), CIFAR10)


@pytest.mark.parametrize("names", [("images",), ("labels",), ("image", "label"), ("x", "y"), ()])
def test_missing_tensors_are_named(write: Callable, names: tuple[str, ...]) -> None:
    path = write(**{name: torch.zeros(5, 3, 32, 32) for name in names})
    with pytest.raises(UserError, match=f"needs the tensors images and labels, it holds {', '.join(names) or 'none'}$"):
        read_file(path, CIFAR10)


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _start(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5])


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"images": [1], "labels": [2]}))


def _checkpoint(path: Path) -> None:
    torch.save({"images": torch.zeros(5, 3, 32, 32), "labels": torch.zeros(5)}, path)


def _picture(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2000))


@pytest.mark.parametrize("damage", [_half, _start, _nothing, _pickle, _checkpoint, _picture])
def test_a_file_that_is_no_whole_safetensors_file_is_one_line(write: Callable, damage: Callable[[Path], None]) -> None:
    path = Path(write(images=_images(), labels=torch.zeros(5).long()))
    damage(path)
    with pytest.raises(UserError, match="is not a whole safetensors file") as caught:
        read_file(str(path), CIFAR10)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.safetensors", ""])
def test_a_missing_file_or_a_folder_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"data.file not found: {tmp_path}"):
        read_file(str(tmp_path / name), CIFAR10)
