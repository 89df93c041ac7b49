"""Curves drawn by matplotlib, where it is installed: accuracy against budget, steps and EOT samples, and detectors' ROC."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.figures import LONGEST_NAME
from gandefense.evaluation.threat_tables import attack_of
from gandefense.evaluation.wording import budget, number, pixels, shown_name

# Okabe and Ito's colours, which colour-blind readers can tell apart; grey is for the classifier alone
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, SOFT = "#4a4a4a", "#8a8a8a"
MARKERS = ("s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", ":")
DPI = 200  # shown at about half its pixels, a plot is sharp on any screen
SPREAD = 8  # an axis whose largest value is so many times its smallest one is logarithmic
LONGEST = 45  # letters of a name in a legend
NOT_DRAWN = "Curves are drawn where matplotlib is installed: pip install 'gandefense[plots]'."


@dataclass(frozen=True)
class Kind:
    """What an accuracy curve varies: its name in results, the key of its points, and how it is called."""

    name: str
    curve: str
    key: str
    title: str
    heading: str
    axis: str

    def shown(self, value: float) -> str:
        """A point's place as text."""
        return pixels(value) if self.key == "eps" else f"{value:g}"

    def place(self, value: float) -> float:
        """A point's place on the axis."""
        return value * 255 if self.key == "eps" else value


KINDS = (
    Kind("curve_eps", "eps", "eps", "Accuracy against the budget", "eps", "budget eps, in 1/255"),
    Kind("curve_steps", "steps", "steps", "Accuracy against the attack's steps", "steps", "steps of the attack"),
    Kind("curve_eot", "eot", "samples", "Accuracy against EOT samples", "samples", "gradients averaged at every step (EOT)"),
)


@dataclass
class Plot:
    """A drawn plot: its file name without .png, the table it belongs to, what it shows, and the bytes of the PNG."""

    name: str
    table: str
    title: str
    png: bytes


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def curves_of(results: dict[str, Any], kind: Kind) -> dict[str, dict[str, Any]]:
    """The curves of one kind by restorer, those without points left out; the classifier alone first."""
    curves = results.get("curves", {})
    order = sorted(curves, key=lambda name: name != NO_RESTORER)
    return {name: curves[name][kind.curve] for name in order if curves[name].get(kind.curve, {}).get("points")}


def described(restorer: str, curve: dict[str, Any]) -> str:
    """The attack of a curve: "pgd-20, view detached"."""
    return curve["title"] if restorer == NO_RESTORER else f"{curve['title']}, view {curve['view']}"


def rocs_of(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The detection entries that have a ROC, by restorer."""
    found = {
        restorer: [entry for entry in detection["attacks"] if entry.get("roc")]
        for restorer, detection in results.get("detection", {}).items()
    }
    return {restorer: entries for restorer, entries in found.items() if entries}


def looks_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by restorer, the same in every plot; the classifier alone is grey."""
    own = cycle(zip(COLOURS, MARKERS, strict=True))
    return {name: (GREY, "o") if name == NO_RESTORER else next(own) for name in names}


def draw(results: dict[str, Any]) -> list[Plot]:
    """Every plot that the results have figures for; none without matplotlib."""
    if not available():
        return []
    plots, looks, classes = [], looks_of(results.get("curves", {})), results["data"].get("classes")
    for kind in KINDS:
        if curves := curves_of(results, kind):
            plots.append(Plot(kind.name, kind.name, kind.title, accuracy_plot(kind, curves, looks, classes)))
    for i, (restorer, entries) in enumerate(rocs_of(results).items()):
        name, title = f"roc_{i:02d}_{_file_name(restorer)}", f"ROC of the detector of {restorer}"
        plots.append(Plot(name, "detection", title, roc_plot(restorer, entries)))
    return plots


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Any, Any, io.BytesIO]]:
    """An empty figure of so many inches with its axes; on leaving, the file holds it as PNG. No state of pyplot is touched."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    file = io.BytesIO()
    # Whatever a user's matplotlibrc says; and names are no formulae.
    with style.context(["default", {"text.parse_math": False, "font.size": 9, "axes.edgecolor": SOFT}]):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        yield figure, axes, file
        figure.savefig(file, format="png", metadata={"Software": None})


def _file_name(restorer: str) -> str:
    """A restorer's name, which may be a path, as one that a file or folder can have; the end of a long one."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", restorer)[-LONGEST_NAME:].strip("_.")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def accuracy_plot(kind: Kind, curves: dict[str, dict[str, Any]], looks: dict[str, tuple[str, str]], classes: int | None) -> bytes:
    """Accuracy with its 95 % band against what `kind` varies, a line per restorer, as PNG.

    Args:
        kind: one of KINDS.
        curves: see `curves_of`; at least one.
        looks: see `looks_of`.
        classes: for the level of chance; None leaves it out.
    """
    with _axes(5.6, 3.9) as (figure, axes, file):
        for name, curve in curves.items():
            colour, marker = looks[name]
            points = sorted(curve["points"], key=lambda point: point[kind.key])
            places = [kind.place(point[kind.key]) for point in points]
            low, high = ([100 * point["ci95"][end] for point in points] for end in (0, 1))
            accuracies = [100 * point["accuracy"] for point in points]
            axes.fill_between(places, low, high, color=colour, alpha=0.16, linewidth=0)
            label = f"{_short(shown_name(name))} · {described(name, curve)}"
            # broken and on top, so that a restorer's line on the same spots is seen through it
            own = {"linestyle": "-.", "zorder": 3} if name == NO_RESTORER else {}
            style = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.8, "clip_on": False, **own}
            axes.plot(places, accuracies, label=label, **style)
        if classes is not None:
            axes.axhline(100 / classes, color=SOFT, linestyle="--", linewidth=1.2, label=f"chance, {100 / classes:g} %")
        _place_ticks(axes, sorted({kind.place(point[kind.key]) for curve in curves.values() for point in curve["points"]}))
        axes.set(ylim=(0, 100), xlabel=kind.axis, ylabel="accuracy (%)")
        figure.legend(loc="outside upper left", frameon=False, fontsize=8.5)
    return file.getvalue()


