"""The honest table: defences trained to hold, under every attacker, beside adversarial training alone and others' figures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from torch import Tensor

from gandefense import zoo
from gandefense.config import DataConfig
from gandefense.errors import UserError
from gandefense.evaluation import metrics
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.settings import AttackEntry, BlackBoxConfig, CurvesConfig, WhiteBoxConfig, resolve
from gandefense.evaluation.wording import UNKNOWN, Table, budget, interval, p_value, percent, pixels, points, share
from gandefense.reproduce.evaluations import figure, measured, shared, standing
from gandefense.reproduce.writing import check_folder

THREATS = ("gray_box", "black_box", "white_box")
PAIRED = ("clean", "white_box")  # where defences are compared image by image


@dataclass
class Published:
    """What somebody else published of a defence; quoted, not measured."""

    defence: str = MISSING
    clean: float | None = None  # fractions, as everywhere
    claimed: float | None = None  # what the defence's authors reported
    robust: float = MISSING  # what the adaptive attack left
    attack: str = MISSING
    source: str = MISSING  # who says so, and where
    speed: str | None = None  # in words: images/s, on what


@dataclass
class AdaptiveConfig:
    """tools/reproduce.py adaptive"""

    data: DataConfig = field(default_factory=lambda: DataConfig(limit=1000))
    classifiers: list[str] = field(default_factory=list)  # adversarially trained, alone; every defence is compared with each
    defences: list[str] = field(default_factory=list)  # restorers, each before the classifier that it was trained for
    gray_box: list[AttackEntry] = field(default_factory=lambda: [AttackEntry("pgd", steps=20)])
    black_box: BlackBoxConfig = field(default_factory=BlackBoxConfig)
    white_box: WhiteBoxConfig = field(default_factory=WhiteBoxConfig)
    curves: CurvesConfig = field(default_factory=CurvesConfig)
    published: list[Published] = field(default_factory=list)  # quoted below the table
    seed: int = 0
    device: str = "auto"
    batch_size: int = 100
    folder: str = "runs/reproduce"  # evaluations, resumed when killed and used again when finished
    results: str = "results"  # folder of adaptive.json and adaptive.md


def settings(config: AdaptiveConfig, name: str) -> dict[str, Any]:
    """The evaluation of a defence before its own classifier, or of a classifier alone, which has one view only."""
    white, restorer = config.white_box, name
    if name in config.classifiers:
        entries = [replace(entry, views=None) for entry in used(white)]
        white, restorer = WhiteBoxConfig(["exact"], list({str(entry): entry for entry in entries}.values())), NO_RESTORER
    return {
        **shared(config),
        "classifier": name if restorer == NO_RESTORER else zoo.classifier_of(name),
        "restorers": [restorer],
        "gray_box": config.gray_box,
        "black_box": config.black_box,
        "white_box": white,
        "curves": config.curves,
    }


def used(white: WhiteBoxConfig) -> list[AttackEntry]:
    """The attacks that have a view to be made through."""
    return [entry for entry in white.attacks if entry.views is None or entry.views]


def check(config: AdaptiveConfig) -> None:
    """Raise UserError for missing or unknown networks, bad attacks or folders that cannot be written, before any work."""
    if not config.classifiers or not config.defences:
        raise UserError("classifiers and defences: name at least one of each; every defence is compared with every classifier")
    bounded = [any(entry.spec().norm == "linf" for entry in attacks) for attacks in (config.gray_box, used(config.white_box))]
    if not (all(bounded) and config.white_box.views):
        raise UserError(
            "gray_box, white_box.views and white_box.attacks: the table needs an attack of each, with a budget of every pixel"
        )
    for name in (*config.classifiers, *config.defences):
        resolve(None, settings(config, name))
    for name in config.defences:
        zoo.load(name)  # a classifier that is not the one the restorer was trained with is refused
    for folder in (Path(config.folder) / "adaptive", Path(config.results)):
        check_folder(folder)


def run(config: AdaptiveConfig) -> tuple[list[Table], dict[str, Any]]:
    """Measure what is not measured yet, and put the tables together.

    Returns:
        The page's tables, and the figures for the JSON file.

    Raises:
        UserError: see `check`.
    """
    check(config)
    folder = Path(config.folder) / "adaptive"
    entries, evaluations, flags = [], [], []
    for name in (*config.classifiers, *config.defences):
        asked = settings(config, name)
        results = measured(asked, folder)
        restorer = asked["restorers"][0]
        evaluations.append({key: value for key, value in results["made"].items() if key != "config"})
        flags.append({kind: standing(results, restorer, kind) for kind in PAIRED})
        entries.append(entry_of(results, name, restorer))
    if len({images for each in flags for _, images in each.values()}) > 1:
        raise UserError("the test images changed between two of these evaluations; remove the older one's folder and repeat")
    for number, entry in enumerate(entries):  # a classifier, too, with those before it: one trained on is the defences' control
        entry["paired"] = {
            other: {kind: paired(flags[number][kind][0], flags[place][kind][0]) for kind in PAIRED}
            for place, other in enumerate(config.classifiers[:number])
        }
    published = [asdict(quoted) for quoted in config.published]
    figures = {"defences": entries, "published": published, "evaluations": evaluations}
    tables = [main_table(entries, config), gain_table(entries), view_table(entries), survivor_table(entries)]
    tables += [curve_table(entries), check_table(entries)]
    tables = [table for table in tables if table.rows or table.name == "checks"]
    return [*tables, published_table(published)] if published else tables, figures


def entry_of(results: dict[str, Any], name: str, restorer: str) -> dict[str, Any]:
    """One defence, or classifier alone: every threat's worst case, its own classifier's, views, curve, checks, cost."""
    clean = next(row for row in results["rows"] if row["attack"] == "none")
    worst, alone = results["worst_case"][restorer], results["worst_case"][NO_RESTORER]
    entry: dict[str, Any] = {
        "name": name,
        "classifier": results["classifier"]["name"],
        "alone": restorer == NO_RESTORER,
        "clean": {**figure(clean), "n": clean["n"]},
        **{threat: figure(worst[threat]) if threat in worst else None for threat in THREATS},
        "images_per_second": results["cost"][restorer]["images_per_second"],
        "parameters": results["cost"][restorer]["parameters"] + results["classifier"]["parameters"],
        "views": {},
        "survivors": [
            {"attack": named(row)} | {key: row[key] for key in ("title", "eps", "view", "tried", "accuracy", "ci95")}
            for row in results["rows"]
            if row["threat"] == "white_box" and row["survivors"] and row["restorer"] == restorer
        ],
        "curves": {key: found["eps"] for key, found in results["curves"].items() if "eps" in found},
        "checks": [found for found in results["checks"] if found["fired"]],
        "checks_run": len(results["checks"]),
    }
    if restorer == NO_RESTORER:
        return entry
    bare_clean = {"accuracy": clean["undefended_accuracy"], "ci95": clean["undefended_ci95"]}
    entry["its_classifier"] = {"clean": bare_clean, "white_box": figure(alone["white_box"])}
    entry["its_classifier"]["mcnemar"] = worst["white_box"]["mcnemar"]
    for row in results["rows"]:
        if row["threat"] == "white_box" and not row["survivors"]:
            entry["views"].setdefault(named(row), {})[row["view"]] = figure(row)
    return entry


def named(row: dict[str, Any]) -> str:
    """An attack with its budget, and its restarts where it has some: what tells it from the others of a table."""
    again = f", {row['restarts']} restarts" if row.get("restarts", 1) > 1 else ""
    return f"{row['title']}, {budget(row)}{again}"


def paired(defended: Tensor, reference: Tensor) -> dict[str, Any]:
    """A defence against another on the same images (N,): gain with its 95 % interval (normal, paired), McNemar's test."""
    test = metrics.mcnemar(defended, reference)
    count, won, lost = len(defended), test["defended_only"], test["bare_only"]
    gain = (won - lost) / count
    half = 1.96 * math.sqrt(max(0.0, won + lost - (won - lost) ** 2 / count)) / count
    return {"gain": gain, "ci95": [gain - half, gain + half], "mcnemar": test}


