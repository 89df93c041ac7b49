"""Training loops of other publications' defences, one a file; a config's line `baseline:` chooses among them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gandefense import config as configuration
from gandefense.errors import UserError
from gandefense.training.baselines import ape_gan, ddsa, defense_gan, denoiser, lad, magnet
from gandefense.training.run import Run

# name → (config schema, training function: config → weights path)
BASELINES: dict[str, tuple[type, Callable[[Any], Path]]] = {
    "magnet": (magnet.MagNetConfig, magnet.train),
    "ddsa": (ddsa.DDSAConfig, ddsa.train),
    "denoiser": (denoiser.DenoiserConfig, denoiser.train),
    "ape_gan": (ape_gan.APEGANConfig, ape_gan.train),
    "defense_gan": (defense_gan.DefenseGANConfig, defense_gan.train),
    "lad": (lad.LADConfig, lad.train),
}


def chosen(path: str | Path) -> str:
    """The baseline that a config file names; raises UserError when it names none or an unknown one, or is not readable."""
    known = ", ".join(BASELINES)
    if not Path(path).is_file():
        raise UserError(f"config file not found: {path}")
    configuration.check_file(Path(path))
    try:
        name = OmegaConf.to_container(OmegaConf.load(path))["baseline"]
    except Exception:  # YAML errors of many types, and files that hold something else
        raise UserError(f"{path} needs a line 'baseline: NAME'; known: {known}") from None
    if not isinstance(name, str) or name not in BASELINES:
        raise UserError(f"{path}: unknown baseline {name!r}; known: {known}")
    return name


def resumed(folder: str | Path) -> str:
    """The baseline that an existing run trains; raises UserError for a folder that is no such run."""
    for name in BASELINES:
        with suppress(UserError):
            Run.saved_config(folder, name)
            return name
    return Run.saved_config(folder, "baseline")["baseline"]  # no run is of that kind: this says what the folder is instead
