#!/usr/bin/env python3
"""List the attacked sets and decoded images that were left in the data root, and remove those that nobody has used for some days.

Without remove=true nothing is removed. A set that is removed is made again by the next training or evaluation that needs
it. Sets that a training is building at this moment, and folders with other files in them, are left alone; an evaluation whose set
is removed meanwhile goes on without it.

usage: python tools/clean_cache.py [older_than=DAYS] [remove=true] [root=FOLDER]
"""

import os
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from gandefense import config
from gandefense.command_line import run_tool, split_arguments
from gandefense.data.sources import data_root
from gandefense.errors import UserError
from gandefense.evaluation.kept_attacks import ABOUT
from gandefense.evaluation.kept_attacks import FOLDER as KEPT
from gandefense.files import LEFTOVER, LOCK, locked, storing

# sub-folder of the data root → the file that a set in it holds, and patterns of all that it may
SETS = {
    "attacked": ("attacked.npy", {"attacked.npy", "config.json", "done.npy", "maps.npy", "log_norms.npy", LOCK}),
    "decoded": ("images.npy", {"images.npy", "hashes.npy", "done.npy", LOCK}),
    KEPT: (ABOUT, {ABOUT, "[0-9][0-9][0-9][0-9][0-9].safetensors", LOCK}),
}
DAY = 24 * 3600  # seconds


@dataclass
class CleanConfig:
    """The words of the command line."""

    older_than: float = 0.0  # days since a set was last used
    remove: bool = False  # false: only list
    root: str | None = None  # the data root; null: GANDEFENSE_DATA, else the user's cache folder


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a set of its parent's kind and nothing else."""
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    main_file, ours = SETS[folder.parent.name]
    known = [name for name in names if LEFTOVER.fullmatch(name) or any(fnmatchcase(name, pattern) for pattern in ours)]
    return main_file in names and len(known) == len(names)


def contents(folder: Path) -> list[os.stat_result]:
    """What is known of a folder and of all in it; a file that an evaluation is replacing may be gone again."""
    found = []
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            found.append(path.stat())
    return found


def last_used(folder: Path) -> float:
    """When a set was last opened, or wrote to it; seconds since the epoch."""
    return max(found.st_mtime for found in contents(folder))


def main(arguments: list[str]) -> None:
    path, overrides = split_arguments(arguments, __doc__)
    if path is not None:
        raise UserError(f"no config file is taken, got {path}; {__doc__.strip().splitlines()[-1]}")
    asked = config.load(CleanConfig, None, overrides)
    root = data_root(asked.root)
    total = removed = 0
    for folder in (folder for kind in SETS if (root / kind).is_dir() for folder in sorted((root / kind).iterdir())):
        if not folder.is_dir() or folder.is_symlink() or not is_ours(folder):
            print(f"left alone: {folder} (not a set of ours, or not only one)")
            continue
        size = sum(part.st_size for part in contents(folder) if stat.S_ISREG(part.st_mode))
        days = (time.time() - last_used(folder)) / DAY
        total += size
        line = f"{size / 1e6:10.1f} MB  {days:6.1f} days unused  {folder}"
        if not asked.remove or days < asked.older_than:
            print(line)
            continue
        try:
            with locked(folder, wait=False), storing(folder):
                shutil.rmtree(folder)
        except (UserError, OSError) as error:  # an OSError where an evaluation writes into it at this moment
            print(f"{line}  left alone: {error}")
            continue
        removed += size
        print(f"{line}  removed")
    print(f"{total / 1e6:10.1f} MB in {root}; {removed / 1e6:.1f} MB removed{'' if asked.remove else ' (remove=true removes)'}")


if __name__ == "__main__":
    run_tool(main, __doc__)