def main_table(entries: list[dict[str, Any]], config: AdaptiveConfig) -> Table:
    """Every threat's worst case, that of its classifier alone, and the cost."""
    header = ["defence", "clean", "gray_box", "black_box", "white_box worst case", "its classifier alone: clean", "white_box"]
    header += ["gain over it", "parameters", "images/s"]
    lines = []
    for entry in entries:
        line = [entry["name"], *(interval(entry[key]) for key in ("clean", *THREATS))]
        own = entry.get("its_classifier")
        if own is None:
            line += [UNKNOWN] * 3
        else:
            gained = points(entry["white_box"]["accuracy"] - own["white_box"]["accuracy"])
            line += [interval(own["clean"]), interval(own["white_box"]), f"{gained} points, {p_value(own['mcnemar']['p'])}"]
        lines.append([*line, f"{entry['parameters']:,}", f"{entry['images_per_second']:,.0f}"])
    specs = [entry.spec() for entry in used(config.white_box)]
    budgets = [budget({"attack": spec.attack, "norm": spec.norm, "eps": spec.eps}) for spec in specs]
    attacks = ", ".join(f"{spec.title()} at {eps}" for spec, eps in zip(specs, budgets, strict=True))
    views = ", ".join(config.white_box.views)
    note = (
        f"The worst case counts an image only if it is right clean and under every attack of the threat; white_box includes the "
        f"other two, and has the views {views} and the attacks {attacks}. Its classifier alone is the static rule: the "
        f"same classifier without the restorer, attacked itself, with McNemar's exact test. It was trained to see restored "
        f"images, so that its being lower says little; the next table compares with classifiers that stand alone. A classifier "
        f"alone has one view: it meets an attack once that a defence meets once a view, each time from another random start."
    )
    return Table("adaptive", "Held against an attacker who knows", note, header, lines)


