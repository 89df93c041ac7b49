"""Image files as rows of 8-bit pixels: decoded once, kept on disk, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gandefense.data.mapped import memory_mapped, remaining_chunks
from gandefense.errors import StorageError, UserError
from gandefense.files import locked
from gandefense.image_files import UnreadableError, read_image

CHUNK = 64  # images between two marks of progress; a killed process decodes at most so many again
VERSION = 1  # of how a file becomes pixels; another one makes earlier sets useless


def decoded(files: list[Path], *, size: int, folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """The pixels of image files, decoded now where that has not been done before.

    The files are told apart by name, size and time of their last change, so that a changed file is decoded anew. A killed
    process goes on where it stopped.

    Args:
        files: PNG, JPEG, WebP or BMP; each is cut to the square in its middle and resized with antialiasing.
        size: height and width of the result.
        folder: holds one sub-folder per set.
        name: begins the set's folder name.

    Returns:
        Pixels (N, 3, size, size) uint8, memory-mapped, in the order of the files, and SHA-256 of each image, (N, 32) uint8.

    Raises:
        UserError: a file is missing or damaged.
        StorageError: the set cannot be written.
    """
    place = folder / f"{name}-{_key(files, size)}"
    chunks = -(-len(files) // CHUNK)

    def row(file: Path) -> tuple[np.ndarray, np.ndarray]:
        try:
            pixels = read_image(file, channels=3, size=size, crop=True)[0].contiguous().numpy()
        except UnreadableError as error:
            raise UserError(f"cannot read {file}: {error}; put the whole file there again, or remove it") from None
        return pixels, np.frombuffer(hashlib.sha256(pixels).digest(), np.uint8)

    try:
        place.mkdir(parents=True, exist_ok=True)
        with locked(place, wait=True):
            shapes = {"images": ((len(files), 3, size, size), "uint8"), "hashes": ((len(files), 32), "uint8")}
            done, images, hashes = memory_mapped(place, chunks, **shapes)
            with suppress(OSError):  # on a read-only disk nobody asks when a set was last used
                os.utime(place)
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders work outside Python's lock
                for _, rows in remaining_chunks(len(files), CHUNK, done, f"decoding {name}"):
                    for i, (pixels, digest) in zip(range(rows.start, rows.stop), pool.map(row, files[rows]), strict=True):
                        images[i], hashes[i] = pixels, digest
                    images.flush()
                    hashes.flush()
    except OSError as error:
        raise StorageError(
            f"cannot write the decoded images {place}: {error.strerror}; set data.root or GANDEFENSE_DATA to a folder of "
            "your own, in which the data set's folder may be a link"
        ) from None
    # Mapped privately: nobody writes to it, but torch wants tensors that could be written to.
    return torch.from_numpy(np.load(place / "images.npy", mmap_mode="c")), torch.from_numpy(np.array(hashes))


def _key(files: list[Path], size: int) -> str:
    """Twelve hexadecimal digits that stand for the files and what becomes of them."""
    digest = hashlib.sha256(json.dumps([VERSION, size]).encode())
    for file in files:
        try:
            about = file.stat()
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
        digest.update(f"{file.name}/{about.st_size}/{about.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]
