"""Files and folders: atomic writes, refusals of the file system in one line, numbered run folders, locks."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gandefense.errors import StorageError, UserError

LOCK = ".lock"  # only where folders themselves cannot be locked
LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # how `tempfile` names what `write_atomically` asks for

# what a file system says when it is full, over quota, read-only, forbidden or broken
REFUSALS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENOTDIR", "EISDIR", "ENAMETOOLONG")
    if hasattr(errno, name)
}


def refusal(error: BaseException | None) -> str | None:
    """Why the file system refused, in its own words, when that is what an error comes from; else None.

    torch raises a RuntimeError of its own while it handles the OSError, and safetensors only quotes the number.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in REFUSALS:
            return os.strerror(error.errno)
        quoted = re.search(r"os error (\d+)", str(error)) if type(error).__name__ == "SafetensorError" else None
        if quoted and int(quoted[1]) in REFUSALS:
            return os.strerror(int(quoted[1]))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Tell a full disk, a read-only folder and their like in one line; other errors pass unchanged.

    Args:
        path: what is being written.

    Raises:
        StorageError: the file system refused.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise StorageError(f"cannot write {path}: {reason}") from None


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it, so that a reader sees the old or the new file whole.

    The contents reach the disk before the new name does: not even a power cut leaves half a file.

    Raises:
        StorageError: the disk is full, the folder read-only or forbidden; what was there before stays.
    """
    with storing(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")  # file systems end names at 255 bytes
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8") and None)


def append_text(path: Path, text: str) -> None:
    """Add to the end of a text file; raises StorageError where the file system refuses."""
    with storing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def remove_leftovers(folder: Path, *, names: Sequence[str] | None = None) -> None:
    """Remove what killed `write_atomically` calls left in a folder; nobody else may be writing there.

    Args:
        folder: one of ours, gone through with its sub-folders; with `names` anybody's, whose sub-folders stay alone.
        names: only what was to become one of these files.
    """
    for path in folder.rglob(".*") if names is None else folder.glob(".*"):
        found = LEFTOVER.fullmatch(path.name)
        if found and (names is None or found[1] in names) and path.is_file():
            path.unlink(missing_ok=True)


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
    handles = [os.open(folder, os.O_RDONLY)]
    try:
        try:
            _lock(handles[0], folder, wait=wait)
        except OSError:  # some network file systems lock nothing but files that are open for writing
            try:
                handles.append(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644))
                _lock(handles[1], folder, wait=wait)
            except OSError as error:
                raise UserError(f"cannot lock {folder}: {error.strerror}; take a folder on another file system") from None
        yield
    finally:
        for handle in handles:
            os.close(handle)


def _lock(handle: int, folder: Path, *, wait: bool) -> None:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise UserError(f"{folder} is in use by another process") from None
        print(f"waiting for another process that is at work in {folder}", file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)


def print_interval() -> float:
    """Seconds between two lines of a progress bar: often on a terminal, seldom in a log file."""
    return 1.0 if sys.stderr.isatty() else 20.0