def gain_table(entries: list[dict[str, Any]]) -> Table:
    """What each defence gains over each classifier that stands alone, clean and in the worst case."""
    lines = []
    for entry in entries:
        for other, found in entry["paired"].items():
            line = [entry["name"], other]
            for one in (found[kind] for kind in PAIRED):
                low, high = one["ci95"]
                line.append(f"{points(one['gain'])} points [{points(low)}, {points(high)}], {p_value(one['mcnemar']['p'])}")
            lines.append(line)
    note = "Paired, image by image, with McNemar's exact test. An interval that holds 0 is no gain."
    return Table("gains", "Gained over a classifier alone", note, ["defence", "over", "clean", "white_box worst case"], lines)


def view_table(entries: list[dict[str, Any]]) -> Table:
    """What each view leaves by itself, under the attacks on all images."""
    views = list(dict.fromkeys(view for entry in entries for row in entry["views"].values() for view in row))
    lines = [
        [entry["name"], title, *(interval(row.get(view)) for view in views)]
        for entry in entries
        for title, row in entry["views"].items()
    ]
    note = "Each view by itself, on all images; a view that keeps much more than the others shows what hides gradients from it."
    return Table("views", "View by view", note, ["defence", "attack", *views], lines)


def survivor_table(entries: list[dict[str, Any]]) -> Table:
    """What is left after each attack that met only what stood before it, in the order of the attacks."""
    lines = [
        [entry["name"], row["attack"], row["view"], str(row["tried"]), interval(row)]
        for entry in entries
        for row in entry["survivors"]
    ]
    note = "In this order: each attack meets only the images that stood under all before it, so that what is left is cumulative."
    return Table("survivors", "Attack after attack", note, ["defence", "attack", "view", "images met", "left"], lines)


def curve_table(entries: list[dict[str, Any]]) -> Table:
    """Accuracy against the budget, of each defence and of its classifier alone."""
    budgets = sorted({point["eps"] for entry in entries for curve in entry["curves"].values() for point in curve["points"]})
    lines, seen, counts = [], set(), set()
    for entry in entries:
        for key, curve in entry["curves"].items():
            name = f"{entry['classifier']} alone" if key == NO_RESTORER else key
            if name not in seen:
                by_eps = {point["eps"]: point["accuracy"] for point in curve["points"]}
                lines.append([name, curve["title"], curve["view"], *(share(by_eps.get(eps)) for eps in budgets)])
                counts.add(curve["n"])
            seen.add(name)
    on = f"On the first {max(counts)} of the images. " if counts else ""
    note = f"{on}One attack, one view: a figure at 8/255 is above the worst case. The end must be near chance."
    return Table("curve", "Accuracy against the budget", note, ["defence", "attack", "view", *map(pixels, budgets)], lines)


def check_table(entries: list[dict[str, Any]]) -> Table:
    """The evaluator's checks that fired."""
    lines = [[entry["name"], found["name"], found["text"]] for entry in entries for found in entry["checks"]]
    quiet = [entry["name"] for entry in entries if not entry["checks"]]
    note = "A check that fired is a reason to distrust a figure."
    if quiet:
        note += f" None fired of {', '.join(quiet)}."
    return Table("checks", "Checks that fired", note, ["defence", "check", "what it says"], lines)


def published_table(found: list[dict[str, Any]]) -> Table:
    """Other people's figures."""
    known = [
        [
            *(quoted["defence"], share(quoted["clean"]), share(quoted["claimed"]), percent(quoted["robust"])),
            *(quoted["attack"], quoted["speed"] or UNKNOWN, quoted["source"]),
        ]
        for quoted in found
    ]
    note = (
        "Quoted, not measured here: larger classifiers, other images, other attacks, so only the order of magnitude compares. "
        "“Claimed” is what the authors of a defence reported, “adaptive” what an attack made for it left."
    )
    header = ["defence", "clean", "claimed", "adaptive", "attack", "images/s", "source"]
    return Table("published", "Diffusion purifiers, as published", note, header, known)
