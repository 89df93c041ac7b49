"""The tables of tools/reproduce.py rivals, from the figures that `rivals` put together."""

from __future__ import annotations

from typing import Any

from gandefense.evaluation.wording import Table, interval, share, shown_name
from gandefense.reproduce.statistics import gain_text

ATTACKS = ("fgsm", "bim", "pgd", "mim", "universal")
BROKEN, KEPT = 0.10, 0.25  # at most this under the worst case: does not hold; at least that: keeps something


def restorer_table(rows: list[dict[str, Any]], results: dict[str, Any]) -> Table:
    """Restorers before one classifier."""
    header = ["restorer", "clean", "FGSM", "BIM-10", "PGD-20", "MIM-10", "universal", "straight_through", "white_box worst case"]
    header += ["images/s", "parameters"]
    lines = []
    for entry in rows:
        cells = [interval(entry[key]) for key in ("clean", *ATTACKS)]
        cells += [interval(entry.get("straight_through")), interval(entry["white_box_worst"])]
        lines.append([shown_name(entry["name"]), *cells, f"{entry['images_per_second']:,.0f}", f"{entry['parameters']:,}"])
    random = [entry["name"] for entry in rows if entry["randomised"]]
    note = (
        f"Before {results['classifier']['name']}. FGSM to universal are gray_box: made against the classifier, ignorant of the "
        "restorer; universal is one perturbation for all images, made from validation images. straight_through: PGD-20 with the "
        "identity for the restorer's gradient. The worst case counts an image only if it is right clean, under all of these, and "
        "under PGD-20 on the views detached (gradient maps and decisions held constant) and exact (the true gradient), each on "
        "what the others left. "
    )
    if random:
        names = ", ".join(random)
        note += f"Randomised ({names}): gradients averaged over draws; in the worst case right at each of ten resubmissions."
    return Table("restorers", "Restorers", note, header, lines)


def detector_table(rows: list[dict[str, Any]]) -> Table:
    """Restorer and detector together, counted as MagNet's authors count: a rejected attacked image is right."""
    lines = []
    for entry in rows:
        found = entry.get("with_detector")
        if found is not None and found["false_positive_rate"] > 0:
            figures = [share(found.get(key)) for key in ("clean", *ATTACKS)]
            lines.append([shown_name(entry["name"]), share(found["false_positive_rate"]), *figures])
    note = (
        "Gray_box, in the accounting of MagNet's paper: a rejected attacked image counts as right, a rejected clean one as "
        "wrong. It says nothing about an attacker who knows the detector. Restorers that do not detect are left out."
    )
    header = ["restorer", "clean images rejected", "clean", "FGSM", "BIM-10", "PGD-20", "MIM-10", "universal"]
    return Table("detectors", "With their detectors, rejected images counted as right", note, header, lines)


def facts_table(found: list[dict[str, Any]]) -> Table:
    """What the literature leads one to expect of each, and what came out."""
    said = {True: "yes", False: "NO", None: "–"}
    lines = [[fact["name"], fact["expected"], share(fact["worst_case"]), said[fact["came_out"]]] for fact in found]
    note = (
        "White_box worst case of the restorers, AutoAttack of the classifiers. Expected of networks trained with PGD, TRADES "
        f"or ALP: at least {KEPT:.0%}; of those never trained on attacked images at most {BROKEN:.0%}; of any others, such as "
        "those trained with one step of FGSM, nothing.".replace("%", " %")
    )
    return Table("facts", "As the literature says?", note, ["name", "expected", "worst case", "came out"], lines)


def classifier_table(rows: list[dict[str, Any]]) -> Table:
    """Classifiers alone."""
    header = ["classifier", "clean", "universal", "FGSM", "PGD-20", "APGD-CE", "AutoAttack", "images/s", "parameters"]
    lines = [
        [
            entry["name"],
            *(interval(entry[key]) for key in ("clean", "universal", "fgsm", "pgd", "apgd", "autoattack")),
            f"{entry['images_per_second']:,.0f}",
            f"{entry['parameters']:,}",
        ]
        for entry in rows
    ]
    note = (
        "Without a restorer. APGD-CE and AutoAttack (standard: APGD-CE, APGD-T, FAB-T, Square with 5,000 queries) attack what "
        "the columns before them left, so that their figures are cumulative."
    )
    return Table("classifiers", "Classifiers", note, header, lines)


def blocks_table(found: dict[str, Any]) -> Table:
    """Feature denoising against the same network without blocks."""
    lines = []
    for first, second in found["pairs"]:
        for entry in (first, second):
            lines.append([entry["name"], *(interval(entry[key]) for key in ("clean", "pgd", "apgd"))])
    gained = [gain_text(found["gains"][key]) for key in ("clean", "pgd", "apgd")]
    lines.append([f"gain of the blocks, mean over {len(found['pairs'])} seeds", *gained])
    note = (
        "The same recipe, data and seed with and without denoising blocks; Student's 95 % interval over the seeds' differences."
    )
    return Table("blocks", "Feature denoising", note, ["classifier", "clean", "PGD-20", "then APGD-CE and APGD-DLR"], lines)
