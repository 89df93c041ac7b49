"""Interleaved timing: what is compared runs in turns, so that a disturbed machine hits both sides."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gandefense.memory import status_bytes

Work = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long to measure: `repeats` rounds, none begun after `seconds` (but one is always measured)."""

    repeats: int
    seconds: float


@dataclass(frozen=True)
class Times:
    """Seconds of every round, in order, so that the n-th entries of two of them were measured one after the other."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def ratio(self, other: Times) -> float:
        """Median over the rounds of these seconds divided by the other's."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    def combined(self, combine: Callable[..., float], *others: Times) -> Times:
        """Seconds computed round by round from these and others."""
        return Times(tuple(combine(*row) for row in zip(self.seconds, *(other.seconds for other in others), strict=True)))


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Work, device: torch.device) -> float:
    """Seconds that `work` takes."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def interleaved(works: dict[str, Work], device: torch.device, effort: Effort) -> dict[str, Times]:
    """Time works in turns: each once to warm up, then A, B, C, C, B, A, A, B, C … until the effort is spent.

    Every other round goes backwards, so that a drift of the machine's speed hits the first and the last alike.
    """
    for work in works.values():
        timed(work, device)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    start = time.perf_counter()
    for round_number in range(effort.repeats):
        if round_number > 0 and time.perf_counter() - start > effort.seconds:
            break
        order = list(works) if round_number % 2 == 0 else list(reversed(works))
        for name in order:
            seconds[name].append(timed(works[name], device))
    return {name: Times(tuple(values)) for name, values in seconds.items()}


class _Operations(TorchDispatchMode):
    """Adds up what torch's own formulae give; torch's FlopCounterMode does not allow torch.autograd.grad on an input."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def flops(work: Work) -> int:
    """Floating-point operations of the convolutions and matrix products in `work`, forward and backward."""
    with _Operations() as operations:
        work()
    return operations.total


def peak_memory(work: Work, device: torch.device) -> int | None:
    """Bytes by which `work` raises the memory in use at its peak: of the GPU, or of this process on Linux; else None.

    A process's memory is what the operating system counts: what the C library keeps for later use is in it, a little
    more or less at every run.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # hand back what earlier works freed, or it would hide what this one needs
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew (Linux, proc(5))
    except (OSError, AttributeError, TypeError):
        return None
    before = status_bytes("VmRSS")
    work()
    peak = status_bytes("VmHWM")
    return None if before is None or peak is None else max(0, peak - before)
