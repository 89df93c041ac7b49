"""What the sources of all data sets share: checksums, a download that gives up in time, what a data set's files are."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

NETWORK_TIMEOUT = 20  # seconds without an answer before the next source is tried


class FileSet(NamedTuple):
    """The files of a data set.

    Attributes:
        files: name → MD5, as they lie in the data set's folder.
        sources: title → a function that puts missing files into a folder; tried in their order.
        read: folder and split ("train" or "test") → images uint8 (N, C, H, W) and labels int64 (N,), in the official order.
        needs: split → the names of its files.
        advice: what a user without a network can do.
    """

    files: dict[str, str]
    sources: dict[str, Callable[[Path], None]]
    read: Callable[[Path, str], tuple[np.ndarray, np.ndarray]]
    needs: dict[str, tuple[str, ...]]
    advice: str


def md5(path: Path) -> str:
    """The MD5 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def download(url: str, folder: Path, name: str, expected: str) -> Path:
    """Download a file into a folder; raises an error of torchvision's or urllib's where it does not come or is another one."""
    from torchvision.datasets.utils import download_url

    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        download_url(url, str(folder), name, expected)
    finally:
        socket.setdefaulttimeout(previous)
    return folder / name


def move_checked(part: Path, folder: Path, expected: str) -> None:
    """Move a fetched file into the data set's folder; raises OSError unless it has the official MD5."""
    if md5(part) != expected:
        raise OSError(f"{part.name} is not the official file")
    os.replace(part, folder / part.name)
