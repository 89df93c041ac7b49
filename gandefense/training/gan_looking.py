"""What the GAN training loop shows in TensorBoard: fixed grids, the detector's ROC, which levels are taken for which."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from gandefense.attacks.cache import AttackedSet
from gandefense.attacks.level import LEVELS
from gandefense.data import datasets
from gandefense.data.batches import to_float
from gandefense.evaluation.metrics import auroc, roc
from gandefense.restorers.gan import GANRestorer
from gandefense.training.gan_validation import NOISES, Validation
from gandefense.training.run import Run

COLUMNS = 12  # of a grid, at most
WIDEST = 1024  # pixels of a grid, unless four images are wider


def look(run: Run, restorer: GANRestorer, seen: Validation, attacked: AttackedSet, images: datasets.Images) -> None:
    """Everything that is shown of one validation; see `grids`, `confusion` and `roc_picture`."""
    grids(run, restorer, attacked, images)
    run.text("detection/levels", confusion(seen))
    picture = roc_picture(seen.scores)
    if picture is not None:
        run.picture("detection/roc", picture)


@torch.no_grad()
def grids(run: Run, restorer: GANRestorer, attacked: AttackedSet, images: datasets.Images) -> None:
    """Fixed grids, for the attacks and each noise level: clean · attacked · sparsity · cleaned · each round · residual ×10."""
    device = next(restorer.parameters()).device
    columns = min(len(attacked), max(4, min(COLUMNS, WIDEST // images.images.shape[-1])))  # fewer of large images
    rows = torch.linspace(0, len(attacked) - 1, columns).long()  # not every so many, which could be always the same attack
    clean = to_float(images.images[attacked.source[rows]])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    shown = {"attacked": attacked.rows(rows)}
    shown |= {f"gaussian_{level}": (clean + level / 2 * noise).clamp(0, 1) for level in NOISES}
    for name, batch in shown.items():
        made = restorer(batch.to(device)).maps
        rounds = [made[f"round_{number + 1}"] for number in range(restorer.rounds)]
        run.grid(f"pictures/{name}", [clean, batch, made["sparsity"], made["cleaned"], *rounds, made["residual"] * 10 + 0.5])


def confusion(seen: Validation) -> str:
    """Which levels are taken for which, as a Markdown table of shares, a line for each true level."""
    counts = seen.confusion()
    names = [f"{level:g}" for level in LEVELS]
    lines = [f"| true level | images | {' | '.join(f'taken for {name}' for name in names)} |", "|---" * (len(names) + 2) + "|"]
    for name, row in zip(names, counts, strict=True):
        total = int(row.sum())
        shares = [f"{100 * int(count) / total:.1f} %" if total else "–" for count in row]
        lines.append(f"| {name} | {total} | {' | '.join(shares)} |")
    return "\n".join(lines)


def roc_picture(scores: dict[str, Tensor]) -> Tensor | None:
    """Detected share against false positives, a line for each perturbation, as a picture (3, H, W) in [0, 1].

    None where there is nothing to draw, or no matplotlib (pip install 'gandefense[plots]').
    """
    clean = scores.get("clean", torch.zeros(0))
    met = {name: values for name, values in scores.items() if name != "clean" and len(values)}
    if not len(clean) or not met or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), dpi=100, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="clean images flagged", ylabel="attacked images detected", xlim=(0, 1), ylim=(0, 1.01))
    axes.grid(color="#e4e4e4")
    for name, values in met.items():
        curve = roc(clean, values)
        axes.plot(
            curve["fpr"], curve["tpr"], label=f"{name.replace('_', ' ')} (AUROC {auroc(clean, values):.3f}, n = {len(values)})"
        )
    axes.legend(loc="lower right", fontsize=7)
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.view(height, width, 4)[:, :, :3].permute(2, 0, 1).float() / 255
