"""Arrays on disk that are filled chunk by chunk and memory-mapped: what is read stays out of memory until it is needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gandefense.files import print_interval


def _existing(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """A memory-mapped array on disk; None where it is missing, cut short, damaged or another one.

    It can be written to, unless the folder is read-only: a finished set may lie in one.
    """
    try:
        # Reading first: opened for writing, a file that was cut short would silently be filled up with zeros.
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError):
        return None
    if array.shape != shape or array.dtype != np.dtype(dtype):
        return None
    try:
        return np.lib.format.open_memmap(path, mode="r+")
    except OSError:
        return array


def _new(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A memory-mapped array of zeros on disk.

    Its space is taken at once, because a disk that fills up while mapped memory is written ends the process without a word.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return array


def memory_mapped(folder: Path, chunks: int, **arrays: tuple[tuple[int, ...], str]) -> tuple[np.ndarray, ...]:
    """Arrays on disk that are filled chunk by chunk: the existing ones where all of them fit, else new ones of zeros.

    Args:
        folder: of the files NAME.npy, and of done.npy.
        chunks: their number.
        arrays: shape and dtype by name.

    Returns:
        done (chunks,) bool, True for the chunks that are on disk, and the arrays in the given order.

    Raises:
        OSError: there is not enough space, or the folder cannot be written.
    """
    found = [_existing(folder / f"{name}.npy", *kind) for name, kind in arrays.items()]
    if any(array is None for array in found):
        (folder / "done.npy").unlink(missing_ok=True)  # first, so that no zeros are ever taken for something done
        found = [_new(folder / f"{name}.npy", *kind) for name, kind in arrays.items()]
    done = _existing(folder / "done.npy", (chunks,), "bool")
    if done is None:
        done = _new(folder / "done.npy", (chunks,), "bool")
    if not done.all() and not all(array.flags.writeable for array in (done, *found)):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    return done, *found


def remaining_chunks(count: int, chunk_size: int, done: np.ndarray, description: str) -> Iterator[tuple[int, slice]]:
    """Walk over the chunks that are not done yet, with a progress bar, and mark each when the caller comes back for the next.

    Args:
        count: rows in all.
        chunk_size: rows in a chunk.
        done: (chunks,) bool, memory-mapped; a chunk must be on disk before the next one is asked for.
        description: of the progress bar.

    Yields:
        The chunk's number and its rows.
    """
    waiting = np.flatnonzero(~done)
    if not len(waiting):
        return
    finished = min(count, (len(done) - len(waiting)) * chunk_size)
    with tqdm(
        total=count, initial=finished, desc=description, unit="image", mininterval=print_interval(), dynamic_ncols=True
    ) as bar:
        for chunk in waiting.tolist():
            rows = slice(chunk * chunk_size, min((chunk + 1) * chunk_size, count))
            yield chunk, rows
            done[chunk] = True
            done.flush()
            bar.update(rows.stop - rows.start)
