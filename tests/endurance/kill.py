"""Kill trainings and evaluations with SIGKILL at random moments, let them go on, and compare with undisturbed ones.

Every run is a real one of a real tool, on a small CIFAR-10 and in a process of its own. The moments are drawn from a seed:
anywhere during start-up, the building of caches, training or measuring, and within the few milliseconds in which a
checkpoint, a record, the final weights or the report are written. One run in four is killed twice. In the end weights,
logs and caches, or the table and its pictures, must be the undisturbed run's to the last bit.

Exit status 0: all ended the same; 1: some did not (their folders are kept); 2: a mistake in the words.

usage: python -m tests.endurance.kill [kills=20] [what=[train_classifier,train_trn,train_gan,evaluate]] [seed=0]
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gandefense import config
from gandefense.command_line import run_tool, split_arguments
from gandefense.errors import UserError
from gandefense.files import LEFTOVER
from tests.helpers import small_cifar10

ROOT = Path(__file__).parents[2]
TOOLS = ("train_classifier", "train_trn", "train_gan", "evaluate")
ONE_IN = 4  # runs is killed twice
PATIENCE = 300  # seconds for any one process
RUN = "{device: cpu, precision: float32, log_every: 5, image_every: 50, checkpoint_every: 10, seed: 4}"
ATTACKED = "attacked: {rows: 512, attacks: [fgsm, none], budgets: [8/255]}\nvalidation_rows: 512\n"
RECIPES = {
    "train_classifier": f"architecture: tiny\ntrain: {{batch_size: 32, epochs: 12, ema_decay: 0.9, erase: 0.5}}\nrun: {RUN}\n",
    "train_trn": f"classifier: CLASSIFIER\n{ATTACKED}network: {{width: 8, blocks: 1}}\n"
    f"train: {{steps: 60, batch_size: 16, ema_decay: 0.9}}\nrun: {RUN}\n",
    "train_gan": f"classifier: CLASSIFIER\n{ATTACKED}network: {{width: 8, discriminator_width: 4}}\n"
    "distil: {steps: 10, batch_size: 16}\n"
    f"train: {{steps: 30, batch_size: 16, warmup: 5, ema_decay: 0.9}}\nrun: {RUN}\n",
    "evaluate": "classifier: CLASSIFIER\nrestorers: [none, TRN]\ndata: {limit: 24}\nbatch_size: 8\ncost_batch_size: 8\n"
    "images: 2\ndevice: cpu\noutput: out\ngray_box: [{attack: fgsm}, {attack: pgd, steps: 3}]\n"
    "white_box: {views: [detached], attacks: [{attack: pgd, steps: 2}]}\ncurves: {images: 8, eps: [0, 8/255], steps: [1, 2]}\n",
}


@dataclass
class KillConfig:
    """The words of the command line."""

    kills: int = 20  # runs that are killed; the tools take turns
    what: list[str] = field(default_factory=lambda: list(TOOLS))
    seed: int = 0
    folder: str | None = None  # a new folder to work in, which is then kept; null: a temporary one


# How far a run has come, read off its files: stage → whether it has been reached.


def run_folder(place: Path) -> Path | None:
    """The run that a tool has made in its `runs`, if it has come that far."""
    runs = sorted(path.parent for path in place.glob("runs/*/config.yaml"))
    return runs[-1] if runs else None


def _log_begun(place: Path) -> bool:
    return (folder := run_folder(place)) is not None and (folder / "stats.jsonl").is_file()


def _writing(name: str) -> Callable[[Path], bool]:
    """Whether a file is being written at this very moment; `name` begins its name, or "" for any record."""

    def now(place: Path) -> bool:
        base = "out/records/*" if not name else "runs/*"
        return any(LEFTOVER.fullmatch(path.name) for path in place.glob(f"{base}/.{name}*"))

    return now


Stages = dict[str, Callable[[Path], bool]]
BEGUN: Stages = {"start-up": lambda place: True}
CACHED: Stages = {"cache": lambda place: any(place.glob("data/attacked/*/done.npy"))}
TRAINED: Stages = {"training": _log_begun}
WRITTEN: Stages = {"checkpoint": _writing("checkpoint.pt"), "final weights": _writing("model.safetensors")}
STAGES: dict[str, Stages] = {
    "train_classifier": {**BEGUN, **TRAINED, **WRITTEN},
    "train_trn": {**BEGUN, **CACHED, **TRAINED, **WRITTEN},
    "train_gan": {**BEGUN, **CACHED, **TRAINED, **WRITTEN},
    "evaluate": {
        **BEGUN,
        "measuring": lambda place: any(place.glob("out/records/*/*.safetensors")),
        "record": _writing(""),
        "report": lambda place: any(place.glob("out/pictures/*")) or (place / "out/report.md").is_file(),
    },
}
MOMENTARY = ("checkpoint", "final weights", "record")  # stages of a few milliseconds, which come back


def landed(what: str, place: Path) -> str:
    """Where a killed run stopped, in words, from the files that it left."""
    writing = [path.name[1:].rsplit(".", 1)[0] for path in place.rglob(".*") if LEFTOVER.fullmatch(path.name)]
    half = f", while writing {' and '.join(writing)}" if writing else ""
    if what == "evaluate":
        done = len(list(place.glob("out/records/*/*.safetensors")))
        if (place / "out/results.json").is_file():
            return f"after the table was written{half}"
        return f"{f'{done} records written' if done else 'before the first record'}{half}"
    folder = run_folder(place)
    if folder is None:
        return f"before the run had a folder with a config{half}"
    if (folder / "model.safetensors").is_file():
        return f"after the weights were written{half}"
    if (folder / "checkpoint.pt").is_file():
        return f"after the log of step {_last_step(folder)}, with a checkpoint{half}"
    if (folder / "stats.jsonl").is_file():
        return f"after the log of step {_last_step(folder)}, before the first checkpoint{half}"
    chunks = [sum(path.read_bytes()[128:]) for path in sorted(place.glob("data/attacked/**/done.npy"))]
    return f"{sum(chunks)} chunks of {len(chunks)} caches done{half}" if chunks else f"run folder made{half}"


def _last_step(folder: Path) -> int:
    lines = (folder / "stats.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


# One process.


def prepare(place: Path, data: Path) -> None:
    """A folder for one run, with a data root of its own, because caches are kept in it."""
    (place / "data").mkdir(parents=True)
    (place / "data" / "cifar10").symlink_to(data)


@contextmanager
def started(what: str, place: Path, recipe: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a tool in a process group of its own, or again after a kill; what it says is added to the file `output`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GANDEFENSE_DATA": str(place / "data"), "OMP_NUM_THREADS": "1"}
    environment.pop("GANDEFENSE_LPIPS_BACKBONE", None)
    tool = [sys.executable, "-m", "tests.helpers.with_small_cifar10", str(ROOT / "tools" / f"{what}.py")]
    command = [*tool, *words_for(what, place, recipe)]
    with (place / "output").open("ab") as output:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def words_for(what: str, place: Path, recipe: Path) -> list[str]:
    """How a tool is started, or started again: with resume=RUN_FOLDER where there is one."""
    folder = run_folder(place) if what != "evaluate" else None
    return [str(recipe)] if folder is None else [f"resume={folder.relative_to(place)}"]


def finish(what: str, place: Path, recipe: Path) -> dict[str, float]:
    """Run a tool to its end; gives the seconds after which each stage was first seen.

    Raises:
        UserError: it failed.
    """
    begun, seen = time.monotonic(), {}
    with started(what, place, recipe) as process:
        while process.poll() is None:
            now = time.monotonic() - begun
            for name, reached in STAGES[what].items():
                if name not in MOMENTARY and name not in seen and reached(place):
                    seen[name] = now
            if now > PATIENCE:
                raise UserError(f"{what} in {place} took more than {PATIENCE} s")
            time.sleep(0.01)
    if process.returncode:
        raise UserError(f"{what} in {place} ended with status {process.returncode}; see {place / 'output'}")
    end = time.monotonic() - begun
    # A stage that passed between two looks is known by its files, and ended with the run at the latest.
    missed = [name for name in STAGES[what] if name not in MOMENTARY and name not in seen]
    unreached = [name for name in missed if not STAGES[what][name](place)]
    if unreached:
        raise UserError(f"{what} in {place} ended without {', '.join(unreached)}; see {place / 'output'}")
    return {**seen, **dict.fromkeys(missed, end), "end": end}


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a process and of whatever it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_at(what: str, place: Path, recipe: Path, stage: str, seconds: dict[str, float], chance: random.Random) -> bool:
    """Start a tool and kill it at a random moment of a stage; gives whether it was still alive then.

    Args:
        what: the tool.
        place: the run's folder.
        recipe: the tool's config.
        stage: in which to kill, see STAGES.
        seconds: after which an undisturbed run reached each stage.
        chance: draws the moment.
    """
    deadline = time.monotonic() + PATIENCE
    momentary = stage in MOMENTARY
    times = chance.randint(1, 4) if stage in ("checkpoint", "record") else 1
    with started(what, place, recipe) as process:
        for number in range(times):
            while process.poll() is None and not STAGES[what][stage](place) and time.monotonic() < deadline:
                time.sleep(0.0002 if momentary else 0.01)
            while number + 1 < times and process.poll() is None and STAGES[what][stage](place):
                time.sleep(0.0002)  # this one is let go
        later = [moment for name, moment in seconds.items() if name not in MOMENTARY and moment > seconds.get(stage, 0)]
        length = 0.002 if momentary else min(later, default=seconds[stage]) - seconds[stage]
        time.sleep(chance.uniform(0, length))
        alive = process.poll() is None
    if not alive and process.returncode:
        raise UserError(f"{what} in {place} ended with status {process.returncode}; see {place / 'output'}")
    return alive


# What must be the same.


def outcome(what: str, place: Path) -> dict[str, Any]:
    """Everything that must not depend on kills: weights, what was measured, logs and caches; or table and pictures."""
    if what == "evaluate":
        results = json.loads((place / "out/results.json").read_text(encoding="utf-8"))
        pictures = {f"picture {path.name}": _hash(path) for path in sorted(place.glob("out/pictures/*"))}
        return {**{name: results[name] for name in results if name not in ("cost", "made")}, **pictures, **_left(place)}
    from gandefense.data.batches import tensor_hash
    from gandefense.weights_io import load_weights

    folder, found = run_folder(place), {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors, description = load_weights(path)
        found |= {f"{path.name} {name}": tensor_hash(tensor) for name, tensor in tensors.items()}
        found[f"{path.name} description"] = {name: value for name, value in description.items() if name != "config"}
    for line in (folder / "stats.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        found |= {f"log {values['step']} {name}": values[name] for name in values if not name.startswith(("time", "speed"))}
    found |= {str(path.relative_to(place)): _hash(path) for path in sorted(place.glob("data/attacked/**/*.npy"))}
    return found | _left(place)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _left(place: Path) -> dict[str, Any]:
    ours = [*place.glob("out/**/.*"), *(run_folder(place) or place / "out").glob(".*")]
    return {"left over": sorted(path.name for path in ours if LEFTOVER.fullmatch(path.name))}


# All of it.


def references(folder: Path, what: list[str]) -> tuple[dict[str, Path], dict[str, dict[str, float]]]:
    """Undisturbed runs in `folder`, and how long their stages took; TRN, GAN and evaluation build on the classifier's."""
    needed = {"train_classifier", *what, *(["train_trn"] if "evaluate" in what else [])}
    recipes, seconds = {}, {}
    for name in (tool for tool in TOOLS if tool in needed):
        place, recipe = folder / "undisturbed" / name, folder / f"{name}.yaml"
        text = RECIPES[name]
        for word, tool in (("CLASSIFIER", "train_classifier"), ("TRN", "train_trn")):
            text = text.replace(word, str(folder / "undisturbed" / tool / "runs/00000-run/model.safetensors"))
        recipe.write_text(text, encoding="utf-8")
        prepare(place, folder / "cifar10")
        recipes[name], seconds[name] = recipe, finish(name, place, recipe)
        print(f"undisturbed {name}: {', '.join(f'{stage} {value:.1f} s' for stage, value in seconds[name].items())}", flush=True)
    return recipes, seconds


