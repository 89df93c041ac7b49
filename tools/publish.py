#!/usr/bin/env python3
"""Put a finished run's network into the package, with a card that says where every figure comes from.

usage: python tools/publish.py RUN_FOLDER NAME [results=RESULTS.json] [weights=model.safetensors] [classifier=NAME]

classifier= is for a restorer that was trained for a network that is not shipped: publish that one first, and give its name.
Of a jointly trained restorer, and of a GAN defence with answers: student, the classifier lies in the same run folder; it is
published with the restorer, as NAME-classifier.
NAME is a zoo name such as cifar10/gan. Publish once, evaluate NAME, and publish again with the results: figures of other
weights are refused. Weights are stored as float16 where float32 would exceed 16 MiB.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from gandefense import zoo
from gandefense.attacks.cache import fingerprint
from gandefense.command_line import run_tool
from gandefense.errors import UserError
from gandefense.evaluation.cost import parameters
from gandefense.evaluation.records import file_hash
from gandefense.files import write_text
from gandefense.weights_io import load_weights, save_weights

LARGEST = 16 * 2**20  # bytes a shipped file may have
OF_THE_MACHINE = {"run": ("folder", "device"), "data": ("root",)}  # settings that mean nothing elsewhere


def main(arguments: list[str]) -> None:
    words = [word for word in arguments if "=" not in word]
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    if len(words) != 2 or set(options) - {"results", "weights", "classifier"}:
        raise UserError(
            "usage: python tools/publish.py RUN_FOLDER NAME [results=RESULTS.json] [weights=model.safetensors] [classifier=NAME]"
        )
    run, name = Path(words[0]), words[1]
    if not re.fullmatch(r"[a-z0-9_]+/[a-z0-9_-]+", name):
        raise UserError(f"a zoo name is DATASET/NAME in small letters, got {name!r}")
    tensors, description = load_weights(run / options.get("weights", "model.safetensors"))
    if not {"kind", "data"} <= description.keys():
        raise UserError(f"{run}: the weights do not say what they are")
    if "classifier" in options:
        published = fingerprint(zoo.load_classifier(options["classifier"]))
        if description.get("classifier_fingerprint") != published:
            raise UserError(f"{run} was not trained for the weights of {options['classifier']}")
        description["classifier"] = options["classifier"]
    elif description.get("classifier") in zoo.names():
        name_of = description["classifier"]
        if description.get("classifier_fingerprint") not in (None, fingerprint(zoo.load_classifier(name_of))):
            raise UserError(f"{run} was trained for other weights of {name_of} than those that are published now")
    elif description.get("classifier") in zoo.BESIDE:
        description["classifier"] = publish_beside(run, name, description, measured="results" in options)
    if "classifier" in description and description["classifier"] not in zoo.names():
        raise UserError(
            f"{description['classifier']} is not shipped: publish that classifier first, and give its name, classifier=NAME"
        )
    publish(tensors, description, name, options.get("results"))


def publish_beside(run: Path, name: str, description: dict, *, measured: bool) -> str:
    """Publish the classifier that lies beside a restorer, unless it is there already, and return its zoo name.

    Raises:
        UserError: it is another one than the restorer was trained with; or results are at hand of weights not published yet.
    """
    path, own = run / description["classifier"], f"{name}-classifier"
    if fingerprint(zoo.load_classifier(path)) != description.get("classifier_fingerprint"):
        raise UserError(f"{path} is not the classifier that this restorer was trained with")
    tensors, about = load_weights(path)
    if not is_stored(zoo.WEIGHTS / f"{own}.safetensors", small(tensors), portable(about)):
        if measured:
            raise UserError(f"{own} is not published yet: publish without results first, evaluate, then publish again")
        publish(tensors, about, own, None)
    return own


def publish(tensors: dict, description: dict, name: str, results_path: str | None) -> None:
    """Store weights under a zoo name, with their card; raises UserError for results of other weights."""
    description = portable(description)
    if "classifier" in description:
        description["classifier_fingerprint"] = fingerprint(zoo.load_classifier(description["classifier"]))
    tensors = small(tensors)
    target = zoo.WEIGHTS / f"{name}.safetensors"
    stored = is_stored(target, tensors, description)
    results = read_results(results_path, name, target if stored else None) if results_path is not None else None

    target.parent.mkdir(parents=True, exist_ok=True)
    if not stored:  # what is stored stays, byte for byte: results name it by its hash
        save_weights(target, tensors, description)
    defended = zoo.load(name)
    own = defended.classifier if description["kind"] == "classifier" else defended.restorer
    without = None if description["kind"] == "classifier" else defended.classifier
    card = {
        "name": name,
        "kind": description["kind"],
        "data": description["data"],
        "parameters": parameters(own, without=without),
        "stored_as": str(next(t.dtype for t in tensors.values() if t.is_floating_point())).removeprefix("torch."),
        "recipe": description.get("config"),
        "versions": description.get("versions", {"torch": torch.__version__}),
        "validation": description.get("measured"),
        "test": results,
    }
    write_text(target.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    print(f"{target} ({target.stat().st_size / 2**20:.1f} MiB) and its card {target.with_suffix('.json').name}")


def small(tensors: dict) -> dict:
    """Tensors as they are stored: in half precision where they would be too large."""
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= LARGEST:
        return tensors
    return {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def portable(description: dict) -> dict:
    """A description without the settings that belong to the machine it was trained on."""
    config = {
        section: {key: value for key, value in values.items() if key not in OF_THE_MACHINE.get(section, ())}
        if isinstance(values, dict)
        else values
        for section, values in description.get("config", {}).items()
        if section != "resume"
    }
    if config.get("start") and config["start"] not in zoo.names():
        config["start"] = Path(config["start"]).name  # the run, not where it lies
    return named({**description, "config": config})


def named(value: Any) -> Any:
    """A description's value with the last part of a path in place of an absolute one, which leads nowhere on another machine."""
    if isinstance(value, dict):
        return {key: named(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [named(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def is_stored(path: Path, tensors: dict, description: dict) -> bool:
    """Whether a weights file already holds just this; safetensors may write the same contents in other bytes."""
    try:
        found, about = load_weights(path)
    except UserError:
        return False
    wanted = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}
    same = about == json.loads(json.dumps(description)) and found.keys() == wanted.keys()
    return same and all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def read_results(path: str, name: str, weights: Path | None) -> dict:
    """What a results.json says of one network: its rows, and how they were made.

    Raises:
        UserError: no such file, no rows of this network, or rows of other weights.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        measured = results["made"]["weights"].get(name)
        about = {key: results["made"][key] for key in ("command", "versions", "seed", "date")}
        classifier, found = results["classifier"], results["rows"]
        wanted = "none" if classifier["name"] == name else name
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no results.json of an evaluation") from None
    if weights is None or measured != file_hash(weights):
        raise UserError(f"{path} does not measure the published {name}: publish it, evaluate it by that name, then publish again")
    keys = ("threat", "attack", "labels", "view", "eps", "steps", "n", "accuracy", "ci95", "undefended_accuracy")
    # How the attack was made, where that is more than its name and steps; survivors' rows are cumulative.
    more = ("title", "loss", "restarts", "step_size", "queries", "eot_samples", "survivors", "resubmitted_accuracy")
    rows = [
        {**{key: row.get(key) for key in keys}, **{key: row[key] for key in more if row.get(key) is not None}}
        for row in found
        if row["restorer"] == wanted
    ]
    if not rows:
        raise UserError(f"{path} has no row of {name}")
    return {"classifier": classifier, "rows": rows, "made": about}


if __name__ == "__main__":
    run_tool(main, __doc__)
