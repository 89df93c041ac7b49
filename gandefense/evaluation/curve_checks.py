"""Checks of curves: accuracy against budget, steps and EOT samples."""

from __future__ import annotations

from typing import Any

from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.metrics import clearly_above
from gandefense.evaluation.wording import percent, pixels

HUGE_EPS, LEAST_HUGE_EPS = 128 / 255, 64 / 255  # a budget that can hide any image, and the least that is taken for it
CHANCE_MARGIN = 0.05

Finding = dict[str, Any]  # "name", "fired", "text"
Figure = dict[str, Any]  # at least "accuracy" and "ci95"; a curve: "title" and "points", figures themselves


def finding(name: str, fired: bool, text: str) -> Finding:
    """One check's outcome, in plain words."""
    return {"name": name, "fired": bool(fired), "text": text}


def larger_eps(subject: str, curve: Figure) -> Finding:
    """A larger budget must not do less harm; `curve` has "title" and "points"."""
    name = "larger_eps"
    lowest, *others = sorted(curve["points"], key=lambda point: point["eps"])
    said = f"{subject}, {curve['title']}"
    for point in others:
        if clearly_above(point, lowest):
            low, high = (f"{percent(p['accuracy'])} at {pixels(p['eps'])}" for p in (lowest, point))
            return finding(
                name,
                True,
                f"{said}: accuracy rises from {low} to {high}; a larger eps must not do less harm, so gradients mislead.",
            )
        lowest = min(lowest, point, key=lambda point: point["accuracy"])
    return finding(name, False, f"{said}: a larger eps never does less harm beyond the intervals, as it should be.")


def huge_eps(subject: str, curve: Figure, classes: int) -> Finding:
    """With a budget that can hide any image, no classifier may stay above chance; `curve` as in `larger_eps`."""
    name = "huge_eps"
    largest = max(curve["points"], key=lambda point: point["eps"])
    at_hand = [point for point in curve["points"] if abs(point["eps"] - HUGE_EPS) < 0.5 / 255]
    point, said = (at_hand[0] if at_hand else largest), f"{subject}, {curve['title']}"
    if point["eps"] < LEAST_HUGE_EPS - 1e-9:
        return finding(
            name,
            False,
            f"{said}: the curve ends at {pixels(point['eps'])}, so whether a huge eps reaches chance is not measured.",
        )
    said += f": {percent(point['accuracy'])} at {pixels(point['eps'])}, chance is {percent(1 / classes)}"
    if point["accuracy"] > 1 / classes + CHANCE_MARGIN:
        return finding(name, True, f"{said}; a budget that can hide any image must get there, so the attack is too weak.")
    return finding(name, False, f"{said}: the attack gets there, as it should.")


def still_falling(subject: str, curve: Figure, what: str) -> Finding:
    """Where the last few steps or samples still did clear harm, more would do more.

    Args:
        subject: whose curve it is.
        curve: with "title" and "points".
        what: what the points vary, "steps" or "samples".
    """
    *_, before, last = sorted(curve["points"], key=lambda point: point[what])
    said = f"{subject}, {curve['title']}: from {before[what]} to {last[what]} {what}"
    moved = f"{percent(before['accuracy'])} become {percent(last['accuracy'])}"
    if clearly_above(before, last):
        return finding(
            "still_falling", True, f"{said}, {moved}; the attack has not converged, and more {what} would do more harm."
        )
    return finding("still_falling", False, f"{said}, {moved}: no clear harm from more.")


def run(curves: dict[str, dict[str, Figure]], classes: int | None) -> list[Finding]:
    """What the curves of every restorer, and of the classifier alone, say of the attacks."""
    findings = []
    for restorer, mine in curves.items():
        subject = "the classifier alone" if restorer == NO_RESTORER else restorer
        if mine.get("eps", {}).get("points"):
            findings.append(larger_eps(subject, mine["eps"]))
            if classes is not None:
                findings.append(huge_eps(subject, mine["eps"], classes))
        for kind, what in (("steps", "steps"), ("eot", "samples")):
            if len(mine.get(kind, {}).get("points", [])) > 1:
                findings.append(still_falling(subject, mine[kind], what))
    return findings
