"""Configuration: a dataclass is the schema and the documentation, OmegaConf merges YAML and key=value into it."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf

from gandefense.errors import UserError, reason

Schema = TypeVar("Schema")
LARGEST_FILE = 2**16  # bytes of a config; ours have some hundreds
DEEPEST = 50  # levels that a config's lists and keys may be nested in
_FRACTION = re.compile(r"^\s*(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*$")


@dataclasses.dataclass
class DataConfig:
    """Which images, and where they lie."""

    name: str = "cifar10"  # of the data set
    root: str | None = None  # folder with one sub-folder per data set; None: GANDEFENSE_DATA, else the user's cache folder
    download: bool = True  # fetch what is missing
    file: str | None = None  # your own test images instead: a safetensors file with `images` and `labels`
    limit: int | None = None  # use this many images, taken after a seeded shuffle; None: all
    size: int | None = None  # of celeba: 32, 64, 128 (None), 256, 512 or 1024; height and width
    attributes: list[str] = field(default_factory=lambda: ["Smiling"])  # of celeba; classes are their combinations
    split: str = "official"  # of celeba: official, or identity: nobody in two splits, in any partial copy
    images: str = "aligned"  # of celeba: aligned (178×218, img_align_celeba), or hq (1024×1024, celeba_hq_1024)

    def whole(self, limit: int | None = None) -> DataConfig:
        """The same data set without a file of one's own, and with another limit: what a validation split is loaded with."""
        return dataclasses.replace(self, file=None, limit=limit)


@dataclasses.dataclass
class RunConfig:
    """What every training loop shares."""

    folder: str = "runs"  # a new numbered run folder is made in here
    name: str = "run"  # ends the run folder's name
    seed: int = 0  # of weights, the order of batches and everything else that is random
    device: str = "auto"  # auto, cpu, cuda, cuda:1 …
    precision: str = "auto"  # bf16 (autocast), float32, or auto: bf16 where the device computes in it
    log_every: int = 20  # steps between two lines of stats.jsonl
    image_every: int = 500  # steps between two image grids in TensorBoard, and between two validations of restorers
    checkpoint_every: int = 200  # steps between two checkpoints


