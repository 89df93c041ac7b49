"""What joint training is asked for, and what it starts from: its config, checked, and the two networks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from gandefense import zoo
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.gan import GANNetworks, GANRestorer
from gandefense.restorers.trn import TRNRestorer, TwoStreamRestorationNetwork
from gandefense.training import adversarial
from gandefense.training.adversarial import AdversarialConfig
from gandefense.training.gan_config import GANNetworkConfig
from gandefense.training.joint_pass import PassConfig, RestoringConfig
from gandefense.training.run import check_settings
from gandefense.training.state import require
from gandefense.training.trn import TRNNetworkConfig

FAMILIES = ("trn", "gan")
KEEP = ("best", "last")


@dataclass
class ViewShares:
    """How often the attacker of a step differentiates each view of the pipeline, relative to each other; see VIEWS."""

    exact: float = 1.0  # all there is: of TRN a double backward pass through the gradient maps, the dearest
    detached: float = 2.0  # gradient maps, or the detector's level, held constant: what standard restorers fall to
    straight_through: float = 1.0  # the identity for the restorer's gradient
    smooth: float = 0.0  # as exact, with softplus for ReLUs within maps, and a soft decision
    oblivious: float = 0.0  # the classifier alone: gray_box


@dataclass
class JointTrainConfig:
    """Attack, optimisers and averages."""

    steps: int = 6000  # batches; every one of free replays counts
    batch_size: int = 128  # clean images a step, each with its attacked one
    restorer_rate: float = 5e-4  # peak, Adam
    classifier_rate: float = 0.02  # peak, SGD with Nesterov momentum 0.9
    weight_decay: float = 5e-4  # of the classifier's weights, not of its biases and norms
    warmup: int = 100  # steps in which both rates rise
    label_smoothing: float = 0.1  # share of the label that is spread over all classes
    ema_decay: float = 0.998  # of the weights that are kept in the end
    gradient_clip: float = 5.0  # largest norm of the restorer's gradient
    adversarial: AdversarialConfig = field(
        default_factory=lambda: AdversarialConfig(method="trades", steps=3, validation_images=256)
    )
    views: ViewShares = field(default_factory=ViewShares)
    # above 1, "free" training (Shafahi et al. 2019) instead of method's attack: so many steps on a batch, whose one
    # backward pass serves weights and perturbation; the views do not count then
    free_replays: int = 1
    alignment: float = 0.0  # weight of GradAlign, for the single steps of method=fgsm; 0: off


@dataclass
class JointConfig:
    """tools/train_joint.py"""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    family: str = "trn"  # of the restorer: trn or gan
    classifier: str = "cifar10/classifier-at"  # where the classifier starts: zoo name, run folder or safetensors file
    restorer: str | None = None  # where the restorer starts, likewise; None: a fresh one, which begins as the identity
    trn: TRNNetworkConfig = field(default_factory=TRNNetworkConfig)  # of a fresh TRN; a started one keeps its own
    gan: GANNetworkConfig = field(default_factory=GANNetworkConfig)  # of a fresh GAN (it has no discriminator here)
    # Of a fresh GAN's loop, in units of the attack logit; it stays what it is. -100, below every logit: each image is restored,
    # and no attacker gains by slipping under it
    threshold: float = 0.0
    passing: PassConfig = field(default_factory=PassConfig)
    restoring: RestoringConfig = field(default_factory=RestoringConfig)
    train: JointTrainConfig = field(default_factory=JointTrainConfig)
    # Of the averaged weights, those of the best validation under attack, or the last: see `train`
    keep: str = "best"
    false_positive_rate: float = 0.05  # of TRN's detection threshold, on validation images; GAN's is trained, not chosen
    resume: str | None = None  # a run folder to go on with; on the command line, alone


def check(config: JointConfig) -> None:
    """Raise UserError for a value out of range, before anything is loaded or made."""
    options = config.train
    check_settings(config.run)
    counts = {"train.steps": options.steps, "train.batch_size": options.batch_size, "train.free_replays": options.free_replays}
    positive = {"train.restorer_rate": options.restorer_rate, "train.classifier_rate": options.classifier_rate}
    require(
        counts={**counts, "passing.rounds": config.passing.rounds},
        positive={**positive, "train.gradient_clip": options.gradient_clip, "passing.softness": config.passing.softness},
        fractions={"false_positive_rate": config.false_positive_rate},
    )
    for name, value, known in (("family", config.family, FAMILIES), ("keep", config.keep, KEEP)):
        if value not in known:
            raise UserError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    if options.adversarial.method == "none":
        raise UserError("train.adversarial.method: joint training needs an attack; known: fgsm, pgd, trades, alp")
    adversarial.check(options.adversarial)
    weights = {f"restoring.{name}": value for name, value in asdict(config.restoring).items()}
    shares = {f"train.views.{name}": value for name, value in asdict(options.views).items()}
    others = {"train.alignment": options.alignment, "train.weight_decay": options.weight_decay}
    require(shares={"train.label_smoothing": options.label_smoothing}, not_negative={**weights, **shares, **others})
    if not abs(config.threshold) < float("inf"):
        raise UserError(f"threshold must be a finite number, got {config.threshold}")
    if not sum(shares.values()) > 0:
        raise UserError("train.views: at least one view needs a share above 0")


def view_of(step: int, shares: ViewShares, seed: int) -> str:
    """The view that the attacker of a step differentiates: drawn by the shares, from seed and step alone."""
    names, weights = zip(*asdict(shares).items(), strict=True)
    generator = torch.Generator().manual_seed((seed * 1_000_033 + step) % 2**63)
    return names[torch.multinomial(torch.tensor(weights), 1, generator=generator).item()]


def network_of(defended: DefendedClassifier) -> nn.Module:
    """The restorer's own networks, without the classifier that TRN holds too."""
    restorer = defended.restorer
    return restorer.network if isinstance(restorer, TRNRestorer) else restorer.networks


