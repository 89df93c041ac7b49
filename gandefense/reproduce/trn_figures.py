"""The article's figures: original, attacked and restored images, and the gradient maps of every class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gandefense import zoo
from gandefense.attacks.suite import AttackSpec, attack
from gandefense.data import datasets
from gandefense.data.batches import to_float
from gandefense.errors import UserError
from gandefense.evaluation import figures as pictures
from gandefense.evaluation import metrics
from gandefense.evaluation.wording import Table
from gandefense.files import write_atomically
from gandefense.reproduce import trainings
from gandefense.reproduce.trn_tables import TRNTableConfig, budget_note, check, claims_table, defended_classifier, train_trn
from gandefense.restorers.gradient_maps import gradient_maps
from gandefense.training.state import choose_device


@dataclass
class TRNFiguresConfig(TRNTableConfig):
    """tools/reproduce.py trn-figures"""

    trn: str = "cifar10/trn"
    shown: int = 8  # images, the first of the seeded shuffle of data.limit test images


def run(config: TRNFiguresConfig) -> tuple[list[Table], dict[str, Any]]:
    """Attack test images with PGD, restore them, and draw both pictures beside the table's files.

    Raises:
        UserError: before any work, an unknown network or one that is no TRN; no image whose class the attack changed.
    """
    if config.shown < 1:
        raise UserError(f"shown must be at least 1, got {config.shown}")
    check(config)
    classifier_name = defended_classifier(config)
    trn = train_trn(config, classifier_name) if trainings.is_recipe(config.trn) else config.trn
    device = choose_device(config.device)
    classifier = zoo.load_classifier(classifier_name).to(device)
    restorer = zoo.load_restorer(trn, classifier).to(device)
    data = datasets.load(config.data, "test", seed=config.seed)
    looked = min(len(data.labels), max(config.shown, config.batch_size))
    clean, labels = to_float(data.images[:looked]).to(device), data.labels[:looked].to(device)
    spec = AttackSpec("pgd", eps=config.eps, steps=config.pgd_steps)
    attacked = attack(classifier, clean, labels, spec, seed=config.seed).images
    with torch.no_grad():
        restored = restorer(attacked).images
        seen = {name: classifier(batch).argmax(1) for name, batch in _named(clean, attacked, restored).items()}

    changed = ((seen["original"] == labels) & (seen["attacked"] != labels)).nonzero().flatten()
    if not len(changed):
        raise UserError(f"among {looked} images the attack changed no right class; take a larger eps or other images (seed=…)")
    one = int(changed[0])
    shown = slice(0, min(config.shown, looked))
    names = datasets.describe(config.data.name).classes
    images = [
        {"label": names[labels[i]], **{name: names[classes[i]] for name, classes in seen.items()}, **quality}
        for i, quality in enumerate(_quality(clean[shown], attacked[shown], restored[shown]))
    ]
    maps = {name: gradient_maps(classifier, batch[one : one + 1]) for name, batch in _named(clean, attacked).items()}
    norms = [
        {"class": names[k], **{f"log10_norm_{name}": found.log_norms[0, k].item() / LN10 for name, found in maps.items()}}
        for k in range(len(names))
    ]
    files = draw(config, clean[shown], attacked[shown], restored[shown], {name: found.maps[0] for name, found in maps.items()})
    about = {"image": one, "label": names[labels[one]], **{name: names[classes[one]] for name, classes in seen.items()}}
    tables = [restored_table(config, images, files[0]), maps_table(about, norms, files[1]), claims_table(claims(about, norms))]
    return tables, {"network": trn, "images": images, "gradient_maps": {**about, "classes": norms}, "files": files}


LN10 = 2.302585092994046


def _named(original: Tensor, attacked: Tensor, restored: Tensor | None = None) -> dict[str, Tensor]:
    found = {"original": original, "attacked": attacked}
    return found if restored is None else {**found, "restored": restored}


def _quality(clean: Tensor, attacked: Tensor, restored: Tensor) -> list[dict[str, float]]:
    """PSNR of attacked and restored images against the originals, image by image."""
    each = {
        f"psnr_{name}": metrics.quality(batch, clean)["psnr"].tolist()
        for name, batch in (("attacked", attacked), ("restored", restored))
    }
    return [dict(zip(each, values, strict=True)) for values in zip(*each.values(), strict=True)]


def draw(config: TRNFiguresConfig, clean: Tensor, attacked: Tensor, restored: Tensor, maps: dict[str, Tensor]) -> list[str]:
    """Write both pictures, and give their names.

    Args:
        config: the table's.
        clean, attacked, restored: (N, C, H, W) in [0, 1].
        maps: of one image, original and attacked, (K·C, H, W) in [-1, 1].
    """
    rows = [
        pictures.row(list(columns), pictures.SCALE) for columns in zip(clean.cpu(), attacked.cpu(), restored.cpu(), strict=True)
    ]
    maps_rows = [
        pictures.row(list((found.cpu() / 2 + 0.5).unflatten(0, (-1, clean.shape[1]))), pictures.SCALE) for found in maps.values()
    ]
    written = []
    for name, group in (("", rows), ("-maps", maps_rows)):
        path = Path(config.results) / f"trn-figures-{config.data.name}{name}.png"
        content = pictures.png(torch.cat(group, dim=1))
        write_atomically(path, lambda temporary, content=content: temporary.write_bytes(content) and None)
        written.append(path.name)
    return written


def restored_table(config: TRNFiguresConfig, images: list[dict[str, Any]], picture: str) -> Table:
    """Row by row what the classifier sees in the picture."""
    lines = [
        [
            entry["label"],
            entry["original"],
            entry["attacked"],
            entry["restored"],
            *(f"{entry[f'psnr_{name}']:.1f}" for name in ("attacked", "restored")),
        ]
        for entry in images
    ]
    note = (
        f"{budget_note(config)} The first images of the seeded shuffle, not chosen; columns: original, attacked, restored.\n\n"
        f"![original, attacked, restored]({picture})\n\nWhat the classifier sees in them, row by row, and PSNR in dB:"
    )
    header = ["label", "original seen as", "attacked seen as", "restored seen as", "PSNR attacked", "PSNR restored"]
    return Table("restored", "Original, attacked, restored", note, header, lines)


def maps_table(about: dict[str, Any], norms: list[dict[str, Any]], picture: str) -> Table:
    """The gradient maps' sizes, class by class."""
    lines = []
    for entry in norms:
        remarks = [what for what in ("label", "original", "attacked") if about[what] == entry["class"]]
        remarks = ["label" if what == "label" else f"{what} image seen as this" for what in remarks]
        lines.append(
            [entry["class"], f"{entry['log10_norm_original']:.2f}", f"{entry['log10_norm_attacked']:.2f}", ", ".join(remarks)]
        )
    note = (
        "An image that was seen rightly and, once attacked, wrongly: the first such one. Upper row: the gradient maps of the "
        "original, lower row: of the attacked image, class by class from left to right, each divided by its own root mean "
        f"square; zero is grey.\n\n![gradient maps of every class]({picture})\n\nlog10 of those root mean squares:"
    )
    return Table("maps", "Gradient maps of every class", note, ["class", "original", "attacked", "remark"], lines)


def claims(about: dict[str, Any], norms: list[dict[str, Any]]) -> list[list[str]]:
    """The article's claim about the gradient maps, against the sizes of these maps."""
    smallest = {name: min(norms, key=lambda entry: entry[f"log10_norm_{name}"])["class"] for name in ("original", "attacked")}
    here = "; ".join(
        f"{name}: the smallest map is that of {smallest[name]}, and it is seen as {about[name]}"
        for name in ("original", "attacked")
    )
    return [
        [
            "the map of the class that an attack makes the classifier see is unlike the others, so attacks can be told by it",
            f"{here}. The map of whatever class is seen with confidence vanishes, in clean images too",
        ]
    ]
