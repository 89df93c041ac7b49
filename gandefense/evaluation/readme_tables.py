"""Small tables for texts, from committed results: detectors under attack, and the evaluator's calibration."""

from __future__ import annotations

from typing import Any

from gandefense.evaluation.report_tables import markdown_table
from gandefense.evaluation.threat_tables import attack_of
from gandefense.evaluation.wording import UNKNOWN, budget, interval, number, share

TELLS_NOTHING = ("static_rule", "few_images")  # checks that fire on every defence of the calibration


def detection(results: dict[str, Any]) -> str:
    """Detection as a Markdown table: a line per attack, a column per restorer; AUROC and the share flagged.

    The share is that of the attack's successes (n) above the threshold of the largest false-positive rate asked for.
    """
    lines: dict[str, dict[str, str]] = {}
    for restorer, found in results["detection"].items():
        if not found["thresholds"]:
            continue
        rate = max(found["thresholds"], key=float)
        met = found["false_positive_rate"][rate]
        clean = f"clean images, {float(rate):.0%} threshold".replace("%", " %")
        lines.setdefault(clean, {})[restorer] = f"{share(met)} flagged, n = {found['n_clean']}"
        for entry in found["attacks"]:
            where = "" if entry["threat"] == "gray_box" else f", view {entry['view']}"
            if entry.get("restarts", 1) > 1:
                where += f", {entry['restarts']} restarts"
            flagged = f"{share(entry['tpr'][rate])} flagged, n = {entry['n']}"
            cell = UNKNOWN if entry["auroc"] is None else f"AUROC {number(entry['auroc'])}, {flagged}"
            lines.setdefault(f"{entry['threat']} {attack_of(entry)}, {budget(entry)}{where}", {})[restorer] = cell
    restorers = list(results["detection"])
    rows = [[line, *(cells.get(name, UNKNOWN) for name in restorers)] for line, cells in lines.items()]
    return markdown_table(["", *(f"`{name}`" for name in restorers)], rows)


def calibration(results: dict[str, Any]) -> str:
    """The calibration as a Markdown table, a line per defence that does not hold; percent right, [95 % interval]."""
    rows = []
    for case in results["cases"].values():
        naive = next(row for row in case["attacks"] if all(row[key] == value for key, value in case["naive"].items()))
        then: list[str] = []
        for row in (row for row in case["attacks"] if row is not naive):
            then.append(f"{row['title']}, view {row['view']}: {_kept(row)}")
            if row["survivors"] and row["accuracy"] == 0:
                break  # the attacks after it had nothing left to try
        fired = ", ".join(f"`{name}`" for name in case["fired"] if name not in TELLS_NOTHING)
        worst = interval(case["worst_case"]).replace(" %", "")
        rows.append([case["title"], f"{naive['title']}: {_kept(naive)}", "; ".join(then), worst, fired or UNKNOWN])
    header = ["defence", "a naive attack leaves", "then", "worst case, white_box", "checks that fired"]
    return markdown_table(header, rows)


def _kept(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f}"
