"""The article's first table: attack × defence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gandefense import zoo
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
    recipe_of,
    train_trn,
    variation,
)


@dataclass
class TRNAttacksConfig(TRNTableConfig):
    """tools/reproduce.py trn-attacks"""

    trn: str = "cifar10/trn"
    adversarial: list[str] = field(default_factory=list)  # classifiers trained on attacked images, or recipes of such
    rivals: list[str] = field(default_factory=list)  # restorers before the same classifier, or recipes of such


def run(config: TRNAttacksConfig) -> tuple[list[Table], dict[str, Any]]:
    """Train what is named by its recipe, and measure every defence under the five attacks.

    Raises:
        UserError: before any work, an unknown network, a recipe for other data, or folders that cannot be written.
    """
    check(config, [*config.adversarial, *config.rivals])
    classifier = defended_classifier(config)
    device, folder = config.device, places(config)[0]
    trn = train_trn(config, classifier) if trainings.is_recipe(config.trn) else config.trn
    rivals = [
        trainings.network(name, config.data, folder, device=device, changes={"classifier": classifier}) for name in config.rivals
    ]
    adversarial = [trainings.network(name, config.data, folder, device=device) for name in config.adversarial]

    together = gray_box(config, classifier, [*rivals, trn])
    rows = [{"name": "no defence", "network": classifier, **_row(together, NO_RESTORER)}]
    for title, name in zip(config.adversarial, adversarial, strict=True):
        rows.append(
            {"name": f"adversarial training: {_short(title)}", "network": name, **_row(gray_box(config, name), NO_RESTORER)}
        )
    for title, name in zip(config.rivals, rivals, strict=True):
        rows.append({"name": _short(title), "network": name, **_row(together, name)})
    rows.append({"name": f"TRN: {_short(config.trn)}", "network": trn, **_row(together, trn)})
    made = [recipe_of(name) for name in (*adversarial, *rivals, trn) if not zoo.is_ready(name)]
    return [table(config, rows), claims_table(claims(rows))], {"defences": rows, "networks": made}


def _row(results: dict[str, Any], restorer: str) -> dict[str, Any]:
    found = figures(results, restorer)
    return {**found, "variation": variation(found)}


def _short(name: str) -> str:
    """A recipe by its file's stem; a network as it is."""
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0] if trainings.is_recipe(name) else name


def table(config: TRNAttacksConfig, rows: list[dict[str, Any]]) -> Table:
    """Defence by defence."""
    header = ["defence", "clean", *TITLES.values(), "max − min"]
    lines = [
        [entry["name"], *(interval(entry[key]) for key in ("clean", *ATTACKS)), f"{100 * entry['variation']:.1f}"]
        for entry in rows
    ]
    note = (
        f"{budget_note(config)} Restorers stand before one classifier, against which alone the attacks were made: their attacker "
        "ignores them, and all fall to one who knows them (see the table of rivals). An adversarially trained classifier is "
        "itself the one that is attacked, so that its attacker knows all there is to know; the two kinds are no equals."
    )
    return Table("attacks", "Attacks and defences", note, header, lines)


def claims(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The article's claims about this table, against the rows; the last row is TRN's, the first the bare classifier's."""
    bare, *others, trn = rows
    if others:
        best = {key: max(entry[key]["accuracy"] for entry in others) for key in ATTACKS}
        above = [TITLES[key] for key in ATTACKS if trn[key]["accuracy"] > best[key]]
        worst = min(trn[key]["accuracy"] - best[key] for key in ATTACKS)
        where = f"{len(above)} of {len(ATTACKS)} attacks"
        against = f"above the best of {len(others)} others under {where}; least margin {points(worst)} points"
    else:
        against = "nothing to compare with"
    cost = trn["clean"]["accuracy"] - bare["clean"]["accuracy"]
    return [
        ["TRN is more robust than every other defence under any attack", against],
        ["benign inputs are not degraded significantly", f"clean accuracy changes by {points(cost)} points"],
    ]
