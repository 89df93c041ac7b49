"""How much memory was taken, and batches that get smaller when it runs out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def ran_out(error: RuntimeError) -> bool:
    """Whether an error says that there is no memory left, on a GPU or in the machine."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text or "not enough memory" in text


def status_bytes(field: str) -> int | None:
    """What Linux counts for this process, in bytes: its memory now ("VmRSS") or at its peak ("VmHWM"); elsewhere None."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def peak_so_far(device: torch.device) -> int | None:
    """The most bytes that were in use so far: by tensors on a GPU, by the whole process on Linux; else None."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status_bytes("VmHWM")


def in_halves(work: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Call `work` on a batch; when memory runs out, on its halves, and so on down to one image.

    Args:
        work: takes tensors (B, …) and gives tensors (B, …).
        tensors: (B, …), all of the same B.

    Raises:
        RuntimeError: memory does not even do for one image, and whatever else `work` raises.
    """
    try:
        return work(*tensors)
    except RuntimeError as error:
        count = len(tensors[0])
        if not ran_out(error) or count < 2:
            raise
        warnings.warn(f"memory does not do for {count} images at a time; going on with half as many", stacklevel=2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = count // 2
    halves = [in_halves(work, *(tensor[part] for tensor in tensors)) for part in (slice(middle), slice(middle, None))]
    return tuple(torch.cat(parts) for parts in zip(*halves, strict=True))
