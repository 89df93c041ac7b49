"""What a benchmark is asked to measure, and one line of its table."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from gandefense.benchmark.timing import Effort
from gandefense.config import DataConfig
from gandefense.errors import UserError
from gandefense.training.state import require

PARTS = ("maps", "restorers", "attacks", "training", "evaluation", "growth")
QUICK_SIZE = 64  # with quick=true, resolutions above it are left out


@dataclass
class GrowthConfig:
    """Where the growth curves are measured: networks of random weights, one thing varied at a time."""

    batches: list[int] = field(default_factory=lambda: [1, 4, 16, 64])  # images in a batch, at 32×32
    labels: list[int] = field(default_factory=lambda: [2, 5, 10, 20, 50])  # K, and with it the gradient maps of TRN
    blocks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])  # Fusion Blocks of TRN
    resolutions: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])  # one image each


@dataclass
class BenchmarkConfig:
    """tools/benchmark.py"""

    parts: list[str] = field(default_factory=lambda: list(PARTS))  # what to measure; see PARTS
    trn: str = "cifar10/trn"  # zoo name, run folder or safetensors file
    gan: str = "cifar10/gan"  # same
    data: DataConfig = field(default_factory=lambda: DataConfig(download=False))  # test images; random ones where none lie
    device: str = "auto"  # auto, cpu, cuda, cuda:1 …
    precision: str = "auto"  # of training and of the maps' second table: bf16 where the device computes in it, or float32
    batch_size: int | None = None  # images in a batch; null: 32 on a CPU, 256 on a GPU
    repeats: int = 5  # rounds of every comparison
    seconds: float = 15.0  # after which a comparison begins no further round
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    seed: int = 0  # of random weights and images
    folder: str = "runs"  # a new numbered folder is made in here …
    output: str | None = None  # … unless this folder is named
    quick: bool = False  # one round of small batches: shows that everything runs; its figures mean nothing


@dataclass
class Row:
    """One line of the table.

    Attributes:
        part: which part of the benchmark it belongs to.
        name: what was measured.
        seconds: median seconds of one batch; None for a ratio alone.
        images: in that batch.
        ratio: the figure that counts, divided by what `ratio_to` names.
        ratio_to: what the ratio compares with.
        target: what the ratio should be: ("at most", 0.6) or ("at least", 100).
        memory: bytes by which the memory in use rose at its peak; None where it was not measured.
        note: what a reader must know.
    """

    part: str
    name: str
    seconds: float | None = None
    images: int = 1
    ratio: float | None = None
    ratio_to: str = ""
    target: tuple[str, float] | None = None
    memory: int | None = None
    note: str = ""

    @property
    def images_per_second(self) -> float | None:
        """Images a second; None for a ratio alone."""
        return self.images / self.seconds if self.seconds else None

    @property
    def met(self) -> bool | None:
        """Whether the ratio meets its target; None without one."""
        if self.target is None or self.ratio is None:
            return None
        kind, value = self.target
        return self.ratio <= value if kind == "at most" else self.ratio >= value


def check(config: BenchmarkConfig) -> None:
    """Find mistakes before any work.

    Raises:
        UserError: an unknown part, an empty list, a number out of range.
    """
    if not config.parts:
        raise UserError(f"parts is empty; known: {', '.join(PARTS)}")
    for part in config.parts:
        if part not in PARTS:
            raise UserError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    require(counts={"repeats": config.repeats}, positive={"seconds": config.seconds})
    if config.batch_size is not None:
        require(counts={"batch_size": config.batch_size})
    growth = config.growth
    for name in ("batches", "labels", "blocks", "resolutions"):
        values = getattr(growth, name)
        if not values:
            raise UserError(f"growth.{name} is empty; name at least one number")
        require(counts={f"growth.{name}": min(values)})
    if min(growth.labels) < 2:
        raise UserError(f"growth.labels: a classifier has at least 2 classes, got {min(growth.labels)}")
    if any(size < 32 or size & (size - 1) for size in growth.resolutions):
        raise UserError(f"growth.resolutions are powers of two from 32 on, got {growth.resolutions}")


def effort(config: BenchmarkConfig) -> Effort:
    """How long every comparison is measured."""
    return Effort(1, 0.0) if config.quick else Effort(config.repeats, config.seconds)


def batch_size(config: BenchmarkConfig, device: torch.device) -> int:
    """Images in a batch."""
    if config.quick:
        return 2
    return config.batch_size or (256 if device.type == "cuda" else 32)
