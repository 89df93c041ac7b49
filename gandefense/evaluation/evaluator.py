"""`gandefense.evaluate`: one evaluation from its config to results.json and the report."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

import torch

from gandefense import config as configuration
from gandefense import distributed, zoo
from gandefense.data import datasets
from gandefense.data.batches import batches, content_hash, to_float
from gandefense.errors import UserError
from gandefense.evaluation import checks, cost, fid, figures, metrics, report, tables
from gandefense.evaluation.cells import NO_RESTORER, Cell, validation_key, zero_key
from gandefense.evaluation.measurement import Measurement, all_versions
from gandefense.evaluation.records import STANDING
from gandefense.evaluation.settings import AttackEntry, BlackBoxConfig, CurvesConfig, EvaluateConfig, WhiteBoxConfig, resolve
from gandefense.evaluation.tables import Outcome
from gandefense.evaluation.trained_for import trained_for
from gandefense.evaluation.wording import typed
from gandefense.evaluation.work import Work
from gandefense.files import write_text
from gandefense.training.state import choose_device
from gandefense.weights_io import save_weights

__all__ = ["AttackEntry", "BlackBoxConfig", "CurvesConfig", "EvaluateConfig", "WhiteBoxConfig", "evaluate"]


def evaluate(config: EvaluateConfig | str | Path | None = None, **settings: Any) -> dict[str, Any]:
    """Measure defences on the same test images and write results.json, report.md, report.html and pictures.

    A killed evaluation goes on where it was when it is started again with the same `output`; the table is the same.

    Args:
        config: an `EvaluateConfig`, its YAML file, or None for the defaults.
        settings: fields of the config that differ, such as `restorers=["cifar10/trn"]` or `output="runs/x"`; `limit`
            is short for `data.limit`.

    Returns:
        What results.json holds; `made.output` names the folder.

    Raises:
        UserError: a mistake in the config, a network that does not exist or does not fit (both before any work), data
            that is missing, an output folder that holds a finished or another evaluation.
    """
    begun = time.perf_counter()
    config = resolve(config, settings)
    device = choose_device(config.device)
    if config.output is not None and not config.overwrite and (Path(config.output) / "results.json").exists():
        raise UserError(f"{config.output} holds a finished evaluation; give another output folder, or overwrite=true")
    with distributed.processes(device):
        if device.type == "cuda" and distributed.world() > 1:
            device = torch.device("cuda", torch.cuda.current_device())
        with torch.random.fork_rng(devices=[]):  # networks are built with random weights before theirs are read
            measurement = Measurement(config, device)
        # CUDA convolutions would round to TF32 otherwise, and need not repeat themselves
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True, benchmark=False),
            measurement.opened(),
        ):
            Work(measurement).run()
            if distributed.rank() == 0:
                _write(measurement, begun)
        distributed.barrier()
        return json.loads((measurement.folder / "results.json").read_text(encoding="utf-8"))


def _write(measurement: Measurement, begun: float) -> None:
    """Results and report from the records."""
    config = measurement.config
    cells = {name: measurement.cells[name] for name in config.restorers}
    outcomes = {cell: outcome(measurement, cell) for group in cells.values() for cell in group}
    results = tabulate(measurement, outcomes)
    results["made"] = {
        "command": typed(),
        "output": str(measurement.folder),
        "versions": all_versions(),
        "weights": measurement.weights,
        "seed": config.seed,
        "processes": distributed.world(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - begun, 1),
        "found": found(measurement),
        "config": configuration.to_dict(config),
    }
    results = tables.json_ready(results)
    panels = draw(measurement, list(outcomes))
    report.write(measurement.folder, results, panels)
    about = {"images": content_hash(measurement.data)}
    save_weights(measurement.folder / STANDING, tables.standing(outcomes), about)
    # Last, because results.json marks the evaluation as finished.
    write_text(measurement.folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")


def found(measurement: Measurement) -> dict[str, int]:
    """Attacks whose images an earlier evaluation had kept, some or all of them: title → how many images."""
    counts: dict[str, int] = {}
    for cell in measurement.cells[NO_RESTORER]:
        if cell.spec is not None and not cell.survivors:
            number = int(measurement.records.columns(cell.key, measurement.count)["found"].sum())
            title = cell.title if cell.source is None else f"{cell.title} on {cell.source}"
            counts |= {title: number} if number else {}
    return counts


def outcome(measurement: Measurement, cell: Cell) -> Outcome:
    """What the records say about every image of a cell."""
    labels, count, records = measurement.data.labels, measurement.count, measurement.records
    alone = records.columns(measurement.bare(cell).key, count)
    undefended = alone["prediction"] == labels
    undefended_passes = _passes(alone, labels)
    if cell.restorer == NO_RESTORER:  # every view of no defence is the classifier
        changed = alone.get("changed", alone.get("tried"))
        return Outcome(undefended, undefended, undefended, changed, passes=undefended_passes, undefended_passes=undefended_passes)
    restored = records.columns(cell.key, count)
    passes = _passes(restored, labels)
    right = restored["prediction"] == labels if passes is None else passes[:, 0]
    if cell.survivors:
        return Outcome(right, undefended, undefended, restored["tried"], undefended_passes=undefended_passes)
    met, share = alone, None
    if cell.own:
        met = {name.removeprefix("attacked_"): column for name, column in restored.items() if name.startswith("attacked_")}
    if "zero_gradient" in restored:
        # At clean images of the first batch, and at the attacked images: where either is blind, the attack was.
        clean = records.columns(zero_key(cell.restorer, cell.view), 1)["share"].mean().item()
        share = max(clean, restored["zero_gradient"].mean().item())
    return Outcome(
        right=right,
        undefended=undefended,
        bare_right=met["prediction"] == labels,
        changed=met["changed"],
        score=restored["score"],
        level=restored["level"],
        true_level=met["level"],
        attacked=met,
        restored=restored,
        zero_gradient=share,
        passes=passes,
        undefended_passes=undefended_passes,
    )


def _passes(record: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor | None:
    """Right at each resubmission (N, R), where there were any."""
    return record["predictions"] == labels[:, None] if "predictions" in record else None


def curves(measurement: Measurement) -> dict[str, Any]:
    """The curves of every restorer, from their points on record."""
    count = measurement.curve_count()
    labels = measurement.data.labels[: measurement.config.curves.images]
    found: dict[str, Any] = {}
    for restorer, by_name in measurement.curves.items():
        for name, cells in by_name.items():
            passes = [measurement.records.columns(cell.key, count)["predictions"] == labels[:, None] for cell in cells]
            found.setdefault(restorer, {})[name] = tables.curve(cells, passes, name)
    return found


def tabulate(measurement: Measurement, outcomes: dict[Cell, Outcome]) -> dict[str, Any]:
    """The results dictionary, but for how it was made."""
    config, labels, records = measurement.config, measurement.data.labels, measurement.records
    clean = records.columns(Cell(NO_RESTORER, "gray_box", "oblivious").key, measurement.count)["prediction"] == labels
    held_out = len(measurement.validation.labels)
    scores = {
        name: records.columns(validation_key(name), measurement.validation_count)["score"] for name in measurement.detectors
    }
    timed = next(batches(measurement.data, config.cost_batch_size, measurement.device))[0]
    timed = timed.contiguous(memory_format=torch.channels_last)
    results: dict[str, Any] = {
        "schema": 1,
        "data": {
            "name": datasets.describe(config.data).name,
            "split": "test" if config.data.file is None else "file",
            "file": config.data.file,
            "n": len(labels),
            "seed": config.seed,
            "validation_n": held_out,
            "classes": measurement.classes,
        },
        "classifier": {
            "name": config.classifier,
            "parameters": cost.parameters(measurement.classifier),
            "adversarial": zoo.describe(config.classifier).get("adversarial", "none") != "none",
            "probabilities": measurement.probabilities,
            **metrics.accuracy(clean),
        },
        "rows": tables.rows(outcomes, config.seed),
        "worst_case": tables.worst_cases(outcomes),
        "detection": tables.detection(outcomes, scores, config.false_positive_rates),
        "levels": tables.levels(outcomes),
        "restoration": tables.restoration(outcomes, lpips=measurement.lpips is not None),
        "cost": {name: cost.measure(defended, timed) for name, defended in measurement.defences.items()},
        "randomised": measurement.randomised,
        "trained_for": trained_for(config.restorers, measurement.classifier, config.classifier),
        "curves": curves(measurement),
    }
    if config.fid:
        clean_images = (to_float(measurement.data.images) * 255).round().byte()
        fid.add(results["restoration"], outcomes, clean_images, cuda=measurement.device.type == "cuda")
    results["checks"] = checks.run(results)
    return results


def draw(measurement: Measurement, shown: list[Cell]) -> list[figures.Panel]:
    """The report's picture panels: one for every restorer and attack."""
    config, records, labels = measurement.config, measurement.records, measurement.data.labels
    count = min(config.images, config.batch_size, len(labels))
    if count == 0:
        return []
    clean = next(batches(measurement.data, count))[0]
    names = datasets.describe(config.data).classes
    panels = []
    for cell in shown:
        if cell.restorer == NO_RESTORER or cell.survivors:
            continue
        bare = measurement.bare(cell).key
        alone = records.read(bare, 0)
        pictures, attacked = records.pictures(cell.key), alone["prediction"]
        if cell.own:
            attacked = records.read(cell.key, 0)["attacked_prediction"]
        else:
            pictures = records.pictures(bare) | pictures
        seen = {
            "clean": records.read(Cell(NO_RESTORER, "gray_box", "oblivious").key, 0)["prediction"],
            "attacked": attacked,
            "restored": records.read(cell.key, 0)["prediction"],
        }
        panels.append(figures.panel(len(panels), cell, clean, pictures, {"label": labels, **seen}, names))
    return panels
