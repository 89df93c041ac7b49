"""Fashion-MNIST (Xiao et al. 2017): 70,000 grey pictures of clothes, 28×28, in MNIST's IDX format."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from gandefense.data.downloads import FileSet, download, move_checked
from gandefense.errors import UserError

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
PACKAGE = "dataset-fashion-mnist"  # of Debian and its descendants; the same pictures, compressed anew
ARCHIVES = {  # of the official download
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
FILES = {  # the same, unpacked
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
NEEDS = {
    split: (f"{begin}-images-idx3-ubyte", f"{begin}-labels-idx1-ubyte") for split, begin in (("train", "train"), ("test", "t10k"))
}
LARGEST = 2**26  # bytes that may come out of one archive; the largest real one gives 47 MB


def unpacked(archive: Path, target: Path) -> Path:
    """Unpack a .gz file; raises OSError where it is damaged or gives more than LARGEST bytes."""
    try:
        with gzip.open(archive) as source:
            content = source.read(LARGEST + 1)
    except (EOFError, gzip.zlib.error) as error:
        raise OSError(f"{archive.name} is damaged ({error})") from None
    if len(content) > LARGEST:
        raise OSError(f"{archive.name} holds more than {LARGEST:,} bytes")
    target.write_bytes(content)
    return target


def from_official(folder: Path) -> None:
    """The download of the data set's authors, which torchvision uses too."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for name, expected in ARCHIVES.items():
            archive = download(f"{URL}/{name}.gz", Path(temporary), f"{name}.gz", expected)
            move_checked(unpacked(archive, Path(temporary) / name), folder, FILES[name])


def from_package(folder: Path) -> None:
    """Debian's package, fetched and opened without being installed."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise OSError(f"{program} is not installed")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        print(f"  fetching the package {PACKAGE} (31 MB) …", flush=True)
        _run(["apt-get", "download", PACKAGE], temporary)
        packages = sorted(Path(temporary).glob("*.deb"))
        if not packages:
            raise OSError("apt-get download brought no package")
        _run(["dpkg-deb", "-x", packages[0].name, "unpacked"], temporary)
        for name, expected in FILES.items():
            archive = Path(temporary) / "unpacked/usr/share/datasets/fashion-mnist" / f"{name}.gz"
            move_checked(unpacked(archive, Path(temporary) / name), folder, expected)


def _run(words: list[str], folder: str) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(f"{words[0]} failed: {lines[-1] if lines else 'no answer'}")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes as an array; raises UserError where its head does not fit its length."""
    content = np.fromfile(path, np.uint8)
    head = content[: 4 + 4 * dimensions]
    shape = tuple(head[4:].view(">u4").astype(int)) if len(head) == 4 + 4 * dimensions else ()
    if head[:4].tolist() != [0, 0, 8, dimensions] or len(content) != len(head) + int(np.prod(shape)):
        raise UserError(f"{path} is no IDX file of {dimensions} dimensions")
    return content[len(head) :].reshape(shape)


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 1, 28, 28) and labels int64 (N,) of a split, "train" or "test"."""
    images, labels = NEEDS[split]
    return read_idx(folder / images, 3)[:, None], read_idx(folder / labels, 1).astype(np.int64)


FASHION_MNIST = FileSet(
    files=FILES,
    sources={"official download": from_official, "Debian package": from_package},
    read=read,
    needs=NEEDS,
    advice=(
        "put the four official files, unpacked, there; or run tools/fetch_data.py fashion_mnist with a network, on Debian and "
        f"its descendants after apt-get update, because their package {PACKAGE} holds the same images"
    ),
)
