"""What an evaluation is asked to measure: the schema of configs/evaluate/*.yaml, and its validation before any work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from gandefense import config as configuration
from gandefense import zoo
from gandefense.attacks.suite import ONE_STEP, AttackSpec, check_spec, family
from gandefense.attacks.threats import VIEWS
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.evaluation import fid
from gandefense.evaluation.cells import NO_RESTORER


@dataclass
class AttackEntry:
    """One attack in a config; see `AttackSpec`."""

    # fgsm, ffgsm, bim, pgd, mim, pgd-coarse, pgd-l2, apgd-ce, apgd-dlr, apgd-t, fab, fab-t, autoattack, deepfool, cw; square,
    # hopskipjump (queries); universal (one perturbation for all images, made from validation images); or a noise such as
    # gaussian[-1,1]
    attack: str = MISSING
    eps: float = 8 / 255  # budget in pixel units of [0, 1] images; of pgd-l2 the perturbation's length; or the noise level
    steps: int | None = None  # gradient steps; null: the usual number (20; apgd-*, fab-*, autoattack, universal 100)
    step_size: float | None = None  # in the units of eps; null: the attack's usual one
    restarts: int = 1  # random starts; an image is broken when one of them breaks it
    labels: str = "true"  # true, or predicted or random_target, the controls for label leaking
    loss: str = "ce"  # of fgsm … pgd-l2 above: ce, margin, or joint (white_box: classifier and detector together)
    eot: int = 1  # gradient samples averaged at every step; counts only where the defence is randomised
    queries: int | None = None  # of square and hopskipjump, per image; null: 1,000 (5,000 within autoattack)
    survivors: bool = False  # attack only what stands after those listed before it, of its norm; its accuracy is then cumulative
    views: list[str] | None = None  # white_box: these views only; null: all of white_box.views

    def spec(self) -> AttackSpec:
        """The attack as the suite takes it."""
        own = ("survivors", "views")
        return AttackSpec(**{name: value for name, value in dataclasses.asdict(self).items() if name not in own})


def _gray_box() -> list[AttackEntry]:
    return [
        AttackEntry("fgsm"),
        AttackEntry("ffgsm"),
        AttackEntry("bim", steps=10),
        AttackEntry("pgd", steps=20),
        *(AttackEntry("pgd", steps=20, labels=labels) for labels in ("predicted", "random_target")),  # does the true one leak?
        AttackEntry("mim", steps=10),
        *(AttackEntry("gaussian[-1,1]", eps=level) for level in (0.2, 0.3, 0.4)),
    ]


@dataclass
class WhiteBoxConfig:
    """Attacks that know the defence: every view × every attack."""

    views: list[str] = field(default_factory=lambda: ["straight_through", "detached"])  # what the attacker differentiates
    attacks: list[AttackEntry] = field(default_factory=lambda: [AttackEntry("pgd", steps=20)])  # on every view, or on their own


@dataclass
class BlackBoxConfig:
    """Attacks that have neither the classifier's weights nor the defence."""

    sources: list[str] = field(default_factory=list)  # other classifiers, whose adversarial examples are tried
    transfer: list[AttackEntry] = field(default_factory=lambda: [AttackEntry("pgd", steps=20)])  # how these are made
    queries: list[AttackEntry] = field(default_factory=list)  # attacks that only ask the whole pipeline: square, hopskipjump


@dataclass
class CurvesConfig:
    """Accuracy against budget, steps and EOT samples; an empty list leaves a curve out."""

    attack: AttackEntry = field(default_factory=lambda: AttackEntry("pgd", steps=20))
    view: str = "detached"  # what the attacker differentiates; the classifier alone is attacked as it is
    images: int = 100  # the first of the test images
    eps: list[float] = field(default_factory=list)  # budgets in pixel units
    steps: list[int] = field(default_factory=list)  # numbers of gradient steps
    eot: list[int] = field(default_factory=list)  # only measured where the defence is randomised


