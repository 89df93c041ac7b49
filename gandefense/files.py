"""Files and folders: atomic writes, numbered run folders, locks."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gandefense.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it, so that a reader sees the old or the new file whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8") and None)


def remove_leftovers(path: Path) -> None:
    """Remove what a killed `write_atomically` left beside `path`."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink(missing_ok=True)


def numbered_folder(parent: Path, name: str) -> Path:
    """Make a new folder 00000-name, 00001-name … in `parent`; raises UserError where it cannot be made."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            taken = [int(match[1]) for entry in parent.iterdir() if (match := re.match(r"(\d{5})-", entry.name))]
            folder = parent / f"{max(taken, default=-1) + 1:05d}-{name}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:  # another process took the number first
                continue
    except OSError as error:
        raise UserError(f"cannot make a folder in {parent}: {error.strerror}") from None


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder for this process alone; the operating system frees it when the process ends, however it ends.

    Args:
        folder: must exist.
        wait: wait for another process that holds it, or raise UserError.
    """
    if sys.platform == "win32":  # no fcntl there
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise UserError(f"{folder} is in use by another process") from None
        yield
    finally:
        os.close(handle)


def print_interval() -> float:
    """Seconds between two lines of a progress bar: often on a terminal, seldom in a log file."""
    return 1.0 if sys.stderr.isatty() else 20.0
