"""Tables 3 and 4 of the ISMN paper: accuracy at its attack levels, under every reading of the word."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gandefense import zoo
from gandefense.attacks.cache import fingerprint
from gandefense.attacks.spec import AttackSpec
from gandefense.config import DataConfig
from gandefense.data.datasets import describe
from gandefense.errors import UserError
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.settings import AttackEntry, BlackBoxConfig, WhiteBoxConfig
from gandefense.evaluation.wording import Table
from gandefense.reproduce import gan_level_tables as tables
from gandefense.reproduce.evaluations import measured, shared
from gandefense.reproduce.writing import check_folder
from gandefense.restorers.gan import MOST_ROUNDS
from gandefense.weights_io import load_weights, save_weights

READINGS = ("gaussian[-1,1]", "gaussian[0,1]", "fgsm_linf", "pgd_linf")
CONTROLS = ("predicted", "random_target")  # of FGSM: without the true label nothing can leak through it
CLEAN = "clean"


@dataclass
class GANLevelsConfig:
    """tools/reproduce.py gan-levels and gan-celeba"""

    data: DataConfig = field(default_factory=lambda: DataConfig(limit=1000))
    classifier: str = "cifar10/classifier"  # stands behind every restorer, but for columns and rows of the distilled one
    ours: str = "cifar10/gan"  # a GAN defence: zoo name, run folder or .safetensors file
    # A GAN defence whose distilled classifier answers (answers: student), or such a classifier alone, behind `ours`; null: none
    student: str | None = None
    rivals: list[str] = field(default_factory=list)  # restorers as they stand, before the same classifier
    readings: list[str] = field(default_factory=lambda: list(READINGS))  # of the word "level"
    levels: list[float] = field(default_factory=lambda: [0.2, 0.3, 0.4])
    pgd_steps: int = 20
    sources: list[str] = field(default_factory=list)  # other classifiers, for black_box by transfer; empty: none
    views: list[str] = field(default_factory=lambda: ["detached"])  # what a white_box attacker differentiates
    white_levels: list[float] | None = None  # at which levels he is tried; null: at all of them
    rounds: list[int] = field(default_factory=lambda: [1, 2, 3, 4])  # how many help
    eps: float = 8 / 255  # of the gray_box FGSM and PGD beside the levels, where rounds and parts are compared
    seed: int = 0
    device: str = "auto"
    batch_size: int = 100
    folder: str = "runs/reproduce"  # evaluations, resumed when killed and used again when finished
    results: str = "results"  # folder of the JSON file and of the page


def attack_at(config: GANLevelsConfig, reading: str, level: float, **more: Any) -> AttackEntry:
    """The attack that a level stands for under a reading."""
    if reading.endswith("_linf"):
        name = reading.removesuffix("_linf")
        return AttackEntry(name, eps=level, steps=config.pgd_steps if name == "pgd" else None, **more)
    return AttackEntry(reading, eps=level, **more)


def white_levels(config: GANLevelsConfig) -> list[float]:
    """The levels at which a white_box attacker is tried."""
    return config.levels if config.white_levels is None else config.white_levels


def level_settings(config: GANLevelsConfig, classifier: str, restorers: list[str]) -> dict[str, Any]:
    """Every reading at every level, gray_box; the searched ones also as black_box and white_box, FGSM with its controls.

    All of them against a classifier, alone and behind each of the restorers.
    """
    searched = [reading for reading in config.readings if reading.endswith("_linf")]
    gray = [attack_at(config, reading, level) for reading in config.readings for level in config.levels]
    if "fgsm_linf" in config.readings:
        gray += [attack_at(config, "fgsm_linf", level, labels=labels) for level in config.levels for labels in CONTROLS]
    known = [attack_at(config, reading, level) for reading in searched for level in config.levels]
    white = [attack_at(config, reading, level) for reading in searched for level in white_levels(config)]
    sources = [source for source in config.sources if source != classifier] if known else []
    return {
        **shared(config),
        "classifier": classifier,
        "restorers": [NO_RESTORER, *restorers],
        "gray_box": gray,
        "black_box": BlackBoxConfig(sources=sources, transfer=known if sources else []),
        "white_box": WhiteBoxConfig(views=config.views if white else [], attacks=white),
    }


def probes(config: GANLevelsConfig) -> list[AttackEntry]:
    """What rounds and parts are compared under: the first noise, or else every reading, at every level; FGSM and PGD at `eps`.

    All gray_box.
    """
    noise = [reading for reading in config.readings if not reading.endswith("_linf")][:1]
    asked = [(reading, level) for reading in noise or config.readings for level in config.levels]
    asked += [(reading, config.eps) for reading in ("fgsm_linf", "pgd_linf")]
    return [attack_at(config, *each) for each in dict.fromkeys(asked)]


def probe_settings(config: GANLevelsConfig, classifier: str, restorers: list[str]) -> dict[str, Any]:
    """Restorers before a classifier, each once, under the probes."""
    return {
        **shared(config),
        "classifier": classifier,
        "restorers": [NO_RESTORER, *dict.fromkeys(restorers)],
        "gray_box": probes(config),
        "black_box": BlackBoxConfig(sources=[], transfer=[]),
        "white_box": WhiteBoxConfig(views=[], attacks=[]),
    }


def variant(name: str, folder: Path, *, rounds: int, generator: bool = True) -> str:
    """The name of a GAN defence with another loop: the same networks in a file of their own, written if it is not there."""
    tensors, description = load_weights(zoo.find(name))
    before = {"rounds": 1, "generator": True, **description["loop"]}
    loop = {**before, "rounds": rounds, "generator": generator}
    if loop == before:
        return name
    changed = zoo.content_hash(name)[:12] + (f"-rounds-{rounds}" if generator else "-ismn-only")
    path = folder / "variants" / f"{changed}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        save_weights(path, tensors, {**description, "loop": loop})
    return str(path)


def distilled(config: GANLevelsConfig) -> tuple[str, str] | None:
    """The distilled classifier that answers, and the restorer before it; None: no student is named."""
    if config.student is None:
        return None
    if zoo.describe(config.student).get("kind") == "gan":
        return zoo.classifier_of(config.student), config.student
    return config.student, config.ours


def run(config: GANLevelsConfig, name: str = "gan-levels") -> tuple[list[Table], dict[str, Any]]:
    """Measure what is not measured yet, and put the tables together.

    Args:
        config: networks, readings, levels.
        name: of the folder of its evaluations, in `config.folder`.

    Returns:
        The page's tables, and the figures for the JSON file.

    Raises:
        UserError: before any work, an unknown network or reading, values out of range, or folders that cannot be written.
    """
    folder = Path(config.folder) / name
    check(config, folder)
    whole = measured(level_settings(config, config.classifier, [*config.rivals, config.ours]), folder)
    by_rounds = {rounds: variant(config.ours, folder, rounds=rounds) for rounds in config.rounds}
    ours = parts_of(config.ours, folder)
    before_teacher = measured(probe_settings(config, config.classifier, [*ours.values(), *by_rounds.values()]), folder)
    results = [whole, before_teacher]
    levels, controls, parts = level_rows(config, whole), control_rows(config, whole), part_rows(config, before_teacher, ours)
    pair = distilled(config)
    if pair is not None:
        classifier, restorer = pair
        whole = measured(level_settings(config, classifier, [restorer]), folder)
        answered = parts_of(restorer, folder)
        before_student = measured(probe_settings(config, classifier, list(answered.values())), folder)
        results += [whole, before_student]
        join_student(levels, level_rows(config, whole, restorer))
        join_student(controls, control_rows(config, whole, restorer))
        parts += part_rows(config, before_student, answered, " + distilled classifier")

    figures: dict[str, Any] = {
        "levels": levels,
        "controls": controls,
        "rounds": [{"rounds": rounds, **probe_figures(config, before_teacher, path)} for rounds, path in by_rounds.items()],
        "parts": parts,
        "quality": quality_rows(config, before_teacher, ours),
        "published": tables.PUBLISHED.get(config.data.name.split("-")[0], []),
        # how each was made: evaluations used again are older than this table
        "evaluations": [{key: value for key, value in result["made"].items() if key != "config"} for result in results],
    }
    names = [NO_RESTORER, *config.rivals, config.ours, *(tables.STUDENT if pair is not None else ())]
    made = [
        tables.level_table(figures["levels"], figures["published"], names, config),
        tables.control_table(figures["controls"], names),
        tables.rounds_table(figures["rounds"], probe_names(config)),
        tables.parts_table(figures["parts"], probe_names(config), has_student=config.student is not None),
        tables.quality_table(figures["quality"]),
    ]
    return [table for table in made if table.rows], figures


def check(config: GANLevelsConfig, folder: Path) -> None:
    """Raise UserError for unknown networks or readings, values out of range, or folders that cannot be written."""
    for reading in config.readings:
        if reading not in READINGS:
            raise UserError(f"unknown reading {reading!r}; known: {', '.join(READINGS)}")
    if not config.levels or not all(0 < level <= 1 for level in config.levels):
        raise UserError(f"levels lie above 0 and up to 1, at least one; got {config.levels}")
    if not set(white_levels(config)) <= set(config.levels):
        raise UserError(f"white_levels are some of the levels, {config.levels}; got {config.white_levels}")
    if not config.rounds or not 1 <= min(config.rounds) <= max(config.rounds) <= MOST_ROUNDS:
        raise UserError(f"rounds lie between 1 and {MOST_ROUNDS}, got {config.rounds}")
    if not 0 < config.eps <= 1:
        raise UserError(f"eps is in pixel units of [0, 1] images (write 8/255), got {config.eps}")
    names = [config.classifier, *config.rivals, config.ours, *config.sources, *([config.student] if config.student else [])]
    kinds = {name: zoo.describe(name).get("kind") for name in names}
    if kinds[config.ours] != "gan":
        raise UserError(f"ours={config.ours} is a {kinds[config.ours]!r}, not a GAN defence")
    if config.classifier in config.sources:
        raise UserError(f"sources: {config.classifier} is the defended classifier itself; name another one")
    if config.student is not None:
        if kinds[config.student] not in ("classifier", "gan"):
            raise UserError(
                f"student={config.student} is a {kinds[config.student]!r}; name a classifier, or a GAN defence with one"
            )
        answering, _ = distilled(config)
        if fingerprint(zoo.load_classifier(answering)) == fingerprint(zoo.load_classifier(config.classifier)):
            raise UserError(
                f"student={config.student}: what answers there is {config.classifier} itself, no distilled classifier"
            )
        for name in (answering, config.student):
            zoo.try_out(name, torch.nn.Identity(), describe(config.data))
    for place in (folder, Path(config.results)):
        check_folder(place)


def find(
    results: dict[str, Any], restorer: str, threat: str, entry: AttackEntry | None, view: str | None = None
) -> dict[str, Any] | None:
    """The row of a restorer under an attack with these settings (None: clean images); None where it was not measured."""
    spec = None if entry is None else entry.spec()
    for row in results["rows"]:
        if (row["restorer"], row["threat"]) != (restorer, threat) or view not in (None, row["view"]):
            continue
        if spec is None and row["attack"] == "none":
            return row
        if spec is not None and _is(row, spec):
            return row
    return None


def _is(row: dict[str, Any], spec: AttackSpec) -> bool:
    return (row["attack"], row["labels"]) == (spec.attack, spec.labels) and abs(row["eps"] - spec.eps) < 1e-9


def figure(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """Accuracy, interval and n of a row."""
    return None if row is None else {name: row[name] for name in ("accuracy", "ci95", "n")}


def undefended(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same of the classifier alone under the same attack, made against itself."""
    return None if row is None else {"accuracy": row["undefended_accuracy"], "ci95": row["undefended_ci95"], "n": row["n"]}


