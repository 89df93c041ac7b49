"""What a training loop is in the middle of: device, precision, random states, averages, schedules."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gandefense import distributed
from gandefense.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device that a config names; "auto" takes CUDA where there is one. Raises UserError for an unknown one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device {name!r} cannot train; known: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use device=cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {name!r} asked for, but this torch has no Metal device; use device=cpu")
    return device


def current_device(name: str) -> torch.device:
    """`choose_device`, and of CUDA's devices the current one from here on, whose generator `random_states` keeps."""
    device = choose_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def exponential_average(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a module's parameters and buffers.

    The decay is warmed up as min(decay, (1 + n) / (10 + n)) at step n, so that short runs do not keep their first step.

    Raises:
        UserError: a decay that does not lie in [0, 1].
    """
    require(shares={"ema_decay": decay})

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        get_ema_multi_avg_fn(min(decay, (1 + int(count)) / (10 + int(count))))(averaged, current, count)

    return AveragedModel(module, multi_avg_fn=update, use_buffers=True)


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """Learning-rate factor: linear from 0 to 1 over the first `warmup` fraction of the steps, linear to 0 after it."""
    peak = max(1.0, warmup * steps)
    return min(1.0, (step + 1) / peak, max(0.0, (steps - step) / max(1.0, steps - peak)))


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear from 0 to 1 over `warmup` steps (at most a quarter of all), then half a cosine to 0."""
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random generators; raises UserError for a negative seed."""
    if seed < 0:
        raise UserError(f"run.seed must not be negative, got {seed}")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def require(
    *,
    counts: dict[str, int] | None = None,
    positive: dict[str, float] | None = None,
    fractions: dict[str, float] | None = None,
    shares: dict[str, float] | None = None,
    not_negative: dict[str, float] | None = None,
) -> None:
    """Raise UserError unless counts are at least 1, `positive` above 0, fractions inside (0, 1), shares in [0, 1], others ≥ 0."""
    for name, value in {**(positive or {}), **(not_negative or {})}.items():
        if math.isinf(value):
            raise UserError(f"{name} must be a finite number, got {value}")
    for name, value in (counts or {}).items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    for name, value in (positive or {}).items():
        if not value > 0:
            raise UserError(f"{name} must be positive, got {value}")
    for name, value in (fractions or {}).items():
        if not 0 < value < 1:
            raise UserError(f"{name} must lie between 0 and 1, got {value}")
    for name, value in (shares or {}).items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} must lie in [0, 1], got {value}")
    for name, value in (not_negative or {}).items():
        if not value >= 0:
            raise UserError(f"{name} must not be negative, got {value}")


def random_states() -> dict[str, Any]:
    """The states of the random generators, of the current CUDA device's among them, as tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, following = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), following],
    }
    if torch.cuda.is_available():
        states["cuda"] = [torch.cuda.get_rng_state()]
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` gave, here or in another process with another CUDA device."""
    torch.set_rng_state(states["torch"].cpu())
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, following = states["python"]
    random.setstate((version, tuple(internal), following))
    if states.get("cuda") and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0].cpu())


class Means:
    """Means of training figures since they were last taken; they stay on the device until then."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, *, share: float = 1.0, ends_step: bool = True, **figures: Tensor) -> None:
        """Add one step's scalars, or those of a part of its batch.

        Args:
            share: of the batch that they are means over.
            ends_step: whether this process is done with the step.
            figures: scalars by name.
        """
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + share * value.detach()
        self.steps += ends_step

    def totals(self) -> dict[str, Tensor]:
        """The sums so far, over all processes; every process has to ask."""
        if distributed.world() == 1 or not self.sums:
            return self.sums
        (summed,) = distributed.summed([torch.stack([torch.as_tensor(total) for total in self.sums.values()])])
        return dict(zip(self.sums, summed, strict=True))

    def take(self, prefix: str = "train/") -> dict[str, float]:
        """The means by name, over all processes, and a fresh start; every process has to take them."""
        means = {f"{prefix}{name}": (total / self.steps).item() for name, total in self.totals().items()}
        self.sums, self.steps = {}, 0
        return means


def readable(measured: dict[str, float]) -> str:
    """Validation figures as a line for people: "validation: clean 0.912, flagged clean 0.050"."""
    return "validation: " + ", ".join(
        f"{name.removeprefix('validation/').replace('_', ' ')} {value:.3f}" for name, value in measured.items()
    )
