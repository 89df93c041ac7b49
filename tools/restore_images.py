#!/usr/bin/env python3
"""Restore a folder of images: the restored images as PNGs under the same names, and what the detector says in scores.csv.

Sub-folders are gone through too. PNG, JPEG, WebP and BMP files are read, turned as their EXIF orientation says, converted
to the restorer's colours (transparency is dropped) and, where they have another size, resized to the restorer's without
regard to their shape (for a restorer of CelebA they are cut to the square in their middle first); the restored image has
that size too. Every such change is told. Files with other endings are left alone; hidden files and folders are not looked
at. scores.csv has the columns file, score (higher: more likely attacked),
flagged, level, rounds and note. A score may be negative; flagged says whether it exceeds the restorer's threshold. level is the
estimated strength of the perturbation: its root mean square on images scaled to [-1, 1] (the GAN's). level and rounds are empty
where a restorer does not know them.

Exit status: 0 all images restored; 1 some could not be read (they are listed and skipped, the others are restored);
2 a mistake, found before any work where it can be; 130 interrupted (what is written is whole, scores.csv is missing).
"""

import argparse
import sys
import time
from pathlib import Path

from gandefense import restoring
from gandefense.command_line import run_tool
from gandefense.errors import UserError
from gandefense.memory import peak_so_far
from gandefense.training.state import choose_device

LISTED = 20  # unreadable files named on the terminal; scores.csv names all


class Parser(argparse.ArgumentParser):
    """Mistakes are one line, as in every tool."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; see python tools/restore_images.py --help")


def parser() -> Parser:
    """The tool's flags."""
    words = Parser(
        prog="python tools/restore_images.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    words.add_argument(
        "--restorer", required=True, help="cifar10/gan, jpeg:quality=40, a run folder, .safetensors file or my_package.MyRestorer"
    )
    words.add_argument("--input", required=True, type=Path, metavar="FOLDER", help="folder of images")
    words.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="folder of the restored ones; made if missing"
    )
    words.add_argument(
        "--classifier", metavar="NAME", help="the classifier that the restorer reads; else the one it was trained for"
    )
    words.add_argument("--overwrite", action="store_true", help="overwrite what is in the output folder; else nothing is")
    words.add_argument("--batch-size", type=int, metavar="N", help="images restored at a time (100 of 32×32, 1 of 512×512)")
    words.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (%(default)s)")
    return words


def main(arguments: list[str]) -> None:
    asked = parser().parse_args(arguments)
    if asked.batch_size is not None and asked.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {asked.batch_size}")
    device = choose_device(asked.device)
    images, others = restoring.find_images(asked.input)
    jobs = restoring.plan(images)
    restoring.check_output(asked.input, asked.output, jobs, overwrite=asked.overwrite)
    restorer, data = restoring.load(asked.restorer, asked.classifier)
    begun = time.perf_counter()
    summary = restoring.restore_folder(
        asked.restorer,
        restorer,
        asked.input,
        asked.output,
        jobs,
        channels=3 if data is None else data.channels,
        size=None if data is None else data.size,
        crop=data is not None and data.crop,
        batch_size=asked.batch_size,
        device=device,
    )
    for what, count in summary.changes.items():
        print(f"{count} image(s) {what}; see the column note")
    if others:
        print(f"{len(others)} file(s) of other kinds left alone, such as {restoring.shown(others[0])}")
    there = restoring.shown(asked.output)
    print(f"{summary.restored} of {len(jobs)} image(s) restored, {summary.flagged} flagged as attacked: {there}")
    seconds, most = time.perf_counter() - begun, peak_so_far(device)
    memory = "" if most is None else f"; at most {most / 2**30:.1f} GiB of memory"
    print(f"{summary.restored / seconds:.3g} images/s, reading and writing included{memory}")
    for path, reason in summary.unreadable[:LISTED]:
        print(f"skipped {restoring.shown(path)}: {reason}", file=sys.stderr)
    if len(summary.unreadable) > LISTED:
        print(f"skipped {len(summary.unreadable) - LISTED} more; see {restoring.SCORES}", file=sys.stderr)
    if summary.unreadable:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main, parser().format_help())
