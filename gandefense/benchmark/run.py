"""The whole benchmark: every part that was asked for, one table, benchmark.json and the growth plot."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gandefense import config as configuration
from gandefense.benchmark import attacks, evaluation, growth, maps, report, restorers, subjects, training
from gandefense.benchmark.settings import BenchmarkConfig, Row, batch_size, check, effort
from gandefense.errors import UserError
from gandefense.files import numbered_folder, write_text
from gandefense.precision import resolve
from gandefense.training.run import versions
from gandefense.training.state import choose_device, seed_everything


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure and write benchmark.json, benchmark.md and growth.png into the output folder.

    Returns:
        What benchmark.json holds: "made" (versions, device, config …), "rows" (see `Row`), "growth" (see `growth.Curve`).

    Raises:
        UserError: a mistake in the config, an unknown network, a folder that cannot be written.
    """
    begun = time.perf_counter()
    check(config)
    device = choose_device(config.device)
    precision = resolve(device, config.precision)
    seed_everything(config.seed)
    measured = subjects.load(config, device)
    folder = _folder(config)
    length = effort(config)
    curves: list[growth.Curve] = []

    def grow() -> list[Row]:
        rows, found = growth.measure(config, device, length)
        curves.extend(found)
        return rows

    works = {
        "maps": lambda: maps.measure(measured, length, precision),
        "restorers": lambda: restorers.measure(measured, length),
        "attacks": lambda: attacks.measure(measured, length, steps=2 if config.quick else attacks.STEPS),
        "training": lambda: training.measure(measured, length, (config.trn, config.gan), precision),
        "evaluation": lambda: evaluation.measure(measured, config),
        "growth": grow,
    }
    rows, seconds = [], {}
    for part in tqdm([part for part in works if part in config.parts], desc="benchmark", unit="part", dynamic_ncols=True):
        start = time.perf_counter()
        rows += works[part]()
        seconds[part] = round(time.perf_counter() - start, 1)
    results = {
        "made": {
            "versions": versions(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "precision": precision,
            "images": f"{config.data.name} test images" if measured.real else "random images",
            "batch_size": batch_size(config, device),
            "seconds": round(time.perf_counter() - begun, 1),
            "seconds_of_parts": seconds,
            "config": configuration.to_dict(config),
            "output": str(folder),
        },
        "rows": report.as_json(rows),
        "growth": [asdict(curve) for curve in curves],
    }
    results["table"] = report.table(rows)
    if curves and not growth.draw(curves, folder / "growth.png"):
        results["table"] += "\ngrowth.png is drawn where matplotlib is installed: pip install 'gandefense[plots]'\n"
    write_text(folder / "benchmark.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_text(folder / "benchmark.md", results["table"])
    return results


def _folder(config: BenchmarkConfig) -> Path:
    if config.output is None:
        return numbered_folder(Path(config.folder), "benchmark")
    folder = Path(config.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder
