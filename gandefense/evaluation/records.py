"""Per-batch records on disk, so that a killed evaluation goes on where it was and ends with the same table."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gandefense.data.batches import tensor_hash
from gandefense.errors import UserError
from gandefense.files import remove_leftovers, storing, write_text
from gandefense.weights_io import load_weights, save_weights

PACKAGE = Path(__file__).parent.parent
PANEL = "panel/"  # begins the names of what only the report's pictures need
STANDING = "standing.safetensors"  # which images stand in each worst case, see `tables.standing`
# what an evaluation leaves in its folder
FOLDERS = ("records", "pictures")
OURS = ("results.json", STANDING, "report.md", "report.html", *FOLDERS, "tensorboard")


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_hash(apart: tuple[str, ...] = ()) -> str:
    """SHA-256 over the package's source as it lies on the disk, without the folders named."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in apart:
            digest.update(path.read_bytes())
    return digest.hexdigest()


_CODE = source_hash()  # when this is imported: what is edited while a process runs is not what it runs


def code_hash() -> str:
    """SHA-256 over the package's own source, so that records of other code are never mixed in."""
    return _CODE


def prepare_folder(folder: Path, *, overwrite: bool) -> None:
    """Make an output folder that this process holds; a finished one is refused, or with `overwrite` emptied of an evaluation.

    Raises:
        UserError: a finished evaluation is in it, or files of the same names that no evaluation made, or it cannot be written.
    """
    if (folder / "results.json").exists() and not overwrite:
        raise UserError(f"{folder} holds a finished evaluation; give another output folder, or overwrite=true")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One that was killed before its first record has the two empty folders, and nothing that could be lost.
        foreign = not (folder / "records" / "origin.json").is_file()
        if foreign and any((folder / name).exists() for name in OURS if name not in FOLDERS):
            raise UserError(f"{folder} was not made by an evaluation, and its files would be overwritten; give another folder")
        if overwrite and not foreign:
            for name in OURS:
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
        for name in FOLDERS:
            (folder / name).mkdir(exist_ok=True)
            remove_leftovers(folder / name)
        remove_leftovers(folder, names=OURS)
    except OSError as error:
        raise UserError(f"cannot write to the output folder {folder}: {error.strerror}") from None


def _contents(tensors: dict[str, Tensor]) -> str:
    return tensor_hash(*(tensors[name] for name in sorted(tensors)))


class Records:
    """Small tensors by (key, batch): one safetensors file each, bound to what they were made from.

    Args:
        folder: of the evaluation; its sub-folder `records` must exist.
        origin: everything that the numbers depend on, by topic; JSON-able.

    Raises:
        UserError: the folder holds records of another origin.
    """

    def __init__(self, folder: Path, origin: dict[str, Any]) -> None:
        self.folder = folder / "records"
        origin = json.loads(json.dumps(origin))
        self.fingerprint = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
        stored = self.folder / "origin.json"
        if stored.is_file():
            try:
                earlier = dict(json.loads(stored.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                raise UserError(f"{stored} is damaged; give another output folder, or overwrite=true") from None
            differing = [topic for topic in {**origin, **earlier} if origin.get(topic) != earlier.get(topic)]
            if differing:
                raise UserError(
                    f"{folder} holds records of another evaluation (different: {', '.join(differing)}); "
                    "give another output folder, or overwrite=true"
                )
        write_text(stored, json.dumps(origin, indent=1, sort_keys=True) + "\n")

    def _path(self, key: str, batch: int) -> Path:
        readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", key)[-100:].strip("_")  # file systems end names at 255 bytes
        # two keys may read alike once their slashes are gone, so their hash tells them apart
        return self.folder / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:8]}" / f"{batch:05d}.safetensors"

    def read(self, key: str, batch: int) -> dict[str, Tensor] | None:
        """A record, or None where it is missing or damaged; raises UserError for one of another origin."""
        path = self._path(key, batch)
        if not path.is_file():
            return None
        try:
            tensors, description = load_weights(path)
        except UserError:  # damaged: it is made again
            return None
        if description.get("contents") != _contents(tensors):  # a flipped bit: safetensors keeps no checksum
            return None
        if description.get("fingerprint") != self.fingerprint or description.get("key") != key:
            raise UserError(f"{path} belongs to another evaluation; give another output folder, or overwrite=true")
        return tensors

    def has(self, key: str, batch: int) -> bool:
        """Whether a whole record of this evaluation is there."""
        return self.read(key, batch) is not None

    def write(self, key: str, batch: int, tensors: dict[str, Tensor]) -> None:
        """Keep tensors, atomically."""
        path = self._path(key, batch)
        with storing(path):
            path.parent.mkdir(exist_ok=True)
        # clones, because safetensors refuses tensors that share memory
        ready = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        save_weights(path, ready, {"key": key, "fingerprint": self.fingerprint, "contents": _contents(ready)})

    def columns(self, key: str, batches: int) -> dict[str, Tensor]:
        """What the records of a key say of every image, batch after batch, pictures left out."""
        parts = [self.read(key, batch) for batch in range(batches)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0] if not name.startswith(PANEL)}

    def pictures(self, key: str) -> dict[str, Tensor]:
        """What the first batch's record keeps for the report's pictures, by name."""
        return {name.removeprefix(PANEL): tensor for name, tensor in self.read(key, 0).items() if name.startswith(PANEL)}