def endure(kills: int, what: list[str], seed: int, folder: Path) -> int:
    """Kill `kills` runs in `folder`, print a line for each, and give the number of those that ended like the undisturbed."""
    chance, same = random.Random(seed), 0
    small_cifar10.write(folder / "cifar10")
    recipes, seconds = references(folder, what)
    wanted = {name: outcome(name, folder / "undisturbed" / name) for name in what}
    turns = {name: list(STAGES[name]) for name in what}
    for number in range(kills):
        name, place = what[number % len(what)], folder / f"{number:02d}"
        stage = turns[name][(number // len(what)) % len(turns[name])]
        moments = [stage, chance.choice(list(STAGES[name]))][: 2 if chance.randrange(ONE_IN) == 0 else 1]
        prepare(place, folder / "cifar10")
        stories = []
        for moment in moments:
            pace = seconds[name]
            while not (alive := kill_at(name, place, recipes[name], moment, pace, chance)) and not stories:
                # It had ended: faster than the undisturbed run, or before this process saw the moment. Another one, killed
                # earlier, and at a stage that nobody can miss.
                pace = {stage: value / 2 for stage, value in pace.items()}
                moment = "start-up" if moment in MOMENTARY else moment
                shutil.rmtree(place)
                prepare(place, folder / "cifar10")
            stories.append(f"aimed at {moment}: {landed(name, place) if alive else 'had ended before'}")
        if name != "evaluate" or not (place / "out/results.json").is_file():
            finish(name, place, recipes[name])
        found = outcome(name, place)
        differing = [topic for topic in {**wanted[name], **found} if wanted[name].get(topic) != found.get(topic)]
        same += not differing
        verdict = f"DIFFERENT in {place}: {', '.join(differing[:5])}" if differing else f"same in {len(found)} respects"
        print(f"{number + 1:3d} {name:16s} {'; then '.join(stories)} → {verdict}", flush=True)
        if not differing:
            shutil.rmtree(place)
    return same


def main(arguments: list[str]) -> None:
    path, overrides = split_arguments(arguments, __doc__)
    if path is not None:
        raise UserError(f"no config file is taken, got {path}; {__doc__.strip().splitlines()[-1]}")
    asked = config.load(KillConfig, None, overrides)
    unknown = [name for name in asked.what if name not in TOOLS]
    if unknown or not asked.what or asked.kills < 1:
        raise UserError(f"what takes some of {', '.join(TOOLS)}, and kills at least 1")
    folder = Path(asked.folder or tempfile.mkdtemp(prefix="gandefense-kill-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    same = endure(asked.kills, asked.what, asked.seed, folder)
    print(f"{same} of {asked.kills} killed runs ended like the undisturbed one")
    if same < asked.kills:
        sys.exit(1)
    if asked.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    run_tool(main, __doc__)
