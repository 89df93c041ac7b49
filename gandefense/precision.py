"""Arithmetic of a training: bf16 autocast where the hardware computes in bf16, float32 where bf16 would be emulated."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from gandefense.errors import UserError

PRECISIONS = ("auto", "bf16", "float32")


def _computes_bf16(device: torch.device) -> bool:
    """Whether bf16 pays on a device. On CPUs without such instructions it is emulated, ten times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in probes)


def resolve(device: torch.device, precision: str) -> str:
    """ "bf16" or "float32" for a precision as a config names it; "auto" takes bf16 where the device computes in it.

    Raises:
        UserError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if precision == "auto":
        return "bf16" if _computes_bf16(device) else "float32"
    return precision


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bf16 autocast, or none when `precision` comes to float32; raises UserError for an unknown one."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve(device, precision) == "bf16")
