"""Networks on disk: safetensors with the recipe in the metadata, written atomically, read without unpickling."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gandefense.errors import UserError, reason
from gandefense.files import write_atomically

FORMAT = "gandefense-1"
LARGEST_NUMBER = 1e30  # of thresholds and the like, which single precision can hold
LARGEST_SIZE = 1024  # of any number in a network's description: channels, pixels, blocks

Module = TypeVar("Module", bound=nn.Module)


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
    from safetensors import safe_open

    if not os.path.isfile(path):
        raise UserError(f"weights not found: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # a foreign file may hold types and shapes of which torch says so in many ways
        raise UserError(f"{path} is not a whole safetensors file ({reason(error)}); copy or train it again") from None
    try:
        if header.get("format") != FORMAT:
            raise ValueError
        metadata = json.loads(header["gandefense"])
        if not isinstance(metadata, dict):
            raise ValueError
    except (KeyError, ValueError, RecursionError):
        raise UserError(f"{path} holds no gandefense network (its metadata has no {FORMAT} description)") from None
    half = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in tensors.items()}, metadata


def rebuild(build: Callable[..., Module], options: Any, tensors: dict[str, Tensor], *, source: str | Path) -> Module:
    """A network from its description and its tensors, both from a file that may come from anywhere.

    It is planned on torch's meta device first, which has shapes but no memory: a description that asks for a network of
    another size than the file's is refused before anything is allocated.

    Args:
        build: a module class, or a function that makes a module.
        options: what a file says are its keyword arguments.
        tensors: the file's.
        source: of the error messages.

    Raises:
        UserError: options that are none, numbers above LARGEST_SIZE, or tensors that do not fit or are not finite.
    """
    check_sizes(options, source=source)
    try:
        with torch.device("meta"):
            plan = build(**options)
        shapes = {name: tensor.shape for name, tensor in plan.state_dict().items()}
    except UserError:
        raise
    except Exception as error:  # what a class says about wrong arguments
        raise UserError(f"{source}: its description of the network is incomplete ({reason(error)})") from None
    if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        name = next(name for name in [*shapes, *tensors] if name not in tensors or tensors[name].shape != shapes.get(name))
        wanted = tuple(shapes[name]) if name in shapes else "none"
        found = tuple(tensors[name].shape) if name in tensors else "none"
        raise UserError(
            f"{source} does not fit the network that its description names: {name} should be {wanted}, the file has {found}"
        )
    network = build(**options)
    fill(network, tensors, source=source)
    return network


def check_sizes(options: Any, *, source: str | Path) -> None:
    """Raise UserError unless a description's options are named plain values whose numbers no network would exceed."""
    if not isinstance(options, dict):
        raise UserError(f"{source}: its description of the network is incomplete (no options by name)")
    for name, value in options.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not abs(number) <= LARGEST_SIZE:
                raise UserError(f"{source}: its description asks for {name}={number}; the largest size is {LARGEST_SIZE}")


def finite_number(value: Any, name: str, *, source: str | Path, infinite: bool = False) -> float:
    """A number of a description; raises UserError for anything else, for NaN and, unless allowed, for infinity."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if known and (abs(value) <= LARGEST_NUMBER or (infinite and abs(value) == math.inf)):  # NaN is in neither
        return value
    raise UserError(f"{source}: its {name} must be a number, and no larger than {LARGEST_NUMBER:g}")


def fill(module: nn.Module, tensors: dict[str, Tensor], *, source: str | Path) -> None:
    """Load tensors into a module; raises UserError when names or shapes do not fit, or a value is NaN or infinite."""
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not tensor.isfinite().all():
            raise UserError(f"{source}: {name} contains NaN or infinite values")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"{source} does not fit the network that its description names: {detail}") from None
