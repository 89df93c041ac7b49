"""The tables of the papers and of their rivals, each by one command: tools/reproduce.py NAME → results/NAME.{json,md}."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gandefense.evaluation.wording import Table
from gandefense.reproduce import (
    adaptive,
    gan_levels,
    rivals,
    trn_ablation,
    trn_attacks,
    trn_blocks,
    trn_cross_attack,
    trn_figures,
    trn_maps,
)

_TRN: dict[str, tuple[type, Callable[[Any], tuple[list[Table], dict[str, Any]]]]] = {
    "trn-attacks": (trn_attacks.TRNAttacksConfig, trn_attacks.run),
    "trn-cross-attack": (trn_cross_attack.TRNCrossAttackConfig, trn_cross_attack.run),
    "trn-ablation": (trn_ablation.TRNAblationConfig, trn_ablation.run),
    "trn-blocks": (trn_blocks.TRNBlocksConfig, trn_blocks.run),
    "trn-figures": (trn_figures.TRNFiguresConfig, trn_figures.run),
}

# name → (schema of configs/reproduce/NAME.yaml, what makes the table and returns its parts as text and as figures)
TABLES: dict[str, tuple[type, Callable[[Any], tuple[list[Table], dict[str, Any]]]]] = {
    "adaptive": (adaptive.AdaptiveConfig, adaptive.run),
    "adaptive-autoattack": (adaptive.AdaptiveConfig, adaptive.run),
    "rivals": (rivals.RivalsConfig, rivals.run),
    "gan-levels": (gan_levels.GANLevelsConfig, gan_levels.run),
    "gan-celeba": (gan_levels.GANLevelsConfig, partial(gan_levels.run, name="gan-celeba")),
    "trn-maps": (trn_maps.TRNMapsConfig, trn_maps.run),
    **_TRN,
    **{f"{name}-fashion": table for name, table in _TRN.items()},  # the same of Fashion-MNIST
}
