"""The file checkpoint.pt of a run: everything that a training needs to go on, as tensors and plain containers."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from gandefense.errors import UserError
from gandefense.files import write_atomically
from gandefense.training.state import random_states, restore_random_states


def write(path: Path, kind: str, config: dict[str, Any], parts: dict[str, Any], step: int, extra: dict[str, Any]) -> None:
    """Write a checkpoint atomically, with the states of all random generators.

    Args:
        path: of the file.
        kind: of the run, "trn" …
        config: the run's.
        parts: modules, averages and optimisers by name; tensors or plain containers stand for themselves.
        step: number of steps done.
        extra: what else a loop wants to find again.

    Raises:
        StorageError: a full disk; an earlier checkpoint stays.
    """
    states = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}
    state = {"kind": kind, "config": config, "parts": states, "step": step, "extra": extra, "random": random_states()}

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given the path, torch would not tell why it could not write
            torch.save(state, file)

    write_atomically(path, fill)


def read(path: Path, kind: str, parts: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Fill the parts and the random generators from a checkpoint.

    Args:
        path: of the file.
        kind: of the run that asks.
        parts: modules, averages and optimisers by name, the same as were written.

    Returns:
        The number of steps done, and the loop's extra values.

    Raises:
        UserError: the file is damaged, foreign, holds code, or does not fit.
    """
    try:
        saved = _load(path)
        if saved["kind"] != kind or set(saved["parts"]) != set(parts):
            raise KeyError("parts")
        if type(saved["step"]) is not int or saved["step"] < 0 or not isinstance(saved["extra"], dict):
            raise KeyError("step")
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        restore_random_states(saved["random"])
        return saved["step"], saved["extra"]
    except Exception as error:  # torch.load fails in many ways on a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch would advise to load it with the code in it
            reason = "it does not hold tensors and plain values alone"
        raise UserError(
            f"{path} is damaged or of another run ({reason[:150]}); move it away to start this run from step 0"
        ) from None


def _load(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("it is compressed")  # and may be of any size; ours never are
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"wrong checksum of {damaged}")
    with warnings.catch_warnings():  # torch's remarks on a foreign file help nobody
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)
