"""Networks that a table trains for itself: in numbered run folders, gone on with when killed, used again when finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gandefense import config as configuration
from gandefense import zoo
from gandefense.config import DataConfig
from gandefense.errors import UserError
from gandefense.evaluation.measurement import all_versions
from gandefense.evaluation.records import source_hash
from gandefense.training import baselines, classifier, gan, trn
from gandefense.training.run import arithmetic
from gandefense.training.state import choose_device
from gandefense.weights_io import load_weights

APART = ("benchmark", "reproduce")  # folders of the package that no training depends on
PLACE = {"run": ("folder", "name", "device"), "data": ("root", "download")}  # keys that change no weights

# folder of a recipe → (config schema, training function: config → weights path); baselines say theirs in the file
TRAININGS: dict[str, tuple[type, Callable[[Any], Path]]] = {
    "classifier": (classifier.ClassifierConfig, classifier.train),
    "trn": (trn.TRNConfig, trn.train),
    "gan": (gan.GANConfig, gan.train),
}


def is_recipe(name: str) -> bool:
    """Whether a name stands for a training's config rather than for a network."""
    return name.endswith((".yaml", ".yml"))


def kind(name: str) -> str:
    """What a network is, "classifier", "trn" …, or what a recipe makes."""
    return Path(name).parent.name if is_recipe(name) else str(zoo.describe(name).get("kind"))


def _training(recipe: str) -> tuple[type, Callable[[Any], Path]]:
    made = kind(recipe)
    if made == "baselines":
        return baselines.BASELINES[baselines.chosen(recipe)]
    if made not in TRAININGS:
        raise UserError(f"{recipe}: its folder must say what it trains: {', '.join([*TRAININGS, 'baselines'])}")
    return TRAININGS[made]


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the second's values in place of the first's."""
    both = dict(values)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


def prepared(recipe: str, data: DataConfig, changes: dict[str, Any]) -> Any:
    """A recipe's config with changes in it.

    Args:
        recipe: a YAML file in a folder that is named after its training, such as configs/trn/cifar10_trn.yaml.
        data: of the table; the recipe must be for the same data set, and finds it in the same place.
        changes: nested keys of the recipe and other values.

    Raises:
        UserError: no such file, an unknown key, or a recipe for another data set.
    """
    schema, _ = _training(recipe)
    values = configuration.to_dict(configuration.load(schema, recipe))
    values = merged(values, {**changes, "data": {**changes.get("data", {}), "root": data.root, "download": data.download}})
    config = configuration.build(schema, values, source=recipe)
    if config.data.name != data.name:
        raise UserError(f"{recipe} is for {config.data.name!r}, but data.name is {data.name!r}")
    return config


_CODE = source_hash(APART)  # as in evaluation/records.py, when this is imported


def code_hash() -> str:
    """SHA-256 over the source that trainings depend on."""
    return _CODE


def _networks(values: dict[str, Any]) -> list[str]:
    """The networks that a config names: the defended classifier, others beside it, a start, a teacher."""
    teacher = values.get("train", {}).get("distillation", {}).get("teacher")
    return [name for name in (values.get("classifier"), values.get("start"), teacher, *(values.get("others") or [])) if name]


def folder_of(config: Any, recipe: str, parent: Path) -> Path:
    """The folder of a training's runs: named after its config, the networks it starts from, code, versions and device."""
    values = configuration.to_dict(config)
    asked = {name: value for name, value in values.items() if name != "resume"}
    for part, names in PLACE.items():
        asked[part] = {name: value for name, value in values[part].items() if name not in names}
    weights = [zoo.content_hash(name) for name in _networks(values)]
    if "classifier" in asked:
        asked["classifier"] = "…"  # its weights count, not where they lie
    device = choose_device(config.run.device)
    made_by = {"code": code_hash(), "versions": all_versions(), "device": device.type, **arithmetic(config, device)}
    asked = {"recipe": Path(recipe).name, "config": asked, "weights": weights, **made_by}
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    return parent / f"{Path(recipe).stem}-{key}"


def trained(recipe: str, data: DataConfig, parent: Path, *, device: str, changes: dict[str, Any] | None = None) -> str:
    """The run folder of what a recipe makes: trained now, gone on with, or found finished.

    Args:
        recipe, data, changes: see `prepared`.
        parent: holds a folder per training, and that its numbered run folders.
        device: to train on.

    Raises:
        UserError: see `prepared` and the training itself.
    """
    config = prepared(recipe, data, changes or {})
    config.run.device = device
    folder = folder_of(config, recipe, parent)
    config.run.folder = str(folder)
    runs = sorted(path.parent for path in folder.glob("[0-9]*-*/config.yaml"))
    for run in runs:
        if (run / "model.safetensors").is_file():
            print(f"trained before: {run}")
            return str(run)
    if runs:
        config.resume = str(runs[-1])
    return str(_training(recipe)[1](config).parent)


def network(name: str, data: DataConfig, parent: Path, *, device: str, changes: dict[str, Any] | None = None) -> str:
    """A network's name as it is; of a recipe the run folder of what it makes, see `trained`."""
    return trained(name, data, parent, device=device, changes=changes) if is_recipe(name) else name


def check(name: str, data: DataConfig, changes: dict[str, Any] | None = None) -> None:
    """Raise UserError for an unknown network or one of other data, or a recipe that `prepared` refuses, before any work."""
    if is_recipe(name):
        prepared(name, data, changes or {})
    elif (found := zoo.describe(name).get("data", data.name)) != data.name:
        raise UserError(f"{name} is for {found!r}, but data.name is {data.name!r}")


def parameters(name: str) -> int:
    """How many numbers a network's weights file holds."""
    return sum(tensor.numel() for tensor in load_weights(zoo.find(name))[0].values())