@dataclass
class EvaluateConfig:
    """One evaluation. The defaults are those of configs/evaluate/cifar10_quick.yaml."""

    data: DataConfig = field(default_factory=lambda: DataConfig(limit=1000))  # test images; limit: null takes all
    # the network that is defended: zoo name, run folder, .safetensors file, or your own my_package.build
    classifier: str = "cifar10/classifier"
    restorers: list[str] = field(
        default_factory=lambda: ["cifar10/trn", "cifar10/gan"]
    )  # same, or my_package.MyRestorer; jpeg, shield, random_resize … (`baselines.READY`), "jpeg:quality=40"; none: no defence
    output: str | None = None  # folder of results and records; null: a new numbered one in runs/
    overwrite: bool = False  # throw away what an earlier evaluation left in `output`
    seed: int = 0  # of the choice of images and of every attack's random parts
    device: str = "auto"  # auto, cpu, cuda, cuda:1 …
    batch_size: int = 100  # images per batch; a killed evaluation loses at most one batch of one attack
    gray_box: list[AttackEntry] = field(default_factory=_gray_box)  # made against the classifier alone
    black_box: BlackBoxConfig = field(default_factory=BlackBoxConfig)
    white_box: WhiteBoxConfig = field(default_factory=WhiteBoxConfig)
    curves: CurvesConfig = field(default_factory=CurvesConfig)
    validation_images: int = 1000  # clean ones, for the detectors' thresholds; more would hardly move one at 1 %
    resubmissions: int = 10  # how often an image is handed to a randomised defence; the attacker needs one mistake
    false_positive_rates: list[float] = field(default_factory=lambda: [0.01, 0.05])  # detectors are read at these
    fid: bool = False  # also the FID of attacked and restored images; needs the extra gandefense[fid], and many images
    images: int = 4  # test images shown in the report, per restorer and attack (at most one batch)
    cost_batch_size: int = 100  # images per batch when speed is measured
    # GB that the attacked images of one attack on the classifier alone may take in the data root, where the next evaluation
    # finds them; 0 keeps none. See docs/threats-and-checks.md for what is always made anew
    keep_attacked: float = 0.25


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
        if not isinstance(config, str | Path):
            raise UserError(f"config must be a path or an EvaluateConfig, got {type(config).__name__}; give fields as keywords")
        config = configuration.load(EvaluateConfig, config)
    values = configuration.to_dict(config)
    changes = {key: _plain(value) for key, value in settings.items()}
    if isinstance(changes.get("data"), str):
        changes["data"] = {"name": changes["data"]}
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
    datasets.describe(config.data)
    for name, low in (
        ("batch_size", 1),
        ("cost_batch_size", 1),
        ("images", 0),
        ("resubmissions", 1),
        ("validation_images", 1),
        ("keep_attacked", 0),
    ):
        if getattr(config, name) < low:
            raise UserError(f"{name} must be at least {low}, got {getattr(config, name)}")
    if config.data.limit is not None and config.data.limit < 1:
        raise UserError(f"data.limit must be at least 1, got {config.data.limit}")
    for rate in config.false_positive_rates:
        if not 0 < rate < 1:
            raise UserError(f"false_positive_rates lie between 0 and 1, got {rate}")
    _check_attacks("gray_box", config.gray_box)
    _check_attacks("black_box.transfer", config.black_box.transfer)
    _check_attacks("black_box.queries", config.black_box.queries)
    _check_attacks("white_box.attacks", config.white_box.attacks)
    _check_attacks("curves.attack", [config.curves.attack])
    for entry in config.black_box.queries:
        if family(entry.attack) != "query":
            raise UserError(f"black_box.queries: {entry.attack} needs gradients; known: square, hopskipjump")
    for entry in config.white_box.attacks:
        if entry.spec().norm == "noise":
            raise UserError(f"white_box.attacks: {entry.attack} knows nothing of a defence; list it under gray_box")
        _check_views("white_box.attacks: views", entry.views or [])
    _check_views("white_box.views", config.white_box.views)
    _check_curves(config.curves)
    for what, names in (
        ("restorers", config.restorers),
        ("white_box.views", config.white_box.views),
        ("black_box.sources", config.black_box.sources),
        ("false_positive_rates", config.false_positive_rates),
    ):
        if len(set(names)) < len(names):
            raise UserError(f"{what} lists something twice: {', '.join(map(str, names))}")
    if not config.restorers:
        raise UserError("restorers is empty; name at least one, or none (the classifier alone): restorers=[none]")
    if config.fid:
        fid.check_installed()
    _check_networks(config)