def fractions_to_floats(value: Any) -> Any:
    """Turn every string such as "8/255" inside nested lists and dictionaries into a float.

    Args:
        value: plain containers, as `OmegaConf.to_container` gives them.

    Returns:
        The same containers with fractions replaced; other values are left as they are.
    """
    if isinstance(value, dict):
        return {key: fractions_to_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [fractions_to_floats(item) for item in value]
    if isinstance(value, str) and (match := _FRACTION.match(value)):
        if float(match[2]) == 0:
            raise UserError(f"config: {value!r} divides by zero")
        return float(match[1]) / float(match[2])
    return value


def _known_keys(schema: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in schema:
        keys.append(f"{prefix}{key}")
        child = schema._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            keys.extend(_known_keys(child, f"{prefix}{key}."))
    return keys


def _reject_unknown_keys(given: Any, schema: DictConfig, known: list[str], prefix: str = "") -> None:
    for key, value in given.items():
        if key not in schema:
            nearest = difflib.get_close_matches(f"{prefix}{key}", known, n=1, cutoff=0.0)
            raise UserError(f"config: unknown key {prefix}{key}; the nearest known one is {nearest[0]}")
        node = schema._get_node(key)
        free_form = OmegaConf.get_type(node) is dict or not isinstance(node, DictConfig)
        if not free_form and value is not None and not isinstance(value, dict):
            raise UserError(f"config: {prefix}{key} takes key: value lines, got {value!r}")
        if isinstance(value, dict) and not free_form:
            _reject_unknown_keys(value, node, known, f"{prefix}{key}.")


def _check_lists(built: Any, prefix: str = "") -> None:
    """Raise UserError for a list in a list that takes plain values, which OmegaConf lets pass."""
    hints = get_type_hints(type(built))
    for entry in dataclasses.fields(built):
        value, where = getattr(built, entry.name), f"{prefix}{entry.name}"
        if dataclasses.is_dataclass(value):
            _check_lists(value, f"{where}.")
        elif isinstance(value, list):
            plain = get_args(hints[entry.name]) in ((int,), (float,), (str,), (bool,))
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    _check_lists(item, f"{where}[{i}].")
                elif plain and isinstance(item, (list, dict)):
                    raise UserError(f"config: {where}[{i}] takes one value, got {item!r}")


def build(schema: type[Schema], values: dict[str, Any], *, source: str = "config") -> Schema:
    """Merge plain values into a dataclass, checking names and types.

    Args:
        schema: a dataclass type.
        values: nested dictionaries; fractions such as "8/255" are read as numbers.
        source: named in the error message.

    Raises:
        UserError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    structured = OmegaConf.structured(schema)
    try:
        values = fractions_to_floats(values)
        _reject_unknown_keys(values, structured, _known_keys(structured))
        built = OmegaConf.to_object(OmegaConf.merge(structured, OmegaConf.create(values)))
        _check_lists(built)
        return built
    except UserError:
        raise
    except Exception as error:  # OmegaConf raises errors of many types, and values may be nested without end
        where = getattr(error, "full_key", None)
        if "is not a ListConfig" in str(error):
            raise UserError(f"{where} takes a list, even of one: {where}=[…]") from None
        raise UserError(f"{source}: {f'{where}: ' if where else ''}{reason(error)}") from None


def check_file(path: Path) -> None:
    """Raise UserError for a config that is too large or too deep, or that aliases of aliases would make too large."""
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path}: a config has at most {LARGEST_FILE:,} bytes")
    try:
        with path.open(encoding="utf-8") as file:
            depth = 0
            for event in yaml.parse(file, Loader=yaml.SafeLoader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > DEEPEST:  # the time to read such a file grows with the square of its depth
                    raise UserError(f"{path}: nested more than {DEEPEST} levels deep")
                if isinstance(event, yaml.AliasEvent):
                    raise UserError(f"{path}: YAML aliases (*name) are not followed; write the values out")
    except UserError:
        raise
    except Exception as error:  # a YAML error has many types; each is the user's to mend
        raise UserError(f"{path}: not readable as YAML ({reason(error)})") from None


def load(schema: type[Schema], path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Schema:
    """Read a YAML file and key=value overrides into a dataclass.

    Args:
        schema: a dataclass type.
        path: a YAML file, or None for the defaults alone.
        overrides: command-line words such as `data.limit=1000` or `train.lr=0.1`.

    Raises:
        UserError: a missing or unreadable file, a malformed override, an unknown key or a wrong type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        if not Path(path).is_file():
            raise UserError(f"config file not found: {path}")
        check_file(Path(path))
        try:
            loaded = OmegaConf.load(path)
            values = OmegaConf.to_container(loaded) if isinstance(loaded, DictConfig) else None
        except Exception as error:  # a YAML error has many types; each is the user's to mend
            raise UserError(f"{path}: not readable as YAML ({reason(error)})") from None
        if values is None:
            raise UserError(f"{path}: expected key: value lines")
    for word in overrides:
        if "=" not in word or word.startswith("="):
            raise UserError(f"expected key=value, got {word!r}")
    try:
        changes = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
        merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(values), OmegaConf.create(changes)))
    except Exception as error:
        raise UserError(f"cannot read the command line's key=value words: {reason(error)}") from None
    for key in _to_be_given(merged):
        raise UserError(f"{path or 'config'}: {key} is left for you to give: {key}=… on the command line")
    return build(schema, merged, source=str(path) if path else "config")


def _to_be_given(values: Any, prefix: str = "") -> Iterator[str]:
    """The keys of nested dictionaries whose value is YAML's ???, OmegaConf's word for what has to be given."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if value == MISSING:
            yield f"{prefix}{key}"
        yield from _to_be_given(value, f"{prefix}{key}.")


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain nested dictionaries, ready for YAML, JSON or a checkpoint."""
    return dataclasses.asdict(config)
