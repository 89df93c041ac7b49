"""Picture panels: clean · attacked · restored · what was removed, and the maps that a restorer shows."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gandefense.evaluation.cells import Cell

SCALE = 4  # a 32×32 image becomes 128×128, pixel by pixel
RESIDUAL_GAIN = 10
LONGEST_NAME = 150  # letters of a file name, which may hold the paths of two networks
MAPS_SCALE = 2  # gradient maps, of which there is one per label


@dataclass
class Strip:
    """One row of pictures side by side: a PNG of equally wide columns, a caption for each, and whether it is right.

    `right` is None for a picture that no classifier was asked about.
    """

    png: bytes
    captions: list[str]
    right: list[bool | None]


@dataclass
class Panel:
    """All pictures of one restorer under one attack; `png` is the whole panel, `strips` are its rows for the report."""

    name: str
    title: str
    columns: list[str]
    png: bytes
    strips: list[Strip]
    map_strips: list[Strip]


def enlarge(images: Tensor, scale: int) -> Tensor:
    """Images (B, C, H, W) enlarged to (B, C, H·scale, W·scale), each pixel a square."""
    return F.interpolate(images, scale_factor=scale, mode="nearest")


def png(picture: Tensor) -> bytes:
    """A picture (3, H, W) in [0, 1] as the bytes of a PNG file."""
    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=6)
    return file.getvalue()


def row(pictures: list[Tensor], scale: int) -> Tensor:
    """Pictures (C, H, W) in [0, 1], C 1 or 3, side by side as one enlarged picture (3, H', W')."""
    from torchvision.utils import make_grid

    colour = [picture.expand(3, -1, -1) for picture in pictures]
    return make_grid(enlarge(torch.stack(colour), scale), nrow=len(colour), padding=scale, pad_value=1.0)


def residual_picture(attacked: Tensor, restored: Tensor) -> Tensor:
    """What the restorer removed, ten times enlarged around grey: nothing removed is grey; any shape, in [0, 1]."""
    return (0.5 + RESIDUAL_GAIN * (attacked - restored)).clamp(0, 1)


def columns_of(clean: Tensor, pictures: dict[str, Tensor]) -> dict[str, Tensor]:
    """The columns of a panel by title, each (N, C, H, W) in [0, 1].

    Args:
        clean: (N, C, H, W) in [0, 1].
        pictures: "attacked", "restored" and maps as "map NAME", each with at least N images.
    """
    count = len(clean)
    attacked, restored = pictures["attacked"][:count], pictures["restored"][:count]
    columns = {
        "clean": clean,
        "attacked": attacked,
        "restored": restored,
        f"removed ×{RESIDUAL_GAIN}": residual_picture(attacked, restored),
    }
    for name, tensor in pictures.items():
        if name == "map sparsity":
            columns["sparsity map"] = tensor[:count]
        elif re.fullmatch(r"map (cleaned|round_\d+)", name) and tensor.shape[1:] == clean.shape[1:]:
            columns[name.removeprefix("map ").replace("_", " ")] = tensor[:count]
    return columns


def label_maps(pictures: dict[str, Tensor], channels: int) -> Tensor | None:
    """Gradient maps as pictures (N, K, C, H, W) in [0, 1], zero being grey; None where a restorer has none."""
    maps = pictures.get("map gradient_maps")
    if maps is None or maps.shape[1] % channels:
        return None
    return (maps.unflatten(1, (-1, channels)) + 1) / 2


def panel(
    number: int,
    cell: Cell,
    clean: Tensor,
    pictures: dict[str, Tensor],
    classes: dict[str, Tensor],
    names: tuple[str, ...],
) -> Panel:
    """Draw one panel.

    Args:
        number: begins the picture's file name, so that two panels never share one.
        cell: restorer and attack.
        clean: (N, C, H, W) in [0, 1].
        pictures: see `columns_of`.
        classes: "label", and as predicted "clean", "attacked" and "restored", each (N,).
        names: of the classes.
    """
    columns = columns_of(clean, pictures)
    maps = label_maps(pictures, clean.shape[1])
    strips, map_strips, rows = [], [], []
    for i in range(len(clean)):
        label = int(classes["label"][i])
        captions, right = [], []
        for title in columns:
            seen = int(classes[title][i]) if title in ("clean", "attacked", "restored") else None
            captions.append("" if seen is None else names[seen])
            right.append(None if seen is None else seen == label)
        rows.append(row([tensor[i] for tensor in columns.values()], SCALE))
        strips.append(Strip(png(rows[-1]), captions, right))
        if maps is not None:
            # top_k maps come most probable first, not class by class, so they have no class names
            titles = list(names) if len(maps[i]) == len(names) else [f"rank {k + 1}" for k in range(len(maps[i]))]
            map_strips.append(Strip(png(row(list(maps[i]), MAPS_SCALE)), titles, [None] * len(titles)))
    spec = cell.spec
    budget = "" if spec is None else f" {spec.eps * 255:.3g}/255" if spec.norm == "linf" else f" {spec.eps:g}"
    view = "" if cell.threat == "gray_box" else f", {cell.view}"
    title = f"{cell.restorer} — {cell.threat}{view}: {cell.title}{budget}"
    words = f"{number:02d}_{cell.restorer}_{cell.threat}{view}_{cell.title}{budget}"
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", words)[:LONGEST_NAME].strip("_.")
    return Panel(name, title, list(columns), png(torch.cat(rows, dim=1)), strips, map_strips)
