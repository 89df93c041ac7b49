"""Every rival in one table: restorers before the same classifier, and classifiers on their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gandefense import zoo
from gandefense.config import DataConfig
from gandefense.errors import UserError
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.settings import AttackEntry, WhiteBoxConfig
from gandefense.evaluation.wording import Table
from gandefense.reproduce.evaluations import measured, row, shared
from gandefense.reproduce.rival_pictures import pictures, pictures_table
from gandefense.reproduce.rival_tables import (
    ATTACKS,
    BROKEN,
    KEPT,
    blocks_table,
    classifier_table,
    detector_table,
    facts_table,
    restorer_table,
)
from gandefense.reproduce.statistics import student
from gandefense.reproduce.writing import check_folder

ROBUST = ("pgd", "trades", "alp")  # trainings that keep something; one step of FGSM is known to fail now and then


@dataclass
class RivalsConfig:
    """tools/reproduce.py rivals"""

    data: DataConfig = field(default_factory=lambda: DataConfig(limit=500))
    classifier: str = "cifar10/classifier"  # stands behind every restorer
    restorers: list[str] = field(default_factory=list)
    classifiers: list[str] = field(default_factory=list)  # attacked without a restorer
    blocks_without: list[str] = field(default_factory=list)  # classifiers without feature denoising blocks, seed by seed
    blocks_with: list[str] = field(default_factory=list)  # the same seeds with blocks
    eps: float = 8 / 255
    eot: int = 5  # gradient samples a step, where a defence is randomised
    seed: int = 0
    device: str = "auto"
    batch_size: int = 250  # images; attacks on what is left are quicker in large batches
    folder: str = "runs/reproduce"  # evaluations, resumed when killed and used again when finished
    results: str = "results"  # folder of rivals.json and rivals.md


def restorer_settings(config: RivalsConfig) -> dict[str, Any]:
    """Gray_box with five attacks, then PGD-20 through the identity, and through two true gradients on what that left."""
    return {
        **shared(config),
        "classifier": config.classifier,
        "restorers": [NO_RESTORER, *config.restorers],
        "gray_box": [AttackEntry(name, eps=config.eps, steps=_steps(name)) for name in ATTACKS],
        "white_box": WhiteBoxConfig(
            views=["straight_through", "detached", "exact"],
            attacks=[
                AttackEntry("pgd", eps=config.eps, steps=20, eot=config.eot, views=["straight_through"]),
                AttackEntry("pgd", eps=config.eps, steps=20, eot=config.eot, survivors=True, views=["detached", "exact"]),
            ],
        ),
    }


def classifier_settings(config: RivalsConfig, name: str) -> dict[str, Any]:
    """Universal, FGSM, PGD-20, then APGD-CE and AutoAttack, each on what is left."""
    return {
        **shared(config),
        "classifier": name,
        "restorers": [NO_RESTORER],
        "gray_box": [
            AttackEntry("universal", eps=config.eps),
            AttackEntry("fgsm", eps=config.eps),
            AttackEntry("pgd", eps=config.eps, steps=20),
            AttackEntry("apgd-ce", eps=config.eps, survivors=True),
            AttackEntry("autoattack", eps=config.eps, survivors=True),
        ],
        "white_box": WhiteBoxConfig(views=[], attacks=[]),
    }


def seed_settings(config: RivalsConfig, name: str) -> dict[str, Any]:
    """PGD-20, then APGD-CE and APGD-DLR on what is left: what tells two networks apart, at a fraction of AutoAttack's cost."""
    return {
        **classifier_settings(config, name),
        "gray_box": [
            AttackEntry("pgd", eps=config.eps, steps=20),
            AttackEntry("apgd-ce", eps=config.eps, survivors=True),
            AttackEntry("apgd-dlr", eps=config.eps, survivors=True),
        ],
    }


def _steps(attack: str) -> int:
    return {"pgd": 20, "universal": 100}.get(attack, 10)


def run(config: RivalsConfig) -> tuple[list[Table], dict[str, Any]]:
    """Measure what is not measured yet, and put the tables together; an empty list leaves its table out.

    Returns:
        The page's tables, and the figures for the JSON file.

    Raises:
        UserError: before any work, an unknown network, pairs of seeds that do not match, or folders that cannot be written.
    """
    check(config)
    folder = Path(config.folder) / "rivals"
    evaluations, tables, restorers, classifiers = [], [], [], []
    if config.restorers:
        evaluations.append(measured(restorer_settings(config), folder))
        restorers = [restorer_row(evaluations[0], name) for name in [NO_RESTORER, *config.restorers]]
        tables += [restorer_table(restorers, evaluations[0]), detector_table(restorers)]
    for name in config.classifiers:
        evaluations.append(measured(classifier_settings(config, name), folder))
        classifiers.append(classifier_row(evaluations[-1], name))
    pairs = []
    for names in zip(config.blocks_without, config.blocks_with, strict=True):
        both = [measured(seed_settings(config, name), folder) for name in names]
        evaluations += both
        pairs.append(tuple(seed_row(results, name) for results, name in zip(both, names, strict=True)))
    found = facts(restorers, classifiers, config.classifier)
    figures: dict[str, Any] = {"restorers": restorers, "classifiers": classifiers, "facts": found}
    # how each was made: evaluations used again are older than this table
    figures["evaluations"] = [
        {key: value for key, value in results["made"].items() if key != "config"} for results in evaluations
    ]
    if classifiers:
        tables.append(classifier_table(classifiers))
    if pairs:
        figures["feature_denoising"] = blocks(pairs)
        tables.append(blocks_table(figures["feature_denoising"]))
    with_blocks = config.blocks_with[0] if pairs else None
    drawn = pictures(config.data, config.classifier, with_blocks, Path(config.results), eps=config.eps, seed=config.seed)
    if drawn:
        figures["pictures"] = drawn
        tables.append(pictures_table(drawn))
    return [*tables, facts_table(figures["facts"])], figures


