"""Networks on disk: safetensors with the recipe in the metadata, written atomically, read without unpickling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gandefense.errors import UserError
from gandefense.files import write_atomically

FORMAT = "gandefense-1"


def save_weights(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and a JSON-able description as one safetensors file."""
    from safetensors.torch import save_file

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "gandefense": json.dumps(metadata)}
    write_atomically(path, lambda temporary: save_file(ready, temporary, metadata=header))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_weights`: tensors and their description.

    Half-precision tensors come back as float32.

    Raises:
        UserError: the file is missing, damaged, or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"weights not found: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({str(error).splitlines()[0]}); copy or train it again"
        ) from None
    try:
        if header.get("format") != FORMAT:
            raise ValueError
        metadata = json.loads(header["gandefense"])
        if not isinstance(metadata, dict):
            raise ValueError
    except (KeyError, ValueError):
        raise UserError(f"{path} holds no gandefense network (its metadata has no {FORMAT} description)") from None
    half = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in tensors.items()}, metadata


def fill(module: torch.nn.Module, tensors: dict[str, Tensor], *, source: str | Path) -> None:
    """Load tensors into a module; raises UserError when names or shapes do not fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"{source} does not fit the network that its description names: {detail}") from None
