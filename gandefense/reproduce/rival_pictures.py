"""The two figures beside the rivals' tables: what a denoising block does to feature maps, and a universal perturbation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gandefense import zoo
from gandefense.attacks.suite import AttackSpec
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.data.batches import to_float
from gandefense.evaluation import plots
from gandefense.evaluation.denoising_figure import denoising_figure
from gandefense.evaluation.universal_figure import universal_figure
from gandefense.evaluation.wording import Table, percent, share

IMAGES = 200  # validation images; the universal perturbation is made from the first half of them


def pictures(
    data: DataConfig, classifier: str, with_blocks: str | None, folder: Path, *, eps: float, seed: int
) -> dict[str, Any]:
    """Draw rivals_universal.png and, of a network with denoising blocks, rivals_denoising.png; without matplotlib nothing.

    Both are drawn from validation images, of which no figure in the tables is made.

    Args:
        data: the tables' images; its `file` and `limit` do not matter here.
        classifier: name of the one that the universal perturbation is made for.
        with_blocks: name of one with denoising blocks, or None.
        folder: where the pictures go.
        eps: budget of both attacks, in pixel units.
        seed: of the images' order and the attacks.

    Returns:
        By figure: its file's name and what `universal_figure` and `denoising_figure` measured.
    """
    if not plots.available():
        print("no pictures without matplotlib: pip install 'gandefense[plots]'")
        return {}
    images = datasets.load(data.whole(IMAGES), "validation", seed=seed)
    pixels, labels = to_float(images.images), images.labels
    classes = datasets.describe(data).classes
    found = {}
    if with_blocks is not None:
        path, spec = folder / "rivals_denoising.png", AttackSpec("pgd", eps=eps, steps=20)
        measured = denoising_figure(zoo.load_classifier(with_blocks), pixels, labels, path, spec=spec, seed=seed)
        found["denoising"] = {"file": path.name, "classifier": with_blocks, **measured}
    path, spec = folder / "rivals_universal.png", AttackSpec("universal", eps=eps)
    measured = universal_figure(
        zoo.load_classifier(classifier), pixels, labels, path, spec=spec, names=classes, shown=8, seed=seed
    )
    found["universal"] = {"file": path.name, "classifier": classifier, **measured}
    return found


def pictures_table(found: dict[str, Any]) -> Table:
    """What the pictures show, in figures, with the pictures above it."""
    lines, links = [], []
    if "denoising" in found:
        figure = found["denoising"]
        links.append(f"![Feature maps of clean and attacked images before and after a denoising block]({figure['file']})")
        for i, change in enumerate(figure["blocks"]):
            said = f"{share(change['before'])} before it, {share(change['after'])} after it"
            lines.append(
                [figure["classifier"], f"feature maps changed by PGD-20, denoising block {i + 1}", said, str(figure["n"])]
            )
    if "universal" in found:
        figure = found["universal"]
        links.append(f"![One perturbation for all images, and images before and after it]({figure['file']})")
        said = f"accuracy {percent(figure['clean_accuracy'])} → {percent(figure['accuracy'])}"
        lines.append([figure["classifier"], "one perturbation for all images, made from others", said, str(figure["n"])])
    note = "\n\n".join(["Validation images. A map's change is ‖attacked − clean‖ / ‖clean‖ over all of a block's maps.", *links])
    return Table("pictures", "Pictures", note, ["classifier", "what", "measured", "images"], lines)