def check(config: RivalsConfig) -> None:
    """Raise UserError for an unknown network, unequal lists of seeds or folders that cannot be written, before any work."""
    if len(config.blocks_without) != len(config.blocks_with):
        raise UserError("blocks_without and blocks_with are pairs, seed by seed: give as many of each")
    for name in (config.classifier, *config.restorers, *config.classifiers, *config.blocks_without, *config.blocks_with):
        zoo.describe(name)
    for folder in (Path(config.folder) / "rivals", Path(config.results)):
        check_folder(folder)


def restorer_row(results: dict[str, Any], name: str) -> dict[str, Any]:
    """One restorer: clean, gray_box attack by attack, white_box view by view and worst case, cost."""
    cost = results["cost"][name]
    found = {attack: row(results, name, "gray_box", attack) for attack in ("none", *ATTACKS)}
    entry = {"name": name, "clean": _figure(found.pop("none")), **{attack: _figure(value) for attack, value in found.items()}}
    if name != NO_RESTORER:
        entry["straight_through"] = _figure(row(results, name, "white_box", "pgd", "straight_through"))
        rate = max(results["detection"][name]["thresholds"], key=float, default=None)
        own = [attack for attack in results["detection"][name]["attacks"] if attack["threat"] == "gray_box"]
        if rate is not None:
            entry["with_detector"] = {attack["attack"]: attack["accuracy"][rate]["both"] for attack in own}
            entry["with_detector"]["clean"] = results["detection"][name]["clean_accuracy"][rate]["both"]
            entry["with_detector"]["false_positive_rate"] = results["detection"][name]["false_positive_rate"][rate]
    worst = results["worst_case"][name]
    entry["gray_box_worst"] = _figure(worst["gray_box"])
    entry["white_box_worst"] = _figure(worst.get("white_box", worst["gray_box"]))
    entry |= {key: cost[key] for key in ("images_per_second", "parameters")}
    entry["randomised"] = results["randomised"][name]
    return entry


def classifier_row(results: dict[str, Any], name: str) -> dict[str, Any]:
    """One classifier alone: clean, universal, FGSM, PGD-20, then what APGD-CE and AutoAttack leave of it."""
    attacks = {"clean": "none", **{name: name for name in ("universal", "fgsm", "pgd", "autoattack")}, "apgd": "apgd-ce"}
    entry: dict[str, Any] = {"name": name}
    entry |= {key: _figure(row(results, NO_RESTORER, "gray_box", attack)) for key, attack in attacks.items()}
    cost = results["cost"][NO_RESTORER]
    return entry | {"images_per_second": cost["images_per_second"], "parameters": results["classifier"]["parameters"]}


def seed_row(results: dict[str, Any], name: str) -> dict[str, Any]:
    """One of a pair: clean, PGD-20, and what APGD-CE and APGD-DLR leave."""
    attacks = {"clean": "none", "pgd": "pgd", "apgd": "apgd-dlr"}
    entry: dict[str, Any] = {"name": name}
    return entry | {key: _figure(row(results, NO_RESTORER, "gray_box", attack)) for key, attack in attacks.items()}


def blocks(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """What feature denoising gains over the same network without it: mean over the seeds, Student's 95 % interval."""
    gains = {
        key: student([second[key]["accuracy"] - first[key]["accuracy"] for first, second in pairs])
        for key in ("clean", "pgd", "apgd")
    }
    return {"pairs": [list(pair) for pair in pairs], "gains": gains}


def facts(restorers: list[dict[str, Any]], classifiers: list[dict[str, Any]], behind: str) -> list[dict[str, Any]]:
    """What the literature says of these defences, and whether it came out here; the limits are BROKEN and KEPT.

    A restorer is judged by how the classifier `behind` it was trained, unless it was trained adversarially itself. Of networks
    trained on attacked images otherwise than in ROBUST nothing is expected, and `came_out` is None.
    """
    worst = {entry["name"]: entry["white_box_worst"]["accuracy"] for entry in restorers}
    worst |= {entry["name"]: entry["autoattack"]["accuracy"] for entry in classifiers}
    found = []
    for name, accuracy in worst.items():
        training = "none" if name == NO_RESTORER else zoo.describe(name).get("adversarial", "none")
        if training == "none" and name in {entry["name"] for entry in restorers}:
            training = zoo.describe(behind).get("adversarial", "none")
        expected, came_out = "none", None
        if training in ROBUST:
            expected, came_out = f"at least {100 * KEPT:.0f} %", accuracy >= KEPT
        elif training == "none":
            expected, came_out = f"at most {100 * BROKEN:.0f} %", accuracy <= BROKEN
        found.append({"name": name, "expected": expected, "worst_case": accuracy, "came_out": came_out})
    return found


def _figure(entry: dict[str, Any]) -> dict[str, Any]:
    """Accuracy with its interval, and where it was handed in several times, the share right each time."""
    again = entry.get("resubmitted_accuracy")
    found = {name: entry[name] for name in ("accuracy", "ci95", "n")}
    return found if again is None else {**found, "resubmitted_accuracy": again}