def level_rows(config: GANLevelsConfig, results: dict[str, Any], restorer: str | None = None) -> list[dict[str, Any]]:
    """Clean images, then reading by reading and level by level, threat by threat: every restorer's accuracy, or that of one."""
    names = [*config.rivals, config.ours] if restorer is None else [restorer]
    clean = {name: figure(find(results, name, "gray_box", None)) for name in [NO_RESTORER, *names]}
    rows: list[dict[str, Any]] = [{"reading": CLEAN, "level": None, "threat": None, "view": None, "accuracy": clean}]
    for reading in config.readings:
        for level in config.levels:
            entry = attack_at(config, reading, level)
            asked = [("gray_box", None)]
            if reading.endswith("_linf"):
                asked += [("black_box", f"transfer: {source}") for source in config.sources]
                asked += [("white_box", view) for view in config.views if level in white_levels(config)]
            for threat, view in asked:
                found = {name: find(results, name, threat, entry, view) for name in names}
                accuracy = {NO_RESTORER: undefended(found[names[-1]])}
                accuracy |= {name: figure(row) for name, row in found.items()}
                rows.append({"reading": reading, "level": level, "threat": threat, "view": view, "accuracy": accuracy})
    return rows


def join_student(rows: list[dict[str, Any]], answered: list[dict[str, Any]]) -> None:
    """Add to each row the distilled classifier's accuracy under the same attack, made against it: alone, behind its restorer."""
    for row, other in zip(rows, answered, strict=True):
        row["accuracy"] |= dict(zip(tables.STUDENT, other["accuracy"].values(), strict=True))


