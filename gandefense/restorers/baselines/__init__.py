"""Restorers of other publications, re-implemented to stand beside TRN and the GAN defence in the same tables.

READY names those that need no training: `jpeg`, or with options `jpeg:quality=40`, `random_resize:low=28,passes=10`,
`shield:qualities=20+80`.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gandefense.errors import UserError
from gandefense.restorers.base import Restorer
from gandefense.restorers.baselines.filters import Bilateral, BitDepth, Gaussian, Mean, Median
from gandefense.restorers.baselines.jpeg import JPEG, Shield
from gandefense.restorers.baselines.random_resize import RandomResize

# name → class; the arguments of its __init__ that have a default and a type of WORDS are the options
READY: dict[str, type[Restorer]] = {
    "jpeg": JPEG,
    "shield": Shield,
    "random_resize": RandomResize,
    "median": Median,
    "mean": Mean,
    "gaussian": Gaussian,
    "bilateral": Bilateral,
    "bit_depth": BitDepth,
}

WORDS = {int: "a whole number", float: "a number", Sequence[int]: "whole numbers such as 20+80"}


def is_ready(name: object) -> bool:
    """Whether something is the name of a restorer that needs no training, with or without options, mistaken ones too."""
    return isinstance(name, str) and name.split(":")[0] in READY


def options(name: str) -> dict[str, Any]:
    """All options of a name such as `random_resize:low=28,passes=10`, with the defaults of those that it does not give.

    Raises:
        UserError: an unknown option, one that is given twice, or a value of a wrong type.
    """
    kind, colon, words = name.partition(":")
    arguments = {key: argument.default for key, argument in inspect.signature(READY[kind]).parameters.items()}
    arguments = {key: default for key, default in arguments.items() if default is not inspect.Parameter.empty}
    types_of = typing.get_type_hints(READY[kind].__init__)
    given: dict[str, Any] = {}
    for word in words.split(",") if colon else []:
        key, _, text = (part.strip() for part in word.partition("="))
        if key not in arguments:
            known = ", ".join(arguments) or "none"
            raise UserError(f"{name}: unknown option {key!r}; known: {known} (written {kind}:NAME=VALUE,NAME=VALUE)")
        if key in given:
            raise UserError(f"{name}: {key} is given twice")
        given[key] = _value(name, key, text, types_of[key])
    return {**arguments, **given}


def build(name: str) -> Restorer:
    """The restorer of a name, in eval mode; raises UserError where `options` does, and for values out of range."""
    chosen = options(name)
    try:
        return READY[name.split(":")[0]](**chosen).eval()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def content_hash(name: str) -> str:
    """SHA-256 of what a name stands for: its options, and the source file of its class."""
    kind = READY[name.split(":")[0]]
    source = Path(sys.modules[kind.__module__].__file__).read_bytes()
    return hashlib.sha256(f"{kind.__qualname__} {sorted(options(name).items())}".encode() + source).hexdigest()


def _value(name: str, key: str, text: str, kind: Any) -> Any:
    """An option's value; `kind` is the annotation of the argument: one of WORDS, or one of them or None."""
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
    try:
        value = tuple(int(part) for part in text.split("+")) if kind == Sequence[int] else kind(text)
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: {key} must be {WORDS[kind]}, got {text!r}")
    return value
