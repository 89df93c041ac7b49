"""What the tables of TRN's article share: its attacks, their settings, evaluations of what was trained, its claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gandefense import zoo
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.settings import AttackEntry, WhiteBoxConfig
from gandefense.evaluation.wording import Table
from gandefense.reproduce import trainings
from gandefense.reproduce.evaluations import measured, row, shared
from gandefense.reproduce.writing import check_folder

TITLES = {"fgsm": "FGSM", "ffgsm": "FFGSM", "pgd": "PGD", "bim": "BIM", "mim": "MIM"}  # in the article's order
ATTACKS = tuple(TITLES)
SOURCE = (
    "Claims of the article on Hong, Hong & Kong, arXiv:2202.01117 (2022). Its tables are pictures of which no figure was "
    "readable to us, so none is quoted, and budgets, steps and classifiers behind them are not known."
)


@dataclass
class TRNTableConfig:
    """What every table of TRN is asked. A name that ends in .yaml is a recipe: it is trained, and its network taken."""

    data: DataConfig = field(default_factory=lambda: DataConfig(limit=1000))  # test images
    classifier: str = "cifar10/classifier"  # the defended one
    trn: str = "configs/trn/cifar10_trn.yaml"  # where a table trains several: the recipe they share
    train: dict[str, Any] = field(default_factory=dict)  # keys of that recipe with other values: {train: {steps: 500}}
    eps: float = 8 / 255
    pgd_steps: int = 20
    steps: int = 10  # of bim and mim
    seed: int = 0  # of the choice of test images and of the attacks on them
    device: str = "auto"
    batch_size: int = 100  # images per batch of an evaluation
    folder: str = "runs/reproduce"  # trainings and evaluations, gone on with when killed and used again when finished
    results: str = "results"  # folder of the table's files


def places(config: TRNTableConfig) -> tuple[Path, Path]:
    """The folders of trainings and of evaluations; all tables share them, so that none is made twice."""
    return Path(config.folder) / "trainings", Path(config.folder) / "evaluations"


def check(config: TRNTableConfig, networks: Sequence[str] = (), recipes: Sequence[str] = ()) -> None:
    """Find a mistake before any work.

    Args:
        config: the table's.
        networks: further names of networks or recipes, taken as they are.
        recipes: names that must be recipes, because the table trains several networks by each.

    Raises:
        UserError: an unknown data set, network or key, a name that is no recipe, folders that cannot be written.
    """
    datasets.describe(config.data.name)
    if (found := trainings.kind(config.classifier)) not in ("classifier", "own"):
        raise UserError(f"classifier={config.classifier} is a {found!r}, not a classifier")
    if trainings.kind(config.trn) != "trn":
        raise UserError(f"trn={config.trn} is no TRN")
    for name in recipes:
        if not trainings.is_recipe(name):
            raise UserError(
                f"this table trains several networks: {name!r} must be a recipe, such as configs/trn/cifar10_trn.yaml"
            )
    if config.train and not trainings.is_recipe(config.trn):
        raise UserError(f"train changes a recipe, but trn={config.trn} is a trained network")
    changes = {config.trn: config.train}
    for name in (config.classifier, config.trn, *networks, *recipes):
        trainings.check(name, config.data, changes.get(name) if trainings.is_recipe(name) else None)
    for folder in (*places(config), Path(config.results)):
        check_folder(folder)


def defended_classifier(config: TRNTableConfig) -> str:
    """The defended classifier, trained first where it is a recipe."""
    return trainings.network(config.classifier, config.data, places(config)[0], device=config.device)


def train_trn(config: TRNTableConfig, classifier: str, **changes: Any) -> str:
    """A TRN by the table's recipe, with its `train` and further changes; gives its run folder."""
    wanted = trainings.merged(trainings.merged(config.train, changes), {"classifier": classifier})
    return trainings.trained(config.trn, config.data, places(config)[0], device=config.device, changes=wanted)


def entries(config: TRNTableConfig, attacks: Sequence[str] = ATTACKS) -> list[AttackEntry]:
    """The article's attacks, or some of them, for an evaluation."""
    known = {"pgd": config.pgd_steps, "bim": config.steps, "mim": config.steps}
    return [AttackEntry(name, eps=config.eps, steps=known.get(name)) for name in attacks]


def gray_box(config: TRNTableConfig, classifier: str, restorers: Sequence[str] = (), attacks: Sequence[str] = ATTACKS) -> dict:
    """An evaluation against a classifier's own attackers, who ignore any restorer before it."""
    settings = {
        **shared(config),
        "classifier": classifier,
        "restorers": [NO_RESTORER, *restorers],
        "gray_box": entries(config, attacks),
        "white_box": WhiteBoxConfig(views=[], attacks=[]),
        "validation_images": 100,  # for detection, which no table here reports
        "images": 0,
    }
    return measured(settings, places(config)[1])


def figures(results: dict[str, Any], restorer: str, attacks: Sequence[str] = ATTACKS) -> dict[str, dict[str, Any]]:
    """Accuracy, interval and n of a restorer: "clean", then by attack."""
    found = {}
    for key, attack in (("clean", "none"), *((name, name) for name in attacks)):
        entry = row(results, restorer, "gray_box", attack)
        found[key] = {name: entry[name] for name in ("accuracy", "ci95", "n")}
    return found


def variation(found: dict[str, dict[str, Any]], attacks: Sequence[str] = ATTACKS) -> float:
    """The article's Variation: the highest accuracy over attacks less the lowest."""
    each = [found[name]["accuracy"] for name in attacks]
    return max(each) - min(each)


def claims_table(lines: list[list[str]]) -> Table:
    """What the article says, and what came out here; lines of two cells."""
    return Table("claims", "What the article says", SOURCE, ["published", "here"], lines)


def recipe_of(name: str) -> dict[str, Any]:
    """How a trained network was made: its whole config, as its weights file tells it."""
    return {"network": name, "config": zoo.describe(name).get("config")}


def budget_note(config: TRNTableConfig) -> str:
    """The attacks' settings in a sentence."""
    eps = f"{config.eps * 255:.3g}/255"
    return f"Gray_box at {eps}, PGD with {config.pgd_steps} steps, BIM and MIM with {config.steps}."


def recipe_note(config: TRNTableConfig) -> str:
    """How large the TRNs of a table are that it trains by one recipe, in a sentence."""
    made = trainings.prepared(config.trn, config.data, config.train)
    network = made.network
    places = f" at {network.halvings + 1} resolutions" if network.halvings else ""
    size = f"width {network.width}, {network.blocks * (2 * network.halvings + 1)} Fusion Blocks{places} unless said otherwise"
    return f"Every TRN: {made.attacked.rows:,} attacked images, {made.train.steps:,} steps of {made.train.batch_size}, {size}."