def _place_ticks(axes: Any, places: list[float]) -> None:
    """Ticks at the measured points, as far as their numbers do not run into each other; logarithmic where they spread wide."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    positive = [place for place in places if place > 0]
    if positive and positive[-1] / positive[0] >= SPREAD:
        if places[0] <= 0:
            axes.set_xscale("symlog", base=2, linthresh=positive[0])
        else:
            axes.set_xscale("log", base=2)
    transform = axes.transScale.transform
    across = [transform((place, 1))[0] for place in places]
    kept = []
    for place, at in zip(places, across, strict=True):
        if not kept or at - transform((kept[-1], 1))[0] > 0.05 * (across[-1] - across[0]):
            kept.append(place)
    axes.set_xlim(places[0], places[-1] if len(places) > 1 else places[0] + 1)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def roc_plot(restorer: str, entries: list[dict[str, Any]]) -> bytes:
    """The ROC of one restorer's detector, a line per attack, as PNG; the legend gives each area.

    Args:
        restorer: its name.
        entries: of results["detection"][restorer]["attacks"], each with "roc".
    """
    with _axes(5.6, 3.9 + 0.165 * len(entries)) as (figure, axes, file):
        looks = [(colour, line) for line in STYLES for colour in (*COLOURS, GREY)]
        axes.plot([0, 1], [0, 1], color=SOFT, linestyle=(0, (1, 3)), linewidth=1.2)
        for i, entry in enumerate(entries):
            colour, line = looks[i % len(looks)]
            seen = "" if entry["threat"] == "gray_box" else f", {_short(entry['view'])}"
            label = f"{number(entry['auroc'])}  {attack_of(entry)} {budget(entry)}{seen}"
            axes.plot(entry["roc"]["fpr"], entry["roc"]["tpr"], color=colour, linestyle=line, linewidth=1.8, label=label)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="false positives, share of clean images")
        axes.set_ylabel("share of attacked images flagged")
        axes.set_title(_short(restorer), fontsize=10, fontweight="bold")
        legend = figure.legend(loc="outside lower left", frameon=False, fontsize=8.5, title="AUROC, attack", alignment="left")
        legend.get_title().set_fontweight("bold")
    return file.getvalue()


def log_curves(folder: Path, results: dict[str, Any]) -> None:
    """Write the curves as scalars, and folder/pictures as images, into TensorBoard event files under folder/tensorboard.

    Every restorer is a run of its own, so that TensorBoard lays their curves over each other; a scalar's step is
    eps · 255 (rounded), the number of steps, or the number of EOT samples.
    """
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    target = folder / "tensorboard"
    shutil.rmtree(target, ignore_errors=True)  # of an earlier report on the same evaluation
    for restorer, curves in results.get("curves", {}).items():
        with SummaryWriter(str(target / _file_name(restorer))) as writer:
            for kind in KINDS:
                for point in curves.get(kind.curve, {}).get("points", []):
                    writer.add_scalar(f"accuracy/{kind.curve}", point["accuracy"], round(kind.place(point[kind.key])))
    pictures = sorted((folder / "pictures").glob("*.png"))
    if pictures:
        with SummaryWriter(str(target / "pictures")) as writer:
            for path in pictures:
                writer.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), 0, dataformats="HWC")
