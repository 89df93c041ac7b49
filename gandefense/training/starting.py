"""Weights that a training starts from instead of random ones: those of an earlier stage, or of a shipped network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from gandefense import zoo
from gandefense.attacks.cache import fingerprint
from gandefense.errors import UserError
from gandefense.weights_io import fill, load_weights

MADE_FROM = "the weights to start from"  # as a run names them in its config.yaml


def begin_from(
    start: str | None,
    network: nn.Module,
    resume: str | None,
    wanted: dict[str, Any] | None = None,
    usual: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Fill a network from another one's weights; a run that has a checkpoint needs them no more.

    Args:
        start: zoo name, run folder or safetensors file; None: the network stays as it is.
        network: what is filled.
        resume: the run that goes on, or None.
        wanted: entries that the description of those weights must have, such as {"kind": "gan"}.
        usual: what "network" stands for where an older description does not say it.

    Returns:
        A fingerprint of the weights, for `open_run`; empty where none were taken.

    Raises:
        UserError: no such weights, or weights of something else.
    """
    if start is None or (resume is not None and (Path(resume) / "checkpoint.pt").is_file()):
        return {}
    path = zoo.find(start)
    tensors, about = load_weights(path)
    if isinstance(about.get("network"), dict):
        about["network"] = {**(usual or {}), **about["network"]}
    for name, value in (wanted or {}).items():
        if about.get(name) != value:
            raise UserError(f"start={start}: its {name} is {about.get(name)!r}, this training's {value!r}")
    fill(network, tensors, source=path)
    return {MADE_FROM: fingerprint(network)}
