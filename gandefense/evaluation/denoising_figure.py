"""A figure of feature denoising: one channel's map for clean and attacked images, before and after a denoising block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gandefense.attacks.suite import AttackSpec, attack, check_images, frozen
from gandefense.classifiers.feature_denoising import FeatureMaps, feature_maps
from gandefense.errors import UserError
from gandefense.evaluation import plots
from gandefense.evaluation.wording import pixels
from gandefense.files import write_atomically

SIDE = 1.3  # inches of a picture
DPI = 200
COLUMNS = (
    "clean image",
    "attacked image",
    "clean map,\nbefore",
    "attacked map,\nbefore",
    "clean map,\nafter",
    "attacked map,\nafter",
)


def noise(clean: Tensor, attacked: Tensor) -> float:
    """‖attacked − clean‖ / ‖clean‖ over all maps (B, C, H, W): how much of a feature map an attack has changed."""
    return ((attacked - clean).norm() / clean.norm().clamp(min=1e-12)).item()


def denoising_figure(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    path: str | Path,
    *,
    spec: AttackSpec | None = None,
    block: int = 1,
    shown: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Attack images, and draw one channel before and after a denoising block as PNG, as the figures of Xie et al. (2019) do.

    Each row shows the channel that the attack changes most before the block. All maps of a row share one scale of colours.

    Args:
        classifier: images (B, C, H, W) in [0, 1] → logits (B, K), with denoising blocks.
        images: (N, C, H, W) in [0, 1], C 1 or 3.
        labels: (N,) int64, true classes.
        path: of the PNG; its folder is made where it is missing.
        spec: the attack; None is PGD-20 at 8/255.
        block: which block of the network, 0, 1 … in the order of a pass; 1 lies after the first stage.
        shown: the first so many images are drawn; the noise is measured on all.
        seed: of the attack.

    Returns:
        "n", and for each block in "blocks" the noise "before" and "after" it (see `noise`) over all N images.

    Raises:
        UserError: images that are none, a classifier without such a block, no matplotlib.
    """
    spec = AttackSpec("pgd", steps=20) if spec is None else spec
    check_images(images)
    if not len(images):
        raise UserError("a denoising figure needs at least one image")
    if not plots.available():
        raise UserError("figures need matplotlib: pip install 'gandefense[plots]'")
    attacked = attack(classifier, images, labels, spec, seed=seed).images
    with frozen(classifier):
        clean_maps, attacked_maps = feature_maps(classifier, images), feature_maps(classifier, attacked)
    if not 0 <= block < len(clean_maps):
        raise UserError(f"this classifier has {len(clean_maps)} denoising blocks, and none of number {block}")
    pairs = list(zip(clean_maps, attacked_maps, strict=True))
    blocks = [{"before": noise(c.before, a.before), "after": noise(c.after, a.after)} for c, a in pairs]
    rows = [_row(images[i], attacked[i], *pairs[block], i) for i in range(min(shown, len(images)))]
    where, change = f"block {block + 1} of {len(blocks)}", blocks[block]
    title = (
        f"Feature maps at denoising {where}, {spec.attack}-{spec.steps} at {pixels(spec.eps)}: the attack changes "
        f"{change['before']:.0%} of them before the block and {change['after']:.0%} after it"
    )
    _draw(Path(path), rows, title)
    return {"n": len(images), "blocks": blocks}


def _row(image: Tensor, attacked: Tensor, clean_maps: FeatureMaps, attacked_maps: FeatureMaps, i: int) -> list[Tensor]:
    """The six pictures of one image: two images (C, H, W), four maps (H, W) of the channel that the attack changes most."""
    change = (attacked_maps.before[i] - clean_maps.before[i]).flatten(1).norm(dim=1)
    channel = int(change.argmax())
    maps = (clean_maps.before, attacked_maps.before, clean_maps.after, attacked_maps.after)
    return [image, attacked, *(tensor[i, channel].float() for tensor in maps)]


def _draw(path: Path, rows: list[list[Tensor]], title: str) -> None:
    """One row of pictures for each image; maps in the colours of their row's smallest to largest value."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", {"text.parse_math": False, "font.size": 8}]):  # whatever a user's matplotlibrc says
        size = (SIDE * len(COLUMNS) + 0.6, SIDE * len(rows) + 0.8)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
        for axes_row, pictures in zip(grid, rows, strict=True):
            low, high = (min(p.min().item() for p in pictures[2:]), max(p.max().item() for p in pictures[2:]))
            for axes, picture in zip(axes_row, pictures, strict=True):
                if picture.ndim == 2:
                    drawn = axes.imshow(picture.cpu().numpy(), cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
                else:
                    shape = picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)
                    axes.imshow(shape.clamp(0, 1).cpu().numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
            figure.colorbar(drawn, ax=list(axes_row), pad=0.01, fraction=0.02)
        for axes, column in zip(grid[0], COLUMNS, strict=True):
            axes.set_title(column, fontsize=8)
        figure.suptitle(title, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
