"""A folder of images through a restorer: read them, restore them in batches, write PNGs and scores.csv."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gandefense import own_parts, zoo
from gandefense.data import datasets
from gandefense.data.batches import at_once, to_float
from gandefense.data.datasets import Dataset
from gandefense.errors import UserError
from gandefense.files import print_interval, write_text
from gandefense.image_files import SUFFIXES, UnreadableError, read_image, write_image
from gandefense.memory import ran_out
from gandefense.restorers.base import Restoration, Restorer

SCORES = "scores.csv"
BATCH = 100  # images of 32×32 pixels restored at a time
COLUMNS = ("file", "score", "flagged", "level", "rounds", "note")


@dataclass
class Job:
    """One image: where it lies and where its restored version goes, relative to the two folders."""

    source: Path
    target: Path


@dataclass
class Summary:
    """What became of a folder.

    Attributes:
        restored: images written.
        flagged: of these, flagged as attacked.
        unreadable: files that were skipped, with the reason.
        changes: how many images had to be changed before they could be restored, by what was done.
    """

    restored: int = 0
    flagged: int = 0
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)


def load(name: str, classifier: str | None) -> tuple[Restorer, Dataset | None]:
    """A restorer by name, and the data set whose images it takes; None where an own or a ready restorer takes any.

    Args:
        name: see `zoo.load_restorer`.
        classifier: the classifier that it reads; None takes the one that it was trained for.

    Raises:
        UserError: unknown names, a classifier in the restorer's place, networks of different data sets, an own restorer
            that needs a classifier and got none.
    """
    description = zoo.describe(name)
    if description.get("kind") == "classifier":
        raise UserError(f"{name} is a classifier, not a restorer")
    known = description.get("data")
    if classifier is not None:
        met = zoo.describe(classifier).get("data")
        if None not in (known, met) and known != met:
            raise UserError(f"{name} is for {known!r}, but {classifier} for {met!r}")
        known = known or met
        restorer = zoo.load_restorer(name, zoo.load_classifier(classifier))
    elif zoo.is_ready(name):
        restorer = zoo.load_restorer(name, nn.Identity())
    elif not zoo.is_own(name):
        restorer = zoo.load(name).restorer
    elif own_parts.takes_classifier(own_parts.resolve(name)):
        raise UserError(f"{name} wants a classifier; name one with --classifier")
    else:
        restorer = zoo.load_restorer(name, nn.Identity())
    if known is None:
        return restorer, None
    data = datasets.describe(known)
    zoo.try_out(name, restorer, data)
    return restorer, data


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images in a folder and its sub-folders by their endings, and all other files; hidden ones are left out.

    Raises:
        UserError: the folder is missing or cannot be read, or holds no image.
    """
    if not folder.is_dir():
        raise UserError(f"input folder not found: {folder}")

    def unreadable(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None

    images, others = [], []
    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (name for name in files if not name.startswith(".")):
            path = Path(place, name).relative_to(folder)
            (images if path.suffix.lower() in SUFFIXES else others).append(path)
    if not images:
        raise UserError(f"no image in {folder} (a file that ends in {', '.join(SUFFIXES)})")
    return sorted(images), sorted(others)


def plan(images: list[Path]) -> list[Job]:
    """Name every image's restored version: x.jpg becomes x.png, or x.jpg.png where x.png would stand for two images.

    Raises:
        UserError: two images would still share a name (x.png and x.PNG).
    """
    wanted = Counter(str(path.with_suffix(".png")).casefold() for path in images)
    jobs = []
    for path in images:
        alone = wanted[str(path.with_suffix(".png")).casefold()] == 1
        jobs.append(Job(path, path.with_suffix(".png") if alone or path.suffix.lower() == ".png" else Path(f"{path}.png")))
    taken: dict[str, Path] = {}
    for job in jobs:
        other = taken.setdefault(str(job.target).casefold(), job.source)
        if other != job.source:
            raise UserError(f"{other} and {job.source} would both become {job.target}; rename one")
    return jobs


def check_output(source: Path, target: Path, jobs: list[Job], *, overwrite: bool) -> None:
    """Refuse, before any work, to overwrite something or to mix the two folders; raises UserError."""
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"the output folder {target} and the input folder {source} must not lie in one another")
    if target.exists() and not target.is_dir():
        raise UserError(f"the output folder {target} is a file")
    if overwrite:
        return
    taken = [path for path in (SCORES, *(job.target for job in jobs)) if os.path.lexists(target / path)]
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UserError(f"{target / taken[0]}{more} would be overwritten; give another output folder, or --overwrite")


