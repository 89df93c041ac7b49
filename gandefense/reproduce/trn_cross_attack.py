"""The article's second table: attack used in training × attack faced, adversarial training against TRN."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gandefense.errors import UserError
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.wording import Table, interval, points
from gandefense.reproduce import trainings
from gandefense.reproduce.trn_tables import (
    ATTACKS,
    TITLES,
    TRNTableConfig,
    budget_note,
    check,
    claims_table,
    defended_classifier,
    figures,
    gray_box,
    places,
    recipe_note,
    recipe_of,
    train_trn,
    variation,
)

ROWS_A_CLEAN_ONE = 5  # attacked rows of a TRN's for each clean pair, as in the recipes of the shipped ones
LEAST_GAIN = 0.01  # over the classifier alone, for a TRN to have learnt something


@dataclass
class TRNCrossAttackConfig(TRNTableConfig):
    """tools/reproduce.py trn-cross-attack"""

    attacks: list[str] = field(default_factory=lambda: list(ATTACKS))  # trained on, one each, and faced, all of them
    adversarial: str = "configs/classifier/cifar10_pgd_small.yaml"  # the recipe of every adversarial training
    train_adversarial: dict[str, Any] = field(default_factory=dict)  # keys of that recipe with other values


def run(config: TRNCrossAttackConfig) -> tuple[list[Table], dict[str, Any]]:
    """Train a TRN and a classifier on each attack, and let each face all of them.

    A TRN is trained on one attack and, a sixth of its rows, on clean pairs. A classifier is trained on the same attack, made
    anew for every batch.

    Raises:
        UserError: before any work, an unknown attack, unknown keys, or folders that cannot be written.
    """
    unknown = [name for name in config.attacks if name not in ATTACKS]
    if unknown or not config.attacks or len(set(config.attacks)) < len(config.attacks):
        raise UserError(f"attacks takes each of {', '.join(ATTACKS)} at most once and one at least, got {config.attacks}")
    check(config, recipes=[config.trn, config.adversarial])
    for attack in config.attacks:
        trainings.prepared(config.adversarial, config.data, adversarial_changes(config, attack))
    classifier = defended_classifier(config)
    trns, classifiers = {}, {}
    for attack in config.attacks:
        print(f"training on {attack} ({config.attacks.index(attack) + 1} of {len(config.attacks)})", flush=True)
        only = {"attacked": {"attacks": [attack] * ROWS_A_CLEAN_ONE + ["none"], "budgets": [config.eps]}}
        trns[attack] = train_trn(config, classifier, **only)
        changes = adversarial_changes(config, attack)
        classifiers[attack] = trainings.trained(
            config.adversarial, config.data, places(config)[0], device=config.device, changes=changes
        )
    together = gray_box(config, classifier, list(trns.values()), config.attacks)
    bare = figures(together, NO_RESTORER, config.attacks)
    rows = []
    for attack in config.attacks:
        alone = gray_box(config, classifiers[attack], attacks=config.attacks)
        pair = {
            "adversarial_training": figures(alone, NO_RESTORER, config.attacks),
            "trn": figures(together, trns[attack], config.attacks),
        }
        rows.append(
            {"trained_on": attack, **pair, "variation": {key: variation(found, config.attacks) for key, found in pair.items()}}
        )
    made = [recipe_of(name) for name in (*classifiers.values(), *trns.values())]
    tables = [table(config, rows, bare), *(detailed(rows, key, config.attacks) for key in ("adversarial_training", "trn"))]
    return [*tables, claims_table(claims(rows, config.attacks))], {"no_defence": bare, "rows": rows, "networks": made}


def adversarial_changes(config: TRNCrossAttackConfig, attack: str) -> dict[str, Any]:
    """What one adversarial training differs in from its recipe."""
    return trainings.merged(
        config.train_adversarial, {"train": {"adversarial": {"method": "suite", "attack": attack, "eps": config.eps}}}
    )


def adversarial_note(config: TRNCrossAttackConfig) -> str:
    """How large the adversarial trainings are, in a sentence."""
    made = trainings.prepared(config.adversarial, config.data, config.train_adversarial)
    images = "all" if made.data.limit is None else f"{made.data.limit:,}"
    attacks = f"{made.train.adversarial.steps} steps of BIM, PGD and MIM"
    return f"Every AT: {made.architecture}, {images} training images, {made.train.epochs:g} epochs, {attacks}."


def learnt_nothing(rows: list[dict[str, Any]], bare: dict[str, Any], attacks: list[str]) -> list[str]:
    """Attacks trained on whose TRN leaves no attack faced more than a point above the classifier alone."""
    gains = {
        entry["trained_on"]: max(entry["trn"][name]["accuracy"] - bare[name]["accuracy"] for name in attacks) for entry in rows
    }
    return [attack for attack, gain in gains.items() if gain <= LEAST_GAIN]


def table(config: TRNCrossAttackConfig, rows: list[dict[str, Any]], bare: dict[str, Any]) -> Table:
    """Both matrices side by side, as in the article."""
    sides = {"adversarial_training": "AT", "trn": "TRN"}
    header = ["trained on"]
    for short in sides.values():
        header += [f"{short}: {name}" for name in ("clean", *(TITLES[attack] for attack in config.attacks), "Variation")]
    lines = []
    for entry in rows:
        cells = [TITLES[entry["trained_on"]]]
        for side in sides:
            cells += [f"{100 * entry[side][key]['accuracy']:.1f}" for key in ("clean", *config.attacks)]
            cells.append(f"{100 * entry['variation'][side]:.1f}")
        lines.append(cells)
    note = (
        f"Percent right. AT: a classifier trained on that attack, and attacked itself. TRN: trained on that attack and on clean "
        f"pairs, before another, standard classifier, which alone is attacked. {budget_note(config)} Variation = the highest "
        f"less the lowest over the attacks faced, in points; intervals are below. {recipe_note(config)} "
        f"{adversarial_note(config)}"
    )
    idle = [TITLES[attack] for attack in learnt_nothing(rows, bare, config.attacks)]
    if idle:
        note += (
            f"\n\nTRN trained on {', '.join(idle)}: nowhere more than a point above the classifier alone. So short a training "
            "has taught it nothing, and its row tells nothing of TRN, its Variation included."
        )
    return Table("cross_attack", "Attack trained on × attack faced", note, header, lines)


def detailed(rows: list[dict[str, Any]], side: str, attacks: list[str]) -> Table:
    """One of the matrices with intervals."""
    title = {"adversarial_training": "Adversarial training", "trn": "TRN"}[side]
    lines = [[TITLES[entry["trained_on"]], *(interval(entry[side][key]) for key in ("clean", *attacks))] for entry in rows]
    return Table(
        side,
        f"{title}, with intervals",
        "95 % Wilson intervals.",
        ["trained on", "clean", *(TITLES[name] for name in attacks)],
        lines,
    )


def claims(rows: list[dict[str, Any]], attacks: list[str]) -> list[list[str]]:
    """The article's claims about this table, against the rows."""
    margins = [
        entry["trn"][name]["accuracy"] - entry["adversarial_training"][name]["accuracy"] for entry in rows for name in attacks
    ]
    above = sum(margin > 0 for margin in margins)
    smaller = sum(entry["variation"]["trn"] < entry["variation"]["adversarial_training"] for entry in rows)
    return [
        [
            "TRN is above adversarial training whatever the attack trained on and the attack faced",
            f"in {above} of {len(margins)} cells; least margin {points(min(margins))} points",
        ],
        ["TRN's Variation is the smaller one", f"in {smaller} of {len(rows)} rows"],
    ]
