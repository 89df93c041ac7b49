"""The tables of the papers and of their rivals, each by one command: tools/reproduce.py NAME → results/NAME.{json,md}."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gandefense.evaluation.wording import Table
from gandefense.reproduce import adaptive, rivals

# name → (schema of configs/reproduce/NAME.yaml, what makes the table and returns its parts as text and as figures)
TABLES: dict[str, tuple[type, Callable[[Any], tuple[list[Table], dict[str, Any]]]]] = {
    "adaptive": (adaptive.AdaptiveConfig, adaptive.run),
    "rivals": (rivals.RivalsConfig, rivals.run),
}
