"""Evaluations that a table is put together from: each in a folder of its own, resumed when killed, used again when finished."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from gandefense import config as configuration
from gandefense import zoo
from gandefense.data import datasets
from gandefense.data.batches import content_hash
from gandefense.evaluation import metrics
from gandefense.evaluation.evaluator import EvaluateConfig, evaluate
from gandefense.evaluation.measurement import all_versions
from gandefense.evaluation.records import STANDING, code_hash
from gandefense.evaluation.settings import resolve
from gandefense.training.state import choose_device
from gandefense.weights_io import load_weights

# What a folder is named after; the rest of a config changes neither images nor attacks nor networks.
ASKED = ("data", "classifier", "restorers", "seed", "batch_size", "gray_box", "black_box", "white_box", "curves", "resubmissions")


def folder_of(config: EvaluateConfig, parent: Path) -> Path:
    """The folder of an evaluation: named after all that its figures depend on, so that only the same are used again.

    That is what is asked, whether LPIPS can be measured, the contents of the weights and of the test and validation images, the
    package's source, the libraries' versions and the type of device.

    Raises:
        UserError: an unknown network or device, or no such data.
    """
    values = configuration.to_dict(config)
    asked: dict[str, Any] = {name: values[name] for name in ASKED}
    asked["data"] = {name: value for name, value in values["data"].items() if name not in ("root", "download")}
    names = [config.classifier, *config.black_box.sources, *(name for name in config.restorers if name != "none")]
    own = [name for name in config.restorers if zoo.is_own(name)]
    defended = zoo.load_classifier(config.classifier) if own else None
    built = {name: zoo.load_restorer(name, defended) for name in own}  # which may want the classifier
    asked["weights"] = {name: zoo.content_hash(name, built.get(name)) for name in names}
    held_out = datasets.load(config.data.whole(config.validation_images), "validation", seed=config.seed)
    asked["images"] = content_hash(datasets.load(config.data, "test", seed=config.seed), held_out)
    asked["LPIPS"] = metrics.has_lpips()
    asked |= {"code": code_hash(), "versions": all_versions(), "device": choose_device(config.device).type}
    return parent / hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def shared(config: Any) -> dict[str, Any]:
    """What all evaluations of a table have in common, from its config: images, seed, device, batches; few pictures."""
    return {
        "data": config.data,
        "seed": config.seed,
        "device": config.device,
        "batch_size": config.batch_size,
        "images": 2,
    }


def measured(settings: dict[str, Any], parent: Path) -> dict[str, Any]:
    """The results of an evaluation, from its folder in `parent` if it is finished there, else after measuring.

    Args:
        settings: fields of `EvaluateConfig` that differ from the defaults.
        parent: holds a folder per evaluation.

    Raises:
        UserError: see `gandefense.evaluate`.
    """
    config = resolve(None, settings)
    folder = folder_of(config, parent)
    finished = folder / "results.json"
    if finished.is_file():
        print(f"measured before: {finished}")
        results = json.loads(finished.read_text(encoding="utf-8"))
        results["made"]["output"] = str(folder)  # the folder may have been moved
        return results
    config.output = str(folder)
    return evaluate(config)


def standing(results: dict[str, Any], restorer: str, threat: str) -> tuple[Tensor, str]:
    """Which images (N,) stand in the worst case of an evaluation that `measured` gave, and the hash of the test images.

    With the threat "clean", those that are right clean.
    """
    tensors, about = load_weights(Path(results["made"]["output"]) / STANDING)
    return tensors[f"{restorer}/{threat}"], about["images"]


def row(results: dict[str, Any], restorer: str, threat: str, attack: str, view: str | None = None) -> dict[str, Any]:
    """The one row of a restorer under an attack ("none": clean images); raises LookupError where there is not just one."""
    found = [
        row
        for row in results["rows"]
        if (row["restorer"], row["threat"], row["attack"]) == (restorer, threat, attack) and view in (None, row["view"])
    ]
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows of {restorer} under {threat} {attack} {view or ''}")
    return found[0]


def figure(entry: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and interval of a row or worst case; of a randomised defence, right at every resubmission."""
    return {name: entry[name] for name in ("accuracy", "ci95")}
