"""The article's fourth table: accuracy under PGD against the number of Fusion Blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gandefense.errors import UserError
from gandefense.evaluation import plots
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.wording import Table, interval, number
from gandefense.files import write_atomically
from gandefense.reproduce import trainings
from gandefense.reproduce.statistics import mean_text, student
from gandefense.reproduce.trn_tables import (
    TRNTableConfig,
    budget_note,
    check,
    claims_table,
    defended_classifier,
    figures,
    gray_box,
    recipe_note,
    recipe_of,
    train_trn,
)

KEYS = ("clean", "pgd")
KIND = plots.Kind("blocks", "blocks", "blocks", "Accuracy against the number of Fusion Blocks", "blocks", "Fusion Blocks")


@dataclass
class TRNBlocksConfig(TRNTableConfig):
    """tools/reproduce.py trn-blocks"""

    blocks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])  # numbers of Fusion Blocks
    seeds: list[int] = field(default_factory=lambda: [0])  # of the trainings


def run(config: TRNBlocksConfig) -> tuple[list[Table], dict[str, Any]]:
    """Train TRN with every number of blocks, and attack each with PGD; draws a plot where matplotlib is installed.

    Raises:
        UserError: before any work, numbers out of range, unknown keys, or folders that cannot be written.
    """
    for name, least in (("blocks", 1), ("seeds", 0)):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values) or min(values) < least:
            raise UserError(f"{name} takes different numbers from {least} up, and one at least, got {values}")
    check(config, recipes=[config.trn])
    classifier = defended_classifier(config)
    trns: dict[int, list[str]] = {}
    for blocks in config.blocks:
        print(f"training with {blocks} Fusion Blocks ({config.blocks.index(blocks) + 1} of {len(config.blocks)})", flush=True)
        trns[blocks] = [train_trn(config, classifier, network={"blocks": blocks}, run={"seed": seed}) for seed in config.seeds]
    together = gray_box(config, classifier, [name for names in trns.values() for name in names], ["pgd"])
    bare = figures(together, NO_RESTORER, ["pgd"])
    points = []
    for blocks, names in trns.items():
        each = [{"seed": seed, **figures(together, name, ["pgd"])} for seed, name in zip(config.seeds, names, strict=True)]
        cost = together["cost"][names[0]]["images_per_second"]
        size = {"parameters": trainings.parameters(names[0]), "images_per_second": cost}
        means = {key: student([entry[key]["accuracy"] for entry in each]) for key in KEYS}
        points.append({"blocks": blocks, **size, **means, "seeds": each})
    made = [recipe_of(name) for names in trns.values() for name in names]
    picture = draw(config, bare, points)
    return [table(config, bare, points, picture), claims_table(claims(points))], {
        "no_defence": bare,
        "points": points,
        "networks": made,
    }


def shown(point: dict[str, Any], key: str) -> dict[str, Any]:
    """Accuracy and interval of a point: over the seeds, or of a single seed over the images."""
    if len(point["seeds"]) == 1:
        return point["seeds"][0][key]
    return {"accuracy": point[key]["mean"], "ci95": point[key]["ci95"]}


def draw(config: TRNBlocksConfig, bare: dict[str, Any], points: list[dict[str, Any]]) -> str | None:
    """Draw the plot beside the table's files, and give its name; None without matplotlib."""
    if not plots.available():
        return None
    titles = {"clean": "clean", "pgd": f"pgd-{config.pgd_steps}"}
    curves = {
        f"TRN, {titles[key]}": {
            "title": f"{config.eps * 255:.3g}/255" if key == "pgd" else "no attack",
            "view": "oblivious",
            "points": [{"blocks": point["blocks"], **shown(point, key)} for point in points],
        }
        for key in KEYS
    }
    alone = [{"blocks": point["blocks"], **bare["pgd"]} for point in points]
    curves[NO_RESTORER] = {"title": titles["pgd"], "view": "oblivious", "points": alone}
    png = plots.accuracy_plot(KIND, curves, plots.looks_of(curves), None)
    path = Path(config.results) / f"trn-blocks-{config.data.name}.png"
    write_atomically(path, lambda temporary: temporary.write_bytes(png) and None)
    return path.name


def table(config: TRNBlocksConfig, bare: dict[str, Any], points: list[dict[str, Any]], picture: str | None) -> Table:
    """Number by number."""
    lines = [["none (classifier alone)", "–", "–", interval(bare["clean"]), interval(bare["pgd"])]]
    for point in points:
        size = [str(point["blocks"]), f"{point['parameters']:,}", number(point["images_per_second"], 0)]
        lines.append([*size, *(_text(point, key) for key in KEYS)])
    seeds = "one training each" if len(config.seeds) == 1 else f"{len(config.seeds)} trainings each"
    kind = "Wilson's 95 % interval over images" if len(config.seeds) == 1 else "means with Student's 95 % interval over the seeds"
    from_seeds = f"{seeds} (seeds {', '.join(map(str, config.seeds))})"
    note = f"{budget_note(config)} By one recipe and one number of steps, {from_seeds}; {kind}. {recipe_note(config)}"
    if picture is not None:
        note += f"\n\n![{KIND.title}]({picture})"
    header = ["Fusion Blocks", "parameters", "images/s", "clean", f"PGD-{config.pgd_steps}"]
    return Table("blocks", "Number of Fusion Blocks", note, header, lines)


def _text(point: dict[str, Any], key: str) -> str:
    return interval(shown(point, key)) if len(point["seeds"]) == 1 else mean_text(point[key])


def claims(points: list[dict[str, Any]]) -> list[list[str]]:
    """The article's claim about this table."""
    best = max(points, key=lambda point: point["pgd"]["mean"])
    here = f"best here under PGD: {best['blocks']} of {', '.join(str(point['blocks']) for point in points)}"
    return [["the best number of Fusion Blocks differs from data set to data set", here]]