def control_rows(config: GANLevelsConfig, results: dict[str, Any], restorer: str | None = None) -> list[dict[str, Any]]:
    """FGSM gray_box at every level, towards the true label's loss and without it; of every restorer, or of one."""
    names = [*config.rivals, config.ours] if restorer is None else [restorer]
    if "fgsm_linf" not in config.readings:
        return []
    rows = []
    for level in config.levels:
        for labels in ("true", *CONTROLS):
            entry = attack_at(config, "fgsm_linf", level, labels=labels)
            found = {name: find(results, name, "gray_box", entry) for name in names}
            accuracy = {NO_RESTORER: undefended(found[names[-1]]), **{name: figure(row) for name, row in found.items()}}
            rows.append({"level": level, "labels": labels, "accuracy": accuracy})
    return rows


def probe_names(config: GANLevelsConfig) -> list[str]:
    """Clean images and the probes, as the tables name them."""
    return [CLEAN, *(f"{entry.attack} {tables.shown_eps(entry.attack, entry.eps)}" for entry in probes(config))]


def probe_figures(config: GANLevelsConfig, results: dict[str, Any], restorer: str) -> dict[str, Any]:
    """A restorer's accuracy under each probe, by its name."""
    entries = [None, *probes(config)]
    found = [figure(find(results, restorer, "gray_box", entry)) for entry in entries]
    return {"accuracy": dict(zip(probe_names(config), found, strict=True))}


