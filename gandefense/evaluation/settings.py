"""What an evaluation is asked to measure: the schema of configs/evaluate/*.yaml, and its validation before any work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from gandefense import config as configuration
from gandefense import zoo
from gandefense.attacks.suite import AttackSpec, check_spec
from gandefense.attacks.threats import VIEWS
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.errors import UserError

NO_RESTORER = "none"  # the restorer that leaves images as they are


@dataclass
class AttackEntry:
    """One attack in a config; see `AttackSpec`."""

    attack: str = MISSING  # fgsm, ffgsm, bim, pgd, mim, or a noise such as gaussian[-1,1]
    eps: float = 8 / 255  # budget in pixel units of [0, 1] images, or the noise level
    steps: int = 20  # gradient steps of the iterative attacks
    step_size: float | None = None  # in pixel units; null: the attack's usual one
    restarts: int = 1  # random starts; an image is broken when one of them breaks it
    labels: str = "true"  # true, or predicted or random_target, the controls for label leaking

    def spec(self) -> AttackSpec:
        """The attack as the suite takes it."""
        return AttackSpec(**dataclasses.asdict(self))


def _gray_box() -> list[AttackEntry]:
    return [
        AttackEntry("fgsm"),
        AttackEntry("ffgsm"),
        AttackEntry("bim", steps=10),
        AttackEntry("pgd", steps=20),
        AttackEntry("mim", steps=10),
        *(AttackEntry("gaussian[-1,1]", eps=level) for level in (0.2, 0.3, 0.4)),
    ]


@dataclass
class WhiteBoxConfig:
    """Attacks that know the defence: every view × every attack."""

    views: list[str] = field(default_factory=lambda: ["straight_through", "detached"])  # what the attacker differentiates
    attacks: list[AttackEntry] = field(default_factory=lambda: [AttackEntry("pgd", steps=20)])


@dataclass
class EvaluateConfig:
    """One evaluation. The defaults are those of configs/evaluate/cifar10_quick.yaml."""

    data: DataConfig = field(default_factory=lambda: DataConfig(limit=1000))  # test images; limit: null takes all
    classifier: str = "cifar10/classifier"  # the network that is defended: zoo name, run folder or .safetensors file
    restorers: list[str] = field(default_factory=lambda: ["cifar10/trn", "cifar10/gan"])  # same; "none": no defence
    output: str | None = None  # folder of results and records; null: a new numbered one in runs/
    overwrite: bool = False  # throw away what an earlier evaluation left in `output`
    seed: int = 0  # of the choice of images and of every attack's random parts
    device: str = "auto"  # auto, cpu, cuda, cuda:1 …
    batch_size: int = 100  # images per batch; a killed evaluation loses at most one batch of one attack
    gray_box: list[AttackEntry] = field(default_factory=_gray_box)  # made against the classifier alone
    white_box: WhiteBoxConfig = field(default_factory=WhiteBoxConfig)
    false_positive_rates: list[float] = field(default_factory=lambda: [0.01, 0.05])  # detectors are read at these
    images: int = 4  # test images shown in the report, per restorer and attack (at most one batch)
    cost_batch_size: int = 100  # images per batch when speed is measured


def resolve(config: EvaluateConfig | str | Path | None, settings: dict[str, Any]) -> EvaluateConfig:
    """A checked config from a config (or its YAML file, or None for the defaults) and keyword settings.

    Args:
        config: where to start.
        settings: fields of `EvaluateConfig`; nested ones as dictionaries; `limit` is short for `data.limit`.

    Raises:
        UserError: see `check`, and unknown keys or values of a wrong type.
    """
    if config is None:
        config = EvaluateConfig()
    elif not isinstance(config, EvaluateConfig):
        config = configuration.load(EvaluateConfig, config)
    values = configuration.to_dict(config)
    changes = {key: _plain(value) for key, value in settings.items()}
    if "limit" in changes:
        changes["data"] = {**changes.get("data", {}), "limit": changes.pop("limit")}
    if isinstance(changes.get("restorers"), str):
        changes["restorers"] = [changes["restorers"]]
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if both else value
    resolved = configuration.build(EvaluateConfig, values, source="evaluate")
    check(resolved)
    return resolved


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def check(config: EvaluateConfig) -> None:
    """Find every mistake that can be found before an image is loaded.

    Raises:
        UserError: unknown networks, networks of another data set, unknown attacks or views, values out of range,
            anything listed twice.
    """
    datasets.describe(config.data.name)
    for name, low in (("batch_size", 1), ("cost_batch_size", 1), ("images", 0)):
        if getattr(config, name) < low:
            raise UserError(f"{name} must be at least {low}, got {getattr(config, name)}")
    if config.data.limit is not None and config.data.limit < 1:
        raise UserError(f"data.limit must be at least 1, got {config.data.limit}")
    for rate in config.false_positive_rates:
        if not 0 < rate < 1:
            raise UserError(f"false_positive_rates lie between 0 and 1, got {rate}")
    _check_attacks("gray_box", config.gray_box)
    _check_attacks("white_box.attacks", config.white_box.attacks)
    for entry in config.white_box.attacks:
        if entry.spec().norm == "noise":
            raise UserError(f"white_box.attacks: {entry.attack} knows nothing of a defence; list it under gray_box")
    for view in config.white_box.views:
        if view == "oblivious" or view not in VIEWS:
            known = ", ".join(name for name in VIEWS if name != "oblivious")
            raise UserError(f"white_box.views: {view!r} is no view of a defence; known: {known}")
    for what, names in (
        ("restorers", config.restorers),
        ("white_box.views", config.white_box.views),
        ("false_positive_rates", config.false_positive_rates),
    ):
        if len(set(names)) < len(names):
            raise UserError(f"{what} lists something twice: {', '.join(map(str, names))}")
    if not config.restorers:
        raise UserError("restorers is empty; name at least one, or none (the classifier alone): restorers=[none]")
    _check_networks(config)


def _check_attacks(where: str, entries: list[AttackEntry]) -> None:
    specs = [entry.spec() for entry in entries]
    for spec in specs:
        try:
            check_spec(spec)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if len(set(specs)) < len(specs):
        raise UserError(f"{where} lists an attack twice with the same settings")


def _check_networks(config: EvaluateConfig) -> None:
    wanted = [("classifier", config.classifier), *(("restorer", name) for name in config.restorers if name != NO_RESTORER)]
    for role, name in wanted:
        description = zoo.describe(name)
        kind = description.get("kind")
        kinds = ("classifier",) if role == "classifier" else tuple(zoo.RESTORERS)
        if kind not in kinds:
            raise UserError(f"{name} is a {kind!r}, not a {role} ({', '.join(kinds)})")
        if description.get("data") != config.data.name:
            raise UserError(f"{role} {name} is for {description.get('data')!r}, but data.name is {config.data.name!r}")