def rounds(restoration: Restoration) -> list[int | None]:
    """How many rounds each image went through, from `maps`; None for a restorer that does not work in rounds.

    In the GAN's loop a flagged image gets the first round, and a later round that it went through changed it.
    """
    numbers = sorted(int(found[1]) for name in restoration.maps if (found := re.fullmatch(r"round_(\d{1,4})", name)))
    if not numbers:
        return [None] * len(restoration.score)
    versions = [restoration.maps[f"round_{number}"] for number in numbers]
    counted = restoration.flagged.int()
    for before, after in pairwise(versions):
        counted = counted + (before != after).flatten(1).any(1)
    return counted.tolist()


def restore_folder(
    name: str,
    restorer: Restorer,
    source: Path,
    target: Path,
    jobs: list[Job],
    *,
    channels: int,
    size: int | None,
    crop: bool = False,
    batch_size: int | None = None,
    device: torch.device,
) -> Summary:
    """Restore images and write them and, at the end, scores.csv; every file is written atomically.

    Args:
        name: of the restorer, for messages.
        restorer: on any device.
        source: folder of the images.
        target: folder of the restored ones; made where it is missing.
        jobs: what `plan` gives.
        channels: see `read_image`.
        size: see `read_image`.
        crop: see `read_image`.
        batch_size: images restored at a time; None: as many as take the memory of a hundred of 32×32 pixels.
        device: to compute on.

    Raises:
        UserError: a file cannot be written, an own restorer fails, the device's memory is too small.
    """
    restorer = restorer.to(device).eval().requires_grad_(False)
    summary = Summary()
    rows: list[list[object]] = []
    waiting: list[tuple[Job, Tensor, str]] = []  # read, all of one size, not restored yet

    def restore() -> None:
        restoration = _restored(name, restorer, [image for _, image, _ in waiting], device)
        for i, number in enumerate(rounds(restoration)):
            job, _, note = waiting[i]
            write_image(target / job.target, restoration.images[i])
            rows.append(_row(job, restoration, i, number, note))
        summary.restored += len(waiting)
        summary.flagged += int(restoration.flagged.sum())
        waiting.clear()

    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / SCORES).unlink(missing_ok=True)  # an interrupted run must not leave scores of an earlier one
        for job in tqdm(jobs, desc="restore", unit="image", dynamic_ncols=True, mininterval=print_interval()):
            try:
                image, changes = read_image(source / job.source, channels=channels, size=size, crop=crop)
                least = getattr(restorer, "smallest", Restorer.smallest)
                if min(image.shape[-2:]) < least:
                    small = f"{image.shape[-1]}×{image.shape[-2]} pixels; {name} needs {least} each way"
                    raise UnreadableError(small)
            except UnreadableError as error:
                summary.unreadable.append((job.source, str(error)))
                rows.append([shown(job.source), "", "", "", "", f"skipped: {error}"])
                (target / job.target).unlink(missing_ok=True)  # nor its earlier restoration
                continue
            summary.changes.update(changes.keys())
            most = batch_size or at_once(max(image.shape[-2:]), BATCH)
            if waiting and (len(waiting) >= most or waiting[0][1].shape != image.shape):
                restore()
            waiting.append((job, image, _note(job, changes)))
        if waiting:
            restore()
        write_text(target / SCORES, _csv(sorted(rows, key=lambda row: row[0])))
    except OSError as error:
        raise UserError(f"cannot write to {error.filename or target}: {error.strerror or error}") from None
    return summary


def _restored(name: str, restorer: Restorer, read: list[Tensor], device: torch.device) -> Restoration:
    try:
        images = to_float(torch.stack(read).to(device))
        if zoo.is_own(name):
            with own_parts.blamed(name, "restoring images"), torch.no_grad():
                restoration = restorer(images)
        else:
            with torch.no_grad():
                restoration = restorer(images)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise UserError(f"{device} has too little memory for batches of {len(read)}; give a smaller --batch-size") from None
    own_parts.check_restoration(name, restoration, images)
    return restoration


def _note(job: Job, changes: dict[str, str]) -> str:
    notes = [f"{what} {detail}".strip() for what, detail in changes.items()]
    if job.target != job.source.with_suffix(".png"):
        notes.append(f"written as {shown(job.target.name)}")
    return "; ".join(notes)


def _row(job: Job, restoration: Restoration, i: int, number: int | None, note: str) -> list[object]:
    level = restoration.level[i].item()
    return [
        shown(job.source),
        f"{restoration.score[i].item():.6g}",
        "true" if restoration.flagged[i] else "false",
        "" if level != level else f"{level:.6g}",  # NaN: the restorer does not estimate one
        "" if number is None else number,
        note,
    ]


def _csv(rows: list[list[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    return text.getvalue()


def shown(path: Path | str) -> str:
    """A name that can be written as UTF-8, with forward slashes; bytes that are no text become question marks."""
    return os.fsencode(Path(path).as_posix()).decode("utf-8", errors="replace")