def parts_of(name: str, folder: Path) -> dict[str, str]:
    """A GAN defence by its parts: the ISMN alone, then with the generator for one round and for all it takes."""
    return {
        "ISMN": variant(name, folder, rounds=1, generator=False),
        "ISMN + generator, one round": variant(name, folder, rounds=1),
        "ISMN + generator, all rounds": name,
    }


def part_rows(config: GANLevelsConfig, results: dict[str, Any], parts: dict[str, str], suffix: str = "") -> list[dict[str, Any]]:
    """Part by part before one classifier: none, then each of `parts_of`."""
    alone = suffix.removeprefix(" + ") or "nothing"
    rows = [{"part": alone, **probe_figures(config, results, NO_RESTORER)}]
    return rows + [{"part": part + suffix, **probe_figures(config, results, name)} for part, name in parts.items()]


def quality_rows(config: GANLevelsConfig, results: dict[str, Any], parts: dict[str, str]) -> list[dict[str, Any]]:
    """How near to the clean image attacked images are, and what each of `parts_of` makes of them: mean PSNR and LPIPS."""
    rows = []
    for entry, name in zip(probes(config), probe_names(config)[1:], strict=True):
        row: dict[str, Any] = {"attack": name}
        for part, restorer in zip(tables.RESTORED, parts.values(), strict=True):
            for found in results["restoration"][restorer]:
                if found["threat"] == "gray_box" and _is(found, entry.spec()):
                    row["attacked"] = {key: found["attacked"].get(key) for key in ("psnr", "lpips")}
                    row[part] = {key: found["restored"].get(key) for key in ("psnr", "lpips")}
        rows.append(row)
    return rows
