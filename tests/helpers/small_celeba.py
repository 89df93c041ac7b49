"""A small CelebA in torchvision's layout: drawn faces of 178×218 pixels, whose mouths say whether they smile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gandefense.data import celeba

PEOPLE = 10  # the first eight are in the training split, the last in the test split
EACH = 4  # images of a person; the second and the fourth smile, the third and the fourth are Male
HQ = 3  # images, those of the first person


def names() -> list[str]:
    """The file names, in order."""
    return [f"{number:06d}.jpg" for number in range(1, PEOPLE * EACH + 1)]


def face(smiles: bool, *, width: int, height: int, seed: int) -> Image.Image:
    """An oval on a plain background, with eyes, and a mouth whose corners point up or down."""
    random = np.random.default_rng(seed)
    background, skin = (tuple(int(value) for value in random.integers(low, high, 3)) for low, high in ((0, 120), (150, 230)))
    picture = Image.new("RGB", (width, height), background)
    draw, side = ImageDraw.Draw(picture), min(width, height)
    left, top = (width - side) // 2, (height - side) // 2

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return left + x0 * side, top + y0 * side, left + x1 * side, top + y1 * side

    draw.ellipse(box(0.15, 0.05, 0.85, 0.95), fill=skin)
    for x in (0.3, 0.6):
        draw.ellipse(box(x, 0.35, x + 0.1, 0.42), fill="black")
    start, end = (20, 160) if smiles else (200, 340)
    draw.arc(box(0.32, 0.6, 0.68, 0.82), start, end, fill=(160, 0, 0), width=side // 14)
    return picture


def write(folder: Path) -> None:
    """Write images and tables; of the attributes only Smiling and Male mean anything."""
    aligned, hq = folder / "img_align_celeba", folder / "celeba_hq_1024"
    aligned.mkdir(parents=True)
    hq.mkdir()
    rows, splits, people = [], [], []
    for i, name in enumerate(names()):
        person, has = i // EACH, {"Smiling": i % 2 == 1, "Male": i % EACH >= 2}
        face(has["Smiling"], width=178, height=218, seed=i).save(aligned / name, quality=95)
        if i < HQ:
            face(has["Smiling"], width=1024, height=1024, seed=i).save(hq / name, quality=95)
        rows.append(f"{name} " + " ".join(" 1" if has.get(attribute) else "-1" for attribute in celeba.ATTRIBUTES))
        splits.append(f"{name} {max(0, person - PEOPLE + 3)}")
        people.append(f"{name} {person + 100}")
    lines = {
        celeba.ATTRIBUTE_TABLE: [str(len(rows)), " ".join(celeba.ATTRIBUTES) + " ", *rows],
        celeba.SPLIT_TABLE: splits,
        celeba.IDENTITY_TABLE: people,
    }
    for table, content in lines.items():
        (folder / table).write_text("\n".join(content) + "\n", encoding="utf-8")
