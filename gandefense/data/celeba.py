"""CelebA in torchvision's layout: which images are there, whose they are and what the tables say of them.

Partial copies are fine: only files that are there count. Liu et al. (2015), "Deep Learning Face Attributes in the Wild"; the
images are for non-commercial research only.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gandefense.errors import UserError

# fmt: off
ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee",
    "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard",
    "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)
# fmt: on
MOST_ATTRIBUTES = 6  # at once: 64 classes
SIZES = (32, 64, 128, 256, 512, 1024)
IMAGES = {"aligned": "img_align_celeba", "hq": "celeba_hq_1024"}  # data.images → folder
ATTRIBUTE_TABLE, SPLIT_TABLE, IDENTITY_TABLE = "list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt"
SPLITS = ("train", "validation", "test")  # 0, 1, 2 in the official table
SPLIT_RULES = ("official", "identity")
WHERE = (
    "CelebA is not downloaded by itself: get it, for non-commercial research only, from "
    f"https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, and put {IMAGES['aligned']}/*.jpg, {ATTRIBUTE_TABLE}, {SPLIT_TABLE} and "
    f"{IDENTITY_TABLE} (parts of them will do) into the folder celeba of data.root or GANDEFENSE_DATA"
)


class Listed(NamedTuple):
    """The images of one split that are there.

    Attributes:
        files: N paths, sorted by name.
        labels: (N,) int64, see `class_names`.
        index: (N,) int64, position among the sorted images of all splits.
        told: what a person should know about them, in one line.
    """

    files: list[Path]
    labels: np.ndarray
    index: np.ndarray
    told: str


def check_attributes(attributes: Sequence[str]) -> None:
    """Raise UserError for none, too many, repeated or unknown attributes."""
    known = {name.casefold(): name for name in ATTRIBUTES}
    for name in attributes:
        if name not in ATTRIBUTES:
            near = difflib.get_close_matches(str(name).casefold().replace(" ", "_"), known, n=1, cutoff=0.5)
            hint = f"did you mean {known[near[0]]}?" if near else f"known: {', '.join(ATTRIBUTES)}"
            raise UserError(f"data.attributes: CelebA has no attribute {name!r}; {hint}")
    if not 1 <= len(attributes) <= MOST_ATTRIBUTES or len(set(attributes)) < len(attributes):
        raise UserError(
            f"data.attributes takes 1 … {MOST_ATTRIBUTES} different attributes, got {', '.join(attributes) or 'none'}"
        )


def class_names(attributes: Sequence[str]) -> tuple[str, ...]:
    """The classes that attributes make: one for every combination, counted in binary, the first attribute's digit first.

    One attribute: ("not Smiling", "Smiling"). Two make four: "not Male, not Smiling", "not Male, Smiling" … So a classifier
    has one answer, and an attack succeeds when it changes any of the attributes.
    """
    return tuple(
        ", ".join(name if has else f"not {name}" for name, has in zip(attributes, digits, strict=True))
        for digits in product((False, True), repeat=len(attributes))
    )


def identity_split(identity: int) -> str:
    """The split of a person under data.split=identity: 80 : 10 : 10, the same in every partial copy."""
    digit = int(hashlib.sha256(f"celeba identity {identity}".encode()).hexdigest(), 16) % 10
    return SPLITS[max(0, digit - 7)]


def listed(folder: Path, split: str, *, attributes: Sequence[str], rule: str = "official", images: str = "aligned") -> Listed:
    """What is there of a split.

    Args:
        folder: holds the images' folder and the tables.
        split: "train", "validation" or "test".
        attributes: see `class_names`.
        rule: "official", the authors' partition, or "identity", see `identity_split`.
        images: "aligned" or "hq", see IMAGES.

    Raises:
        UserError: folder, table or every image missing, a table that cannot be read or lacks an image, an unknown rule.
    """
    for key, value, known in (("split", rule, SPLIT_RULES), ("images", images, tuple(IMAGES))):
        if value not in known:
            raise UserError(f"data.{key} must be {' or '.join(known)}, got {value!r}")
    place = folder / IMAGES[images]
    try:
        names = sorted(path.name for path in place.iterdir() if path.suffix.lower() == ".jpg" and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}. {WHERE}") from None
    if not names:
        raise UserError(f"{place} holds no .jpg file. {WHERE}")
    bits = _attributes(folder / ATTRIBUTE_TABLE, attributes, names)
    has_identities = rule == "identity" or (folder / IDENTITY_TABLE).exists()
    people = _numbers(folder / IDENTITY_TABLE, names) if has_identities else {}
    if rule == "official":
        numbers = _numbers(folder / SPLIT_TABLE, names)
        wrong = next((name for name in names if not 0 <= numbers[name] <= 2), None)
        if wrong is not None:
            raise UserError(f"{folder / SPLIT_TABLE}: {wrong} is in split {numbers[wrong]}, known: 0, 1, 2")
        of = {name: SPLITS[numbers[name]] for name in names}
    else:
        of = {name: identity_split(people[name]) for name in names}
    index = [i for i, name in enumerate(names) if of[name] == split]
    if not index:
        raise UserError(f"{place}: none of its {len(names):,} images belongs to the {split} split (data.split={rule})")
    chosen = [names[i] for i in index]
    weights = 2 ** np.arange(len(attributes))[::-1]
    labels = np.array([bits[name] for name in chosen], np.int64) @ weights
    told = f"celeba {split}: {len(chosen):,} of {len(names):,} {images} images in {place}; {_leak(of, people)}"
    return Listed([place / name for name in chosen], labels, np.array(index), told)


def _leak(split_of: dict[str, str], people: dict[str, int]) -> str:
    """Whether somebody is in two splits, in words."""
    if not people:
        return f"whether a person is in two splits is not known (no {IDENTITY_TABLE})"
    met: dict[int, set[str]] = defaultdict(set)
    for name, split in split_of.items():
        met[people[name]].add(split)
    both = sorted(person for person, splits in met.items() if len(splits) > 1)
    if both:
        return f"{len(both)} of {len(met)} people are in two splits, such as number {both[0]}; data.split=identity avoids it"
    return f"none of the {len(met)} people is in two splits"


def _lines(table: Path) -> list[list[str]]:
    """The words of every line of a table."""
    try:
        text = table.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{table}: {error.strerror}. {WHERE}") from None
    return [line.split() for line in text.splitlines()]


def _complete(table: Path, rows: dict[str, object], names: list[str]) -> None:
    lacking = [name for name in names if name not in rows]
    if lacking:
        more = f" and {len(lacking) - 1:,} more image(s)" if len(lacking) > 1 else ""
        raise UserError(f"{table} has no line for {lacking[0]}{more}; take the table that belongs to the images")


def _attributes(table: Path, attributes: Sequence[str], names: list[str]) -> dict[str, list[bool]]:
    """Whether each image has each of some attributes."""
    lines = _lines(table)
    header = lines[1] if len(lines) > 1 else []
    for name in attributes:
        if name not in header:
            raise UserError(f"{table}: its second line does not name the attribute {name}; it is damaged or another table")
    columns = [1 + header.index(name) for name in attributes]
    rows: dict[str, list[bool]] = {}
    for number, words in enumerate(lines[2:], start=3):
        if not words:
            continue
        values = [words[column] for column in columns] if len(words) == len(header) + 1 else []
        if not values or not set(values) <= {"1", "-1"}:
            raise UserError(f"{table}: line {number} should be a file name and {len(header)} values of 1 or -1")
        rows[words[0]] = [value == "1" for value in values]
    _complete(table, rows, names)
    return rows


def _numbers(table: Path, names: list[str]) -> dict[str, int]:
    """The number that a table of two columns gives to each image."""
    rows: dict[str, int] = {}
    for number, words in enumerate(_lines(table), start=1):
        if not words:
            continue
        if len(words) != 2 or not (words[1].isascii() and words[1].isdigit()):
            raise UserError(f"{table}: line {number} should be a file name and a number")
        rows[words[0]] = int(words[1][:18])
    _complete(table, rows, names)
    return rows
