"""Figures as text, and tables of it: the same on the terminal, in Markdown and on the page."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field
from typing import Any

from gandefense.evaluation.cells import NO_RESTORER

UNKNOWN = "–"


@dataclass
class Table:
    """A table under its own heading; the cells are text already.

    Attributes:
        name: of its own, for links and for the plots that belong to it.
        title: its heading.
        note: what a reader has to know.
        header: one text per column.
        rows: one text per column each.
        shares: column → a fraction per row (or None), where the page may draw a bar as long as the figure.
    """

    name: str
    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    shares: dict[int, list[float | None]] = field(default_factory=dict)


def percent(share: float) -> str:
    """0.123 as "12.3 %"."""
    return f"{100 * share:.1f} %"


def share(value: float | None) -> str:
    """A fraction as a percentage; a dash for None."""
    return UNKNOWN if value is None else percent(value)


def interval(figure: dict[str, Any] | None) -> str:
    """Accuracy with its 95 % interval, "61.2 % [58.1, 64.2]"."""
    if figure is None or figure["accuracy"] is None:
        return UNKNOWN
    low, high = figure["ci95"]
    return f"{percent(figure['accuracy'])} [{100 * low:.1f}, {100 * high:.1f}]"


def points(difference: float) -> str:
    """A difference of two fractions in percentage points, with its sign: "+0.3", "−12.0", "0.0"."""
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def p_value(p: float) -> str:
    """A p-value, "p = 0.61", "p = 0.012" or "p < 0.001"."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"


def gain(figure: dict[str, Any] | None, bare: float | None, *, unit: str = " points") -> str:
    """What a figure gains over the classifier alone, with McNemar's test: "+0.3 points, p = 0.61"; a dash where untested.

    A mean over several submissions of a randomised defence comes without the test, which is one of single answers.
    """
    if figure is None or figure.get("mcnemar") is None or figure["accuracy"] is None or bare is None:
        return UNKNOWN
    gained = f"{points(figure['accuracy'] - bare)}{unit}"
    return gained if figure.get("resubmissions", 1) > 1 else f"{gained}, {p_value(figure['mcnemar']['p'])}"


def number(value: Any, digits: int = 3) -> str:
    """A number with a fixed number of decimals; text is passed on."""
    if value is None:
        return UNKNOWN
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def pixels(eps: float) -> str:
    """A budget in pixel units as "8/255"."""
    return f"{eps * 255:.3g}/255"


def budget(row: dict[str, Any]) -> str:
    """eps as "8/255", a noise level or an L2 radius as it is, nothing for clean images."""
    if row["attack"] == "none":
        return UNKNOWN
    return pixels(row["eps"]) if row["norm"] == "linf" else f"{row['eps']:g}"


def view(row: dict[str, Any]) -> str:
    """What an attacker looked at; nothing under gray_box, where there is one way only."""
    return UNKNOWN if row["threat"] == "gray_box" else row["view"]


def shown_name(restorer: str) -> str:
    """A restorer's name for readers."""
    return "none (classifier alone)" if restorer == NO_RESTORER else restorer


def aligned_right(header: list[str], rows: list[list[str]]) -> list[bool]:
    """Which columns hold figures only: those whose cells all begin with a digit or a sign, or say that there is none."""
    columns = zip(header, *rows, strict=True)
    known = ([cell for cell in cells if cell not in (UNKNOWN, "missing")] for _, *cells in columns)
    return [bool(cells) and all(cell[:1] in set("0123456789+−") for cell in cells) for cells in known]


def typed() -> str:
    """The program's command line, for a results file; bytes that are no text become question marks."""
    return os.fsencode(shlex.join(sys.argv)).decode("utf-8", errors="replace")
