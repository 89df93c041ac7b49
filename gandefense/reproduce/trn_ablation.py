"""The article's third table: no defence, gradient maps alone, image alone, both, under PGD and at equal parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gandefense.errors import UserError
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.wording import Table, interval
from gandefense.reproduce import trainings
from gandefense.reproduce.statistics import gain_text, mean_text, student
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

STREAMS = {"maps": "maps alone", "image": "image alone", "both": "both"}
KEYS = ("clean", "pgd")


@dataclass
class TRNAblationConfig(TRNTableConfig):
    """tools/reproduce.py trn-ablation"""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # of the trainings; every variant has each


def run(config: TRNAblationConfig) -> tuple[list[Table], dict[str, Any]]:
    """Train TRN with both streams and with one of them blanked, from several seeds, and attack each with PGD.

    Raises:
        UserError: before any work, no seed or one twice, unknown keys, or folders that cannot be written.
    """
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise UserError(f"seeds takes different numbers from 0 up, and one at least, got {config.seeds}")
    check(config, recipes=[config.trn])
    classifier = defended_classifier(config)
    trns: dict[str, list[str]] = {streams: [] for streams in STREAMS}
    for seed in config.seeds:  # seed by seed, so that a killed table has whole comparisons
        for streams in STREAMS:
            print(f"training {STREAMS[streams]}, seed {seed} ({config.seeds.index(seed) + 1} of {len(config.seeds)})", flush=True)
            trns[streams].append(train_trn(config, classifier, network={"streams": streams}, run={"seed": seed}))
    together = gray_box(config, classifier, [name for names in trns.values() for name in names], ["pgd"])
    bare = figures(together, NO_RESTORER, ["pgd"])
    variants = {
        streams: {
            "parameters": trainings.parameters(names[0]),
            "seeds": [{"seed": seed, **figures(together, name, ["pgd"])} for seed, name in zip(config.seeds, names, strict=True)],
        }
        for streams, names in trns.items()
    }
    for variant in variants.values():
        variant |= {key: student([entry[key]["accuracy"] for entry in variant["seeds"]]) for key in KEYS}
    found = {"no_defence": bare, "variants": variants, "differences": differences(variants)}
    made = [recipe_of(name) for names in trns.values() for name in names]
    tables = [table(config, found), difference_table(found["differences"], len(config.seeds)), claims_table(claims(found))]
    return tables, {**found, "networks": made}


def differences(variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What both streams gain over either, seed by seed."""
    found: dict[str, dict[str, Any]] = {}
    for other in ("image", "maps"):
        pairs = list(zip(variants["both"]["seeds"], variants[other]["seeds"], strict=True))
        found[f"both − {other}"] = {
            key: student([first[key]["accuracy"] - second[key]["accuracy"] for first, second in pairs]) for key in KEYS
        }
    return found


def verdict(figure: dict[str, Any]) -> str:
    """What the interval of a difference allows to say."""
    if figure["ci95"] is None:
        return "one seed says nothing"
    low, high = figure["ci95"]
    return "more" if low > 0 else "less" if high < 0 else "no difference that the seeds would show"


def table(config: TRNAblationConfig, found: dict[str, Any]) -> Table:
    """Variant by variant: mean over the seeds, and each seed."""
    bare = found["no_defence"]
    lines = [["none (classifier alone)", "–", interval(bare["clean"]), interval(bare["pgd"]), "–"]]
    for streams, title in STREAMS.items():
        variant = found["variants"][streams]
        each = " · ".join(f"{100 * entry['pgd']['accuracy']:.1f}" for entry in variant["seeds"])
        lines.append([title, f"{variant['parameters']:,}", mean_text(variant["clean"]), mean_text(variant["pgd"]), each])
    note = (
        f"{budget_note(config)} {len(config.seeds)} trainings each, seeds {', '.join(map(str, config.seeds))}, by one recipe; "
        "the stream that is left out is fed zeros, so that parameters stay equal. Means with Student's 95 % interval over the "
        f"seeds (the classifier alone: Wilson's over images). {recipe_note(config)}"
    )
    header = ["TRN sees", "parameters", "clean", f"PGD-{config.pgd_steps}", "PGD, seed by seed"]
    return Table("ablation", "Image, gradient maps, both", note, header, lines)


def difference_table(found: dict[str, dict[str, Any]], seeds: int) -> Table:
    """The differences with their intervals."""
    lines = [[title, gain_text(gains["clean"]), gain_text(gains["pgd"]), verdict(gains["pgd"])] for title, gains in found.items()]
    note = f"Differences within each of {seeds} seeds, their mean, and Student's 95 % interval."
    return Table("differences", "What the second stream adds", note, ["difference", "clean", "PGD", "under PGD"], lines)


def claims(found: dict[str, Any]) -> list[list[str]]:
    """The article's claim about this table."""
    here = "; ".join(
        f"{title}: {gain_text(gains['pgd'])}, {verdict(gains['pgd'])}" for title, gains in found["differences"].items()
    )
    return [["image and gradient maps together are better than either alone", here]]
