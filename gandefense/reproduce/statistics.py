"""Means over a few trainings, with Student's interval."""

from __future__ import annotations

import math
from typing import Any

from scipy import stats

from gandefense.evaluation.wording import percent, points


def student(each: list[float]) -> dict[str, Any]:
    """Mean of figures, one per seed, with Student's 95 % interval; None in its place where there is one figure only."""
    mean = sum(each) / len(each)
    if len(each) < 2:
        return {"mean": mean, "ci95": None, "each": each}
    spread = math.sqrt(sum((value - mean) ** 2 for value in each) / (len(each) - 1) / len(each))
    half = float(stats.t.ppf(0.975, len(each) - 1)) * spread
    return {"mean": mean, "ci95": [mean - half, mean + half], "each": each}


def mean_text(figure: dict[str, Any]) -> str:
    """A mean of accuracies with its interval, "61.2 % [58.1, 64.2]"."""
    span = "" if figure["ci95"] is None else f" [{100 * figure['ci95'][0]:.1f}, {100 * figure['ci95'][1]:.1f}]"
    return f"{percent(figure['mean'])}{span}"


def gain_text(figure: dict[str, Any]) -> str:
    """A mean of differences with its interval, "+1.2 points [−0.3, +2.7]"."""
    span = "" if figure["ci95"] is None else f" [{points(figure['ci95'][0])}, {points(figure['ci95'][1])}]"
    return f"{points(figure['mean'])} points{span}"
