"""SVHN: MATLAB files that the tests write."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from gandefense.config import DataConfig
from gandefense.data import datasets, sources, svhn
from gandefense.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
LABELS = (np.arange(20) % 10 + 1)[:, None].astype(np.uint8)  # 1 … 10, the digit 0 as 10


def _write(path: Path, **arrays: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, arrays, do_compression=True)
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a small SVHN, whose MD5s are the ones that the package expects."""
    for name in svhn.FILES:
        path = _write(tmp_path / "svhn" / name, X=IMAGES, y=LABELS)
        monkeypatch.setitem(svhn.FILES, name, hashlib.md5(path.read_bytes()).hexdigest())
    return tmp_path


def test_read(root: Path) -> None:
    data = datasets.load(DataConfig(name="svhn", root=str(root), download=False), "test")
    assert data.images.shape == (20, 3, 32, 32)
    assert np.array_equal(data.images[7, :, 5, 9].numpy(), IMAGES[5, 9, :, 7])
    names = datasets.describe("svhn").classes
    assert [names[label] for label in data.labels[:11]] == [*"1234567890", "1"]


def test_digits_are_not_mirrored() -> None:
    assert not datasets.describe("svhn").flips and datasets.describe("cifar10").flips


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": IMAGES}, "holds no array 'y'"),
        ({"X": IMAGES.astype(np.float64), "y": LABELS}, "expected X as uint8"),
        ({"X": IMAGES[:, :, :, :19], "y": LABELS}, r"expected X as uint8 \(32, 32, 3, 20\)"),
        ({"X": IMAGES[:16], "y": LABELS}, "expected X as uint8"),
        ({"X": IMAGES, "y": LABELS - 1}, "expected labels 1 … 10"),
        ({"X": IMAGES, "y": np.where(LABELS == 1, np.nan, LABELS)}, "expected labels 1 … 10"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message):
        svhn.read_mat(_write(tmp_path / "train_32x32.mat", **arrays))


class _Evil:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0", pickle.dumps(_Evil())])
def test_what_is_no_matlab_file_is_refused_and_never_unpickled(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train_32x32.mat").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a MATLAB file"):
        svhn.read_mat(tmp_path / "train_32x32.mat")


def test_only_missing_files_are_downloaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (root / "svhn" / "test_32x32.mat").read_bytes()
    (root / "svhn" / "test_32x32.mat").unlink()

    def download(url: str, folder: Path, name: str, expected: str) -> Path:
        assert (url, expected) == (f"{svhn.URL}/test_32x32.mat", svhn.FILES["test_32x32.mat"])
        (folder / name).write_bytes(content)
        return folder / name

    monkeypatch.setattr(svhn, "download", download)
    assert sorted(path.name for path in sources.fetch("svhn", root=str(root)).iterdir()) == sorted(svhn.FILES)


def test_unreachable_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise OSError("no route to host")

    monkeypatch.setattr(svhn, "download", refuse)
    with pytest.raises(UserError, match=r"svhn is not in .*official download: no route to host.*train_32x32\.mat"):
        sources.fetch("svhn", root=str(tmp_path))
