"""Fashion-MNIST: its format, its two sources, the real one where it is."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gandefense.config import DataConfig
from gandefense.data import datasets, fashion_mnist, sources
from gandefense.errors import UserError

COUNTS = {"train": 30, "t10k": 12}


def _idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A small Fashion-MNIST's files, whose MD5s are the ones that the package expects."""
    random = np.random.default_rng(0)
    made = {}
    for begin, count in COUNTS.items():
        made[f"{begin}-images-idx3-ubyte"] = _idx(random.integers(0, 256, (count, 28, 28)))
        made[f"{begin}-labels-idx1-ubyte"] = _idx(np.arange(count) % 10)
    for name, content in made.items():
        monkeypatch.setitem(fashion_mnist.FILES, name, hashlib.md5(content).hexdigest())
    return made


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_read(tmp_path: Path, files: dict[str, bytes]) -> None:
    _write(tmp_path / "fashion_mnist", files)
    images, labels = sources.read("fashion_mnist", "test", root=str(tmp_path), download=False)
    assert (images.shape, images.dtype, labels.dtype) == ((12, 1, 28, 28), np.uint8, np.int64)
    # The second image's third row starts 16 bytes of head, one image and two rows into the file.
    assert images[1, 0, 2, 0] == files["t10k-images-idx3-ubyte"][16 + 784 + 2 * 28]
    assert labels.tolist() == [*range(10), 0, 1]
    assert len(sources.read("fashion_mnist", "train", root=str(tmp_path))[1]) == 30


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "corrupt data file"),
        (lambda content: content[:-1], "corrupt data file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, files: dict[str, bytes], damage: Callable[[bytes], bytes], message: str) -> None:
    name = "t10k-images-idx3-ubyte"
    _write(tmp_path / "fashion_mnist", {**files, name: damage(files[name])})
    with pytest.raises(UserError, match=f"{message}.*{name}.*tools/fetch_data.py fashion_mnist"):
        sources.read("fashion_mnist", "test", root=str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", _idx(np.zeros((2, 28, 28)))[:-1], _idx(np.zeros(784))])
def test_what_is_no_idx_file_of_images_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(UserError, match="no IDX file of 3 dimensions"):
        fashion_mnist.read_idx(tmp_path / "images", 3)


def _programs(folder: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """An apt-get and a dpkg-deb that behave as the real ones do with the package."""
    inside = folder / "package/usr/share/datasets/fashion-mnist"
    inside.mkdir(parents=True)
    for name, content in files.items():
        (inside / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    lines = {
        "apt-get": f'[ "$1 $2" = "download {fashion_mnist.PACKAGE}" ] && touch x.deb',
        "dpkg-deb": f'cp -r {folder}/package "$3"',
    }
    for name, line in lines.items():
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def _official_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(fashion_mnist, "download", refuse)


def test_the_package_is_taken_when_the_official_download_fails(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _official_is_unreachable(monkeypatch)
    _programs(tmp_path, files, monkeypatch)
    folder = sources.fetch("fashion_mnist", root=str(tmp_path / "root"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    said = capsys.readouterr().out
    assert said.index("official download") < said.index("Debian package")


def test_the_official_archives_are_unpacked_and_checked(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, folder: Path, name: str, expected: str) -> Path:
        asked.append((url, expected))
        (folder / name).write_bytes(gzip.compress(files[name.removesuffix(".gz")], 1))
        return folder / name

    monkeypatch.setattr(fashion_mnist, "download", download)
    folder = sources.fetch("fashion_mnist", root=str(tmp_path))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert [expected for _, expected in asked] == list(fashion_mnist.ARCHIVES.values())
    assert asked[0][0] == f"{fashion_mnist.URL}/train-images-idx3-ubyte.gz"


def test_nothing_reachable_is_one_line(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    _official_is_unreachable(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        sources.fetch("fashion_mnist", root=str(tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("official download: no route to host", "Debian package: apt-get is not installed", "apt-get update"):
        assert part in message
    assert list((tmp_path / "fashion_mnist").iterdir()) == []


def test_an_archive_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "LARGEST", 1000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(OSError, match="more than 1,000 bytes"):
        fashion_mnist.unpacked(tmp_path / "a.gz", tmp_path / "a")
    (tmp_path / "b.gz").write_bytes(gzip.compress(bytes(900))[:-9])
    with pytest.raises(OSError, match="damaged"):
        fashion_mnist.unpacked(tmp_path / "b.gz", tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


@pytest.mark.skipif(
    any(not (sources.data_root() / "fashion_mnist" / name).is_file() for name in fashion_mnist.FILES),
    reason="Fashion-MNIST is not here",
)
def test_the_real_fashion_mnist() -> None:
    config, description = DataConfig(name="fashion_mnist", download=False), datasets.describe("fashion_mnist")
    test = datasets.load(config, "test")
    assert (test.images.shape, test.images.dtype) == ((10_000, 1, 28, 28), torch.uint8)
    assert test.labels.bincount().tolist() == [1000] * 10
    assert [description.classes[label] for label in test.labels[:4]] == ["ankle boot", "pullover", "trouser", "trouser"]
    train, validation = (datasets.load(config, split) for split in ("train", "validation"))
    assert (len(train.labels), len(validation.labels)) == (58_000, 2_000)
    pixels = torch.cat([train.images, validation.images]).flatten()[::11].float() / 255
    assert torch.allclose(pixels.mean(), torch.tensor(description.mean), atol=1e-3)
    assert torch.allclose(pixels.std(), torch.tensor(description.std), atol=1e-3)
