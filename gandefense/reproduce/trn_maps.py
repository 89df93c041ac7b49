"""Controls on TRN's second input: what it restores with gradient maps that are not those of the image and its classifier.

Ours, not the article's. A network that read the label off the perturbation, and not off the maps, would restore as well with
wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gandefense import zoo
from gandefense.attacks.suite import AttackSpec, attack
from gandefense.data import datasets
from gandefense.data.batches import batches
from gandefense.errors import UserError
from gandefense.evaluation import metrics
from gandefense.evaluation.wording import Table, interval
from gandefense.reproduce import trainings
from gandefense.reproduce.trn_tables import TRNTableConfig, budget_note, check, defended_classifier
from gandefense.restorers.gradient_maps import GradientMaps, gradient_maps
from gandefense.training.state import choose_device

CLEAN = "clean"


@dataclass
class TRNMapsConfig(TRNTableConfig):
    """tools/reproduce.py trn-maps"""

    trn: str = "cifar10/trn"
    others: list[str] = field(default_factory=list)  # further TRNs of the same classifier, a table each
    foreign: str = "cifar10/surrogate"  # another classifier for the same data, whose maps are the wrong ones


def shuffled(maps: GradientMaps) -> GradientMaps:
    """Maps with their labels shuffled, for every image in an order of its own."""
    labels = maps.log_norms.shape[1]
    order = torch.stack([torch.randperm(labels) for _ in maps.log_norms]).to(maps.log_norms.device)
    each = maps.maps.unflatten(1, (labels, -1))
    each = each.gather(1, order[:, :, None, None, None].expand_as(each))
    return GradientMaps(each.flatten(1, 2), maps.log_norms.gather(1, order))


# what a TRN is handed → made from the image's own maps and from those of another classifier at the same image
SOURCES: dict[str, Callable[[GradientMaps, GradientMaps], GradientMaps]] = {
    "the image's own": lambda own, foreign: own,
    "labels shuffled": lambda own, foreign: shuffled(own),
    "another image's": lambda own, foreign: GradientMaps(*(part.roll(1, 0) for part in own)),  # the next one's of the batch
    "another classifier's": lambda own, foreign: foreign,
    "none (zeros)": lambda own, foreign: GradientMaps(*map(torch.zeros_like, own)),
}


def attacks(config: TRNMapsConfig) -> list[AttackSpec]:
    """One step and several, away from the true label and from the one that the classifier sees."""
    kinds = [("fgsm", None), ("pgd", config.pgd_steps)]
    return [AttackSpec(name, eps=config.eps, steps=steps, labels=of) for name, steps in kinds for of in ("true", "predicted")]


def run(config: TRNMapsConfig) -> tuple[list[Table], dict[str, Any]]:
    """Restore clean and attacked images with right and with wrong maps, and count what the classifier then sees rightly.

    Raises:
        UserError: before any work, an unknown network, one that is no TRN, or another classifier that is the defended one.
    """
    check(config, config.others)
    for name in (config.trn, *config.others):
        if trainings.is_recipe(name) or trainings.kind(name) != "trn":
            raise UserError(f"trn-maps looks at trained networks, and {name} is not a TRN that is")
    if trainings.kind(config.foreign) not in ("classifier", "own") or config.foreign == config.classifier:
        raise UserError(f"foreign={config.foreign} must be another classifier than the defended one")
    device = choose_device(config.device)
    classifier_name = defended_classifier(config)
    classifier, foreign = (zoo.load_classifier(name).to(device).eval() for name in (classifier_name, config.foreign))
    zoo.try_out(config.foreign, foreign, datasets.describe(config.data), device)
    restorers = {name: zoo.load_restorer(name, classifier).to(device).eval() for name in (config.trn, *config.others)}
    data = datasets.load(config.data, "test", seed=config.seed)
    specs = attacks(config)
    right: dict[tuple[str, str, str], list[Tensor]] = {}  # TRN, maps, attack → whether the classifier is right, batch by batch
    torch.manual_seed(config.seed)
    bar = tqdm(total=len(data.labels), desc="trn-maps", unit="image", dynamic_ncols=True)
    for number, (images, labels) in enumerate(batches(data, config.batch_size, device)):
        shown = {CLEAN: images}
        for spec in specs:
            shown[spec.title()] = attack(classifier, images, labels, spec, seed=config.seed + number).images
        with torch.no_grad():
            for title, batch in shown.items():
                for name, restorer in restorers.items():
                    own, others = (gradient_maps(network, batch, top_k=restorer.top_k) for network in (classifier, foreign))
                    for source, handed in SOURCES.items():
                        restored = restorer.network(batch, handed(own, others))
                        right.setdefault((name, source, title), []).append((classifier(restored).argmax(1) == labels).cpu())
        bar.update(len(labels))
    bar.close()
    titles = [CLEAN, *(spec.title() for spec in specs)]
    found = [
        {
            "network": name,
            "maps": source,
            "accuracy": {title: _figure(torch.cat(right[name, source, title])) for title in titles},
        }
        for name in restorers
        for source in SOURCES
    ]
    tables = [table(config, name, [entry for entry in found if entry["network"] == name], titles) for name in restorers]
    return tables, {"rows": found, "foreign": config.foreign}


def _figure(right: Tensor) -> dict[str, Any]:
    return {**metrics.accuracy(right), "n": len(right)}


def table(config: TRNMapsConfig, name: str, rows: list[dict[str, Any]], titles: list[str]) -> Table:
    """One network's, a line for each kind of maps."""
    note = (
        f"{budget_note(config)} Right behind {name} before {config.classifier}, with gradient maps that are those of the image, "
        f"or are not; the other classifier is {config.foreign}. (predicted): the attacker moves away from the label that the "
        "classifier sees. Trained on right maps alone, the network has met none of the wrong ones, so that what they cost is no "
        "measure of the maps' worth: for that trn-ablation trains networks without them."
    )
    lines = [[entry["maps"], *(interval(entry["accuracy"][title]) for title in titles)] for entry in rows]
    return Table(f"maps_{name.rsplit('/', 1)[-1]}", f"Wrong maps: {name}", note, ["gradient maps", *titles], lines)
