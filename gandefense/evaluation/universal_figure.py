"""A figure of a universal perturbation: the one pattern, and images before and after it with what the classifier says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gandefense.attacks.suite import AttackSpec, attack, check_images, predict, universal_perturbation
from gandefense.errors import UserError
from gandefense.evaluation import plots
from gandefense.evaluation.wording import percent, pixels
from gandefense.files import write_atomically

RIGHT, WRONG = "#1a7f37", "#b42318"
SIDE = 1.3  # inches of a picture
DPI = 200


def universal_figure(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    path: str | Path,
    *,
    spec: AttackSpec | None = None,
    names: Sequence[str] | None = None,
    shown: int = 6,
    seed: int = 0,
) -> dict[str, Any]:
    """Make a universal perturbation from the first half of the images, measure it on the other half, and draw it as PNG.

    Shown are the first images of the second half that are right clean, whether it fools the classifier on them or not.

    Args:
        classifier: images (B, C, H, W) in [0, 1] → logits (B, K).
        images: (N, C, H, W) in [0, 1], C 1 or 3, N at least 2.
        labels: (N,) int64, true classes.
        path: of the PNG; its folder is made where it is missing.
        spec: a "universal" attack; None is the usual one at 8/255.
        names: of the classes; None writes their numbers.
        shown: images shown.
        seed: of the order in which the attack sees images.

    Returns:
        "n" images measured, "clean_accuracy" and "accuracy" on them, "eps", "steps", and the perturbation's "gain" in the
        picture.

    Raises:
        UserError: images that are none, another attack, no matplotlib.
    """
    spec = AttackSpec("universal") if spec is None else spec
    check_images(images)
    if spec.attack != "universal" or len(images) < 2:
        raise UserError("a universal figure needs a universal attack and at least two images")
    if not plots.available():
        raise UserError("figures need matplotlib: pip install 'gandefense[plots]'")
    half = len(images) // 2
    delta = universal_perturbation(classifier, images[:half], labels[:half], spec, seed=seed)
    clean, true = images[half:], labels[half:]
    attacked = attack(classifier, clean, true, spec, seed=seed, perturbation=delta).images
    before, after = predict(classifier, clean), predict(classifier, attacked)
    right = before == true
    gain = 0.5 / spec.eps if spec.eps else 1.0  # the budget's edge becomes black or white
    figures = {
        "n": len(clean),
        "clean_accuracy": right.double().mean().item(),
        "accuracy": (after == true).double().mean().item(),
        "eps": spec.eps,
        "steps": spec.steps,
        "gain": gain,
    }
    chosen = right.nonzero()[:shown, 0].tolist()
    said = [[str(int(k)) if names is None else names[int(k)] for k in predictions[chosen]] for predictions in (before, after)]
    rows = [
        [(clean[i], words, RIGHT) for i, words in zip(chosen, said[0], strict=True)],
        [(attacked[i], words, RIGHT if after[i] == true[i] else WRONG) for i, words in zip(chosen, said[1], strict=True)],
    ]
    title = (
        f"One perturbation for all images, {pixels(spec.eps)}: accuracy {percent(figures['clean_accuracy'])} → "
        f"{percent(figures['accuracy'])} on {len(clean)} images that it was not made from"
    )
    _draw(Path(path), 0.5 + gain * delta, f"perturbation\n×{gain:.3g}", rows, title)
    return figures


def _draw(path: Path, pattern: Tensor, caption: str, rows: list[list[tuple[Tensor, str, str]]], title: str) -> None:
    """The pattern on the left, then the two rows of (picture, words, colour), each picture (C, H, W) in [0, 1]."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(1, len(rows[0]))
    with style.context(["default", {"text.parse_math": False, "font.size": 8}]):  # whatever a user's matplotlibrc says
        figure = Figure(figsize=(SIDE * (columns + 2), 2 * SIDE + 0.9), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, columns + 2)
        _picture(figure.add_subplot(grid[:, :2]), pattern, caption, "black")
        for r, (row, name) in enumerate(zip(rows, ("clean", "perturbed"), strict=True)):
            for c, (picture, words, colour) in enumerate(row):
                axes = figure.add_subplot(grid[r, c + 2])
                _picture(axes, picture, words, colour)
                if c == 0:
                    axes.set_ylabel(name)
        figure.suptitle(title, fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))


def _picture(axes: Any, picture: Tensor, words: str, colour: str) -> None:
    pixels_of = picture.detach().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
    shape = pixels_of[0] if len(pixels_of) == 1 else pixels_of.permute(1, 2, 0)
    axes.imshow(shape.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(words, color=colour, fontsize=8)