def _check_views(where: str, views: list[str]) -> None:
    for view in views:
        if view == "oblivious" or view not in VIEWS:
            known = ", ".join(name for name in VIEWS if name != "oblivious")
            raise UserError(f"{where}: {view!r} is no view of a defence; known: {known}")


def _check_curves(curves: CurvesConfig) -> None:
    _check_views("curves.view", [curves.view])
    if family(curves.attack.attack) != "gradient":
        raise UserError(f"curves.attack: {curves.attack.attack} follows no gradient; take pgd or another gradient attack")
    if curves.eps and curves.attack.spec().norm != "linf":
        raise UserError(
            f"curves.eps: budgets of every pixel, {curves.attack.attack} has an L2 budget; take pgd, or curves.eps=[]"
        )
    if curves.images < 1:
        raise UserError(f"curves.images must be at least 1, got {curves.images}")
    for name, low, high in (("eps", 0, 1), ("steps", 1, None), ("eot", 1, None)):
        values = getattr(curves, name)
        if any(value < low or (high is not None and value > high) for value in values):
            raise UserError(f"curves.{name}: values must be {f'in [{low}, {high}]' if high else f'at least {low}'}, got {values}")
        if name == "steps" and values and curves.attack.attack in ONE_STEP:
            raise UserError(f"curves.steps: {curves.attack.attack} takes one step; take pgd")
        for value in values:
            try:
                check_spec(replace(curves.attack.spec(), **{name: value}))
            except UserError as error:
                raise UserError(f"curves.{name}: {error}") from None
        if len(set(values)) < len(values):
            raise UserError(f"curves.{name} lists a value twice: {values}")


def _check_attacks(where: str, entries: list[AttackEntry]) -> None:
    specs = [entry.spec() for entry in entries]
    for spec in specs:
        try:
            check_spec(spec)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    for entry in entries:
        if entry.spec().norm == "l2" and entry.eps == AttackEntry.eps:
            raise UserError(f"{where}: {entry.attack}: give eps, the L2 length of the whole perturbation, such as 0.5")
        if entry.loss == "joint" and where != "white_box.attacks":
            raise UserError(f"{where}: loss joint aims at a defence's detector; list it under white_box.attacks")
        if entry.survivors and where in ("black_box.transfer", "curves.attack"):
            raise UserError(f"{where}: survivors is for gray_box, black_box.queries and white_box.attacks")
        if entry.views is not None and where != "white_box.attacks":
            raise UserError(f"{where}: views are for white_box.attacks")
    if len({(spec, tuple(entry.views or ())) for spec, entry in zip(specs, entries, strict=True)}) < len(specs):
        raise UserError(f"{where} lists an attack twice with the same settings")


def _check_networks(config: EvaluateConfig) -> None:
    wanted = [("classifier", config.classifier), *(("restorer", name) for name in config.restorers if name != NO_RESTORER)]
    wanted += [("classifier", name) for name in config.black_box.sources]
    if config.classifier in config.black_box.sources:
        raise UserError(f"black_box.sources: {config.classifier} is the defended classifier itself; name another one")
    for role, name in wanted:
        description = zoo.describe(name)
        kind = description.get("kind")
        if kind == "own" or (kind == zoo.READY and role == "restorer"):  # the user's own part, or one for every data set
            continue
        kinds = ("classifier",) if role == "classifier" else tuple(zoo.RESTORERS)
        if kind not in kinds:
            raise UserError(f"{name} is a {kind!r}, not a {role} ({', '.join(kinds)})")
        wanted_data = datasets.describe(config.data).name
        if description.get("data") != wanted_data:
            raise UserError(f"{role} {name} is for {description.get('data')!r}, but data.name is {wanted_data!r}")
        recipe = description.get("config")
        trained_on = recipe.get("data") if isinstance(recipe, dict) else None
        split = trained_on.get("split", "official") if isinstance(trained_on, dict) else config.data.split
        if split != config.data.split:
            raise UserError(
                f"{role} {name} was trained with data.split={split}; under data.split={config.data.split} some of its training "
                "images would be test images"
            )
