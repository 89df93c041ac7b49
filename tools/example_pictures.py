#!/usr/bin/env python3
"""Draw docs/images/*.png: test images, attacked in ignorance and in knowledge of a shipped defence, and restored.

The images are the first of the seeded shuffle, not chosen. Needs matplotlib (the extra `plots`).

usage: python tools/example_pictures.py [images=4] [folder=docs/images] [seed=0]
"""

import io
from pathlib import Path

import torch
from torch import Tensor

import gandefense
from gandefense.attacks.suite import AttackSpec, attack
from gandefense.command_line import run_tool
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.data.batches import to_float
from gandefense.errors import UserError
from gandefense.evaluation.figures import RESIDUAL_GAIN, residual_picture
from gandefense.files import write_atomically

NAMES = ("cifar10/trn", "cifar10/gan")
SPEC = AttackSpec("pgd", eps=8 / 255, steps=20)
GREEN, RED = "#2a7f3f", "#b3261e"


def columns(name: str, images: Tensor, labels: Tensor, seed: int) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The picture's columns by title: images (N, C, H, W) in [0, 1], and the classes (N,) that are seen in them, if any."""
    defended = gandefense.load(name)
    ignorant = attack(defended.classifier, images, labels, SPEC, seed=seed).images
    knowing = attack(defended.view("detached"), images, labels, SPEC, seed=seed).images
    with torch.no_grad():
        seen, answered = (lambda batch: defended.classifier(batch).argmax(1)), (lambda batch: defended(batch).argmax(1))
        restored, again = defended.restore(ignorant).images, defended.restore(knowing).images
        return {
            "clean": (images, seen(images)),
            "attacked,\ngray_box": (ignorant, seen(ignorant)),
            "restored": (restored, answered(ignorant)),
            f"removed ×{RESIDUAL_GAIN}": (residual_picture(ignorant, restored), None),
            "attacked,\nwhite_box": (knowing, seen(knowing)),
            "restored ": (again, answered(knowing)),
        }


def draw(shown: dict[str, tuple[Tensor, Tensor | None]], labels: Tensor, classes: tuple[str, ...]) -> bytes:
    """The columns side by side as the bytes of a PNG, under each image the class that is seen in it, green where right."""
    from matplotlib import pyplot

    layout = {"figsize": (1.25 * len(shown), 1.55 * len(labels) + 0.3), "squeeze": False, "layout": "constrained"}
    figure, axes = pyplot.subplots(len(labels), len(shown), **layout)
    for column, (title, (pictures, seen)) in enumerate(shown.items()):
        for row, axis in enumerate(axes[:, column]):
            axis.imshow(pictures[row].permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=title if row == 0 else "")
            axis.spines[:].set_visible(False)
            if seen is not None:
                colour = GREEN if seen[row] == labels[row] else RED
                axis.set_xlabel(classes[seen[row]], color=colour, fontsize=9, labelpad=2)
            axis.title.set_fontsize(9)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return file.getvalue()


def main(arguments: list[str]) -> None:
    options = {"images": "4", "folder": "docs/images", "seed": "0"}
    known = set(options)
    options |= dict(word.split("=", 1) if "=" in word else (word, "") for word in arguments)
    if set(options) != known or not (options["images"].isdigit() and options["seed"].isdigit() and int(options["images"])):
        raise UserError(f"expected images=N, folder=FOLDER or seed=N, got {' '.join(arguments)}")
    try:
        import matplotlib
    except ImportError:
        raise UserError("the pictures need matplotlib: pip install 'gandefense[plots]'") from None
    matplotlib.use("agg")
    folder = Path(options["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    data = datasets.load(DataConfig(limit=int(options["images"])), "test", seed=int(options["seed"]))
    for name in NAMES:
        shown = columns(name, to_float(data.images), data.labels, int(options["seed"]))
        picture = draw(shown, data.labels, datasets.describe("cifar10").classes)
        path = folder / f"{name.replace('/', '_')}.png"
        write_atomically(path, lambda temporary, data=picture: temporary.write_bytes(data) and None)
        print(f"{path}, {len(picture) / 1024:.0f} KiB")


if __name__ == "__main__":
    run_tool(main, __doc__)
