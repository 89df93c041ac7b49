"""SVHN (Netzer et al. 2011), cropped digits: 99,289 colour pictures of house numbers, 32×32, in MATLAB files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from gandefense.data.downloads import FileSet, download, move_checked
from gandefense.errors import UserError, reason

URL = "http://ufldl.stanford.edu/housenumbers"
FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
NEEDS = {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)}
SIZE = 32


def from_official(folder: Path) -> None:
    """The download of the data set's authors, which torchvision uses too: 182 and 64 MB."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for name, expected in FILES.items():
            if not (folder / name).is_file():
                move_checked(download(f"{URL}/{name}", Path(temporary), name, expected), folder, expected)


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A file of cropped digits.

    scipy reads MATLAB's format 5, which holds arrays and no code. The digit 0 bears the label 10 in it, which becomes 0.

    Returns:
        Images uint8 (N, 3, 32, 32) and labels int64 (N,), 0 … 9.

    Raises:
        UserError: the file is no MATLAB file, or holds other arrays.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=("X", "y"))
        images, labels = np.asarray(content["X"]), np.asarray(content["y"]).ravel()
    except KeyError as missing:
        raise UserError(f"{path} holds no array {missing}; expected X and y") from None
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{path} cannot be read as a MATLAB file ({reason(error)})") from None
    if images.dtype != np.uint8 or images.shape != (SIZE, SIZE, 3, len(labels)):
        raise UserError(f"{path}: expected X as uint8 ({SIZE}, {SIZE}, 3, {len(labels)}), got {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iuf" or not np.isin(labels, np.arange(1, 11)).all():
        raise UserError(f"{path}: expected labels 1 … 10 in y")
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.astype(np.int64) % 10


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of a split, "train" or "test"; the 531,131 extra ones are not used."""
    return read_mat(folder / NEEDS[split][0])


SVHN = FileSet(
    files=FILES,
    sources={"official download": from_official},
    read=read,
    needs=NEEDS,
    advice=f"put {' and '.join(FILES)} of {URL} there, or run tools/fetch_data.py svhn with a network",
)
