"""How cost grows with batch, number of labels, number of Fusion Blocks and resolution; networks of random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gandefense.benchmark.settings import QUICK_SIZE, BenchmarkConfig, GrowthConfig, Row
from gandefense.benchmark.subjects import random_gan, random_trn
from gandefense.benchmark.timing import Effort, interleaved
from gandefense.restorers.base import Restorer

PART = "growth"
ROUNDS = 3
LABELS, BLOCKS, BATCH = 10, 4, 8  # where they are not varied


@dataclass
class Curve:
    """Seconds an image of one network against what is varied."""

    network: str
    varied: str
    places: list[int]
    seconds: list[float]


def measure(config: BenchmarkConfig, device: torch.device, effort: Effort) -> tuple[list[Row], list[Curve]]:
    """The curves, and for each a row: how much an image costs at its last point, divided by its first."""
    growth = config.growth
    if config.quick:
        growth = GrowthConfig([1, 2], [2, 5], [1, 2], [size for size in growth.resolutions if size <= QUICK_SIZE] or [32])
    effort = Effort(min(effort.repeats, ROUNDS), effort.seconds)
    trn = random_trn(labels=LABELS, blocks=BLOCKS, device=device)
    gan = random_gan(size=32, device=device)
    curves = [
        _curve("TRN", "images in a batch", growth.batches, lambda n: (trn, _images(n, 32, device)), effort, device),
        _curve("GAN", "images in a batch", growth.batches, lambda n: (gan, _images(n, 32, device)), effort, device),
        _curve(
            *("TRN", "classes K", growth.labels),
            lambda k: (random_trn(labels=k, blocks=BLOCKS, device=device), _images(BATCH, 32, device)),
            *(effort, device),
        ),
        _curve(
            *("TRN", "Fusion Blocks N", growth.blocks),
            lambda n: (random_trn(labels=LABELS, blocks=n, device=device), _images(BATCH, 32, device)),
            *(effort, device),
        ),
        _curve("TRN", "pixels a side", growth.resolutions, lambda size: (trn, _images(1, size, device)), effort, device),
        _curve(
            *("GAN", "pixels a side", growth.resolutions),
            lambda size: (random_gan(size=size, device=device), _images(1, size, device)),
            *(effort, device),
        ),
    ]
    return [_row(curve) for curve in curves], curves


def _images(count: int, size: int, device: torch.device) -> Tensor:
    return torch.rand(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)


def _curve(network: str, varied: str, places: list[int], make, effort: Effort, device: torch.device) -> Curve:
    def work(restorer: Restorer, images: Tensor):
        def run() -> None:
            with torch.no_grad():
                restorer(images)

        return run

    counts, works = {}, {}
    for place in places:
        restorer, images = make(place)
        counts[place], works[str(place)] = len(images), work(restorer, images)
    times = interleaved(works, device, effort)
    return Curve(network, varied, places, [times[str(place)].median / counts[place] for place in places])


def _row(curve: Curve) -> Row:
    first, last = curve.places[0], curve.places[-1]
    return Row(
        *(PART, f"{curve.network}, {curve.varied} {first} → {last}", curve.seconds[-1], 1, curve.seconds[-1] / curve.seconds[0]),
        ratio_to=f"an image at {first}",
        note=f"{curve.varied}: × {last / first:g}" + (f", pixels: × {(last / first) ** 2:g}" if "side" in curve.varied else ""),
    )


def draw(curves: list[Curve], path: Path) -> bool:
    """Draw the curves into a PNG; False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    kinds = list(dict.fromkeys(curve.varied for curve in curves))
    figure = Figure(figsize=(3.2 * len(kinds), 3.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, varied in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for curve in curves:
            if curve.varied == varied:
                colour, marker = ("#0072B2", "s") if curve.network == "TRN" else ("#D55E00", "^")
                milliseconds = [1000 * value for value in curve.seconds]
                axes.plot(curve.places, milliseconds, color=colour, marker=marker, label=curve.network)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        places = sorted({place for curve in curves if curve.varied == varied for place in curve.places})
        axes.set_xticks(places, [str(place) for place in places])
        axes.minorticks_off()
        axes.set(xlabel=varied, ylabel="milliseconds an image")
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.legend(frameon=False)
    figure.savefig(path, format="png")
    return True
