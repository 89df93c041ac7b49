"""`gandefense.evaluate`: one evaluation from its config to results.json and the report."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gandefense import config as configuration
from gandefense import zoo
from gandefense.data import datasets
from gandefense.data.batches import batches
from gandefense.errors import UserError
from gandefense.evaluation import checks, cost, figures, metrics, report, tables
from gandefense.evaluation.measurement import Measurement, all_versions
from gandefense.evaluation.records import classifier_key, gray_key, validation_key, white_key, zero_key
from gandefense.evaluation.settings import NO_RESTORER, AttackEntry, EvaluateConfig, WhiteBoxConfig, resolve
from gandefense.evaluation.tables import Cell, Outcome
from gandefense.files import locked, write_text
from gandefense.training.state import choose_device

__all__ = ["AttackEntry", "EvaluateConfig", "WhiteBoxConfig", "evaluate"]


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
    with torch.random.fork_rng(devices=[]):  # networks are built with random weights before theirs are read
        measurement = Measurement(config, device)
    # CUDA convolutions would round to TF32 otherwise, and need not repeat themselves
    with (
        torch.backends.cudnn.flags(allow_tf32=False, deterministic=True, benchmark=False),
        locked(measurement.folder, wait=False),
    ):
        measurement.run()
        outcomes = {cell: outcome(measurement, cell) for cell in cells(config)}
        results = tabulate(measurement, outcomes)
    results["made"] = {
        "command": shlex.join(sys.argv),
        "output": str(measurement.folder),
        "versions": all_versions(),
        "weights": measurement.weights,
        "seed": config.seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - begun, 1),
        "config": configuration.to_dict(config),
    }
    results = tables.json_ready(results)
    panels = draw(measurement, list(outcomes))
    report.write(measurement.folder, results, panels)
    # Last, because results.json marks the evaluation as finished.
    write_text(measurement.folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


def cells(config: EvaluateConfig) -> list[Cell]:
    """Every row of the table, in its order."""
    gray, white = ([entry.spec() for entry in entries] for entries in (config.gray_box, config.white_box.attacks))
    found = []
    for restorer in config.restorers:
        found += [Cell(restorer, "gray_box", "oblivious", spec) for spec in (None, *gray)]
        found += [Cell(restorer, "white_box", view, spec) for view in config.white_box.views for spec in white]
    return found


def outcome(measurement: Measurement, cell: Cell) -> Outcome:
    """What the records say about every image of a cell."""
    labels, count = measurement.data.labels, measurement.count
    alone = measurement.records.columns(classifier_key(cell.spec), count)
    undefended = alone["prediction"] == labels
    if cell.restorer == NO_RESTORER:  # every view of no defence is the classifier
        return Outcome(undefended, undefended, undefended, alone["changed"])
    if cell.threat == "gray_box":
        restored = measurement.records.columns(gray_key(cell.restorer, cell.spec), count)
        met, share = alone, None
    else:
        restored = measurement.records.columns(white_key(cell.restorer, cell.view, cell.spec), count)
        met = {name.removeprefix("attacked_"): column for name, column in restored.items() if name.startswith("attacked_")}
        # At clean images of the first batch, and at the attacked images: where either is blind, the attack was.
        clean = measurement.records.columns(zero_key(cell.restorer, cell.view), 1)["share"].mean().item()
        share = max(clean, restored["zero_gradient"].mean().item())
    return Outcome(
        right=restored["prediction"] == labels,
        undefended=undefended,
        bare_right=met["prediction"] == labels,
        changed=met["changed"],
        score=restored["score"],
        attacked=met,
        restored=restored,
        zero_gradient=share,
    )


def tabulate(measurement: Measurement, outcomes: dict[Cell, Outcome]) -> dict[str, Any]:
    """The results dictionary, but for how it was made."""
    config, labels, records = measurement.config, measurement.data.labels, measurement.records
    clean = records.columns(classifier_key(None), measurement.count)["prediction"] == labels
    held_out = len(measurement.validation.labels)
    scores = {
        name: records.columns(validation_key(name), -(-held_out // config.batch_size))["score"] for name in measurement.defences
    }
    timed = next(batches(measurement.data, config.cost_batch_size, measurement.device))[0]
    timed = timed.contiguous(memory_format=torch.channels_last)
    defences = {NO_RESTORER: zoo.defend(measurement.classifier, NO_RESTORER), **measurement.defences}
    results: dict[str, Any] = {
        "schema": 1,
        "data": {
            "name": config.data.name,
            "split": "test" if config.data.file is None else "file",
            "file": config.data.file,
            "n": len(labels),
            "seed": config.seed,
            "validation_n": held_out,
        },
        "classifier": {
            "name": config.classifier,
            "parameters": cost.parameters(measurement.classifier),
            **metrics.accuracy(clean),
        },
        "rows": tables.rows(outcomes, config.seed),
        "worst_case": tables.worst_cases(outcomes),
        "detection": tables.detection(outcomes, scores, config.false_positive_rates),
        "restoration": tables.restoration(outcomes, lpips=measurement.lpips is not None),
        "cost": {name: cost.measure(defended, timed) for name, defended in defences.items()},
    }
    results["checks"] = checks.run(results)
    return results


def draw(measurement: Measurement, shown: list[Cell]) -> list[figures.Panel]:
    """The report's picture panels: one for every restorer and attack."""
    config, records, labels = measurement.config, measurement.records, measurement.data.labels
    count = min(config.images, config.batch_size, len(labels))
    if count == 0:
        return []
    clean = next(batches(measurement.data, count))[0]
    names = datasets.describe(config.data.name).classes
    panels = []
    for cell in shown:
        if cell.restorer == NO_RESTORER:
            continue
        alone = records.read(classifier_key(cell.spec), 0)
        if cell.threat == "gray_box":
            key, attacked = gray_key(cell.restorer, cell.spec), alone["prediction"]
            pictures = records.pictures(classifier_key(cell.spec)) | records.pictures(key)
        else:
            key = white_key(cell.restorer, cell.view, cell.spec)
            attacked, pictures = records.read(key, 0)["attacked_prediction"], records.pictures(key)
        seen = {
            "clean": records.read(classifier_key(None), 0)["prediction"],
            "attacked": attacked,
            "restored": records.read(key, 0)["prediction"],
        }
        panels.append(figures.panel(len(panels), cell, clean, pictures, {"label": labels, **seen}, names))
    return panels