def begun(config: JointConfig, data: datasets.Dataset) -> tuple[DefendedClassifier, dict[str, Any], str]:
    """Restorer and classifier as they start, the restorer's description, and the classifier's architecture.

    Raises:
        UserError: names that stand for something else, another data set, a classifier that cannot be built again, a restorer
            whose threshold is no number or which flags by several signals.
    """
    architecture = zoo.describe(config.classifier).get("architecture")
    classifier = zoo.load_classifier(config.classifier)
    if architecture is None:
        raise UserError(f"classifier={config.classifier}: it is written again at the end, so it must be a trained one of ours")
    zoo.try_out(config.classifier, classifier, data)
    if config.restorer is None:
        shape: dict[str, Any] = {"channels": data.channels}
        if config.family == "trn":
            top_k = config.trn.top_k
            if top_k is not None and not 1 <= top_k <= len(data.classes):
                raise UserError(f"trn.top_k lies between 1 and the {len(data.classes)} classes, got {top_k}")
            shape |= {"labels": top_k or len(data.classes), "width": config.trn.width}
            shape |= {"blocks": config.trn.blocks, "halvings": config.trn.halvings, "streams": config.trn.streams}
            restorer = TRNRestorer(TwoStreamRestorationNetwork(**shape), classifier, top_k=top_k)
            return DefendedClassifier(restorer, classifier), {"network": shape, "top_k": top_k}, architecture
        shape |= {"size": data.size, "ismn": config.gan.ismn, "width": config.gan.width, "norm": config.gan.norm}
        restorer = GANRestorer(GANNetworks(**shape), threshold=config.threshold, rounds=config.passing.rounds)
        return DefendedClassifier(restorer, classifier), {"network": shape}, architecture
    found = zoo.describe(config.restorer)
    if (found.get("kind"), found.get("data")) != (config.family, data.name):
        is_for, wanted = f"{found.get('kind')!r} for {found.get('data')!r}", f"{config.family!r} for {data.name!r}"
        raise UserError(f"restorer={config.restorer} is a {is_for}, not a {wanted}")
    restorer = zoo.load_restorer(config.restorer, classifier)
    if isinstance(restorer, GANRestorer):
        if restorer.detector is not None:
            raise UserError(
                f"restorer={config.restorer} flags by several signals, calibrated before its own classifier; joint training "
                "takes a restorer whose perturbation classifier decides alone"
            )
        if not abs(restorer.threshold) < float("inf"):
            raise UserError(
                f"restorer={config.restorer}: its loop's threshold is {restorer.threshold}, which says nothing to learn"
            )
        restorer.rounds = config.passing.rounds
    kept = {name: found[name] for name in ("network", "top_k") if name in found}
    return DefendedClassifier(restorer, classifier), kept, architecture
