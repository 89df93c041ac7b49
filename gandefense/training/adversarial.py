"""Adversarial training of a classifier: which attacked images a batch is joined by, and how the losses are weighed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.attacks.random_step import random_step
from gandefense.attacks.spec import MANY_STEPS, ONE_STEP
from gandefense.attacks.suite import AttackSpec, attack, frozen, predict
from gandefense.data.batches import at_once, batches
from gandefense.data.datasets import Images
from gandefense.errors import UserError
from gandefense.training.distillation import distillation as divergence  # KL(second ‖ first), mean over the batch
from gandefense.training.state import require

# none; fgsm: one step from a random start; pgd: several (Madry et al. 2018); trades: clean loss + beta · KL of the pair (Zhang
# et al. 2019); alp: pgd, and the pair's logits drawn together (Kannan et al. 2018); suite: as pgd, with an attack of the
# evaluator's own. Attacked anew for every batch.
SUITE = (*ONE_STEP, *MANY_STEPS)  # attacks of "suite"
METHODS = ("none", "fgsm", "pgd", "trades", "alp", "suite")
CONTROL = AttackSpec("pgd", steps=10)  # what validation images are attacked with; for its eps see `control`
TRADES_START = 0.001  # standard deviation of the start in pixel units: the KL has no gradient at the clean image itself


@dataclass
class WeightPerturbationConfig:
    """Adversarial weight perturbation (Wu et al. 2020), on top of any method but none."""

    gamma: float = 0.0  # size relative to each layer's norm; 0: off; the paper takes 0.01 with pgd, 0.005 with trades
    warmup: float = 0.0  # epochs before it sets in


@dataclass
class AdversarialConfig:
    """How a classifier is trained against attacks."""

    # none; fgsm: one step from a random start; pgd: several; trades: clean loss and KL of the pair; alp: pgd, and the pair's
    # logits drawn together; suite: as pgd, with an attack of the evaluator's own
    method: str = "none"
    attack: str = "pgd"  # of suite: fgsm, ffgsm, bim, pgd or mim, exactly as evaluations attack
    eps: float = 8 / 255  # budget in pixel units
    steps: int = 10  # of pgd, trades, alp, and suite's bim, pgd and mim; fgsm has one
    step_size: float | None = None  # in pixel units; None: see `step_size`; with suite the attack's usual one
    clean_weight: float = 0.5  # of fgsm, pgd, alp, suite: α in α · J(clean) + (1 − α) · J(attacked); 0: attacked images alone
    beta: float = 6.0  # of trades, 1/λ in the paper; 6 is its choice
    pairing_weight: float = 0.5  # of alp, times the mean squared difference of the pair's logits
    awp: WeightPerturbationConfig = field(default_factory=WeightPerturbationConfig)
    validation_images: int = 500  # attacked with PGD-10 at every validation, to see whether the few steps still teach
    validation_eps: float | None = None  # budget of that PGD-10; None: `eps`. Runs of different `eps` compare only at one budget


def check(options: AdversarialConfig) -> None:
    """Raise UserError for an unknown method or a value out of range."""
    if options.method not in METHODS:
        raise UserError(f"unknown train.adversarial.method {options.method!r}; known: {', '.join(METHODS)}")
    if options.attack not in SUITE:
        raise UserError(f"train.adversarial.attack must be one of {', '.join(SUITE)}, got {options.attack!r}")
    if not 0 < options.eps <= 1:
        raise UserError(f"train.adversarial.eps is in pixel units of [0, 1] images (write 8/255), got {options.eps}")
    if options.validation_eps is not None and not 0 < options.validation_eps <= 1:
        raise UserError(f"train.adversarial.validation_eps is in pixel units (write 8/255), got {options.validation_eps}")
    require(counts={f"train.adversarial.{name}": getattr(options, name) for name in ("steps", "validation_images")})
    require(positive={"train.adversarial.step_size": step_size(options)})
    weights = {"beta": options.beta, "pairing_weight": options.pairing_weight}
    weights |= {"awp.gamma": options.awp.gamma, "awp.warmup": options.awp.warmup}
    require(
        shares={"train.adversarial.clean_weight": options.clean_weight},
        not_negative={f"train.adversarial.{name}": value for name, value in weights.items()},
    )
    if options.awp.gamma > 0 and options.method == "none":
        raise UserError("train.adversarial.awp perturbs the weights against attacked images; choose a train.adversarial.method")


def step_size(options: AdversarialConfig) -> float:
    """Size of one step in pixel units: the config's, else 2.5 · eps / steps (Madry et al. 2018), at most 1.25 · eps.

    Longer steps are those with which training against a single step breaks down (Wong et al. 2020), hence the limit.
    """
    return options.step_size if options.step_size is not None else options.eps * min(2.5 / options.steps, 1.25)


class _InFloat32(nn.Module):
    """Logits in float32, whatever autocast made of them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).float()


def _ascend(
    network: nn.Module, images: Tensor, start: Tensor, objective: Callable[[Tensor], Tensor], options: AdversarialConfig
) -> Tensor:
    """Signed gradient steps that raise objective(logits), within eps of the images and [0, 1]; all (B, C, H, W)."""
    low, high = (images - options.eps).clamp(min=0), (images + options.eps).clamp(max=1)
    attacked, size = start.clamp(low, high), step_size(options)
    for _ in range(options.steps):
        attacked.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(network(attacked).float()), attacked)
        attacked = (attacked.detach() + size * gradient.sign()).clamp(low, high)
    return attacked


def attacked_batch(network: nn.Module, images: Tensor, labels: Tensor, options: AdversarialConfig) -> Tensor:
    """Images (B, C, H, W) in [0, 1] attacked against the network as it stands, in eval mode; unchanged under "none".

    "trades" maximises the divergence from the clean images' predictions, and needs no labels; the others maximise the
    cross-entropy.
    """
    if options.method == "none":
        return images
    with frozen(network):
        if options.method == "fgsm":
            return random_step(network, images, labels, options.eps)
        if options.method == "suite":
            spec = AttackSpec(options.attack, eps=options.eps, steps=options.steps, step_size=options.step_size)
            seed = int(torch.randint(2**31, ()))  # another random start for every batch
            return attack(_InFloat32(network), images, labels, spec, seed=seed).images
        if options.method == "trades":
            with torch.no_grad():
                clean = network(images).float()
            start = images + TRADES_START * torch.randn_like(images)
            return _ascend(network, images, start, lambda logits: divergence(logits, clean), options)
        start = images + options.eps * (2 * torch.rand_like(images) - 1)
        return _ascend(network, images, start, lambda logits: F.cross_entropy(logits, labels, reduction="sum"), options)


def loss(
    network: nn.Module, images: Tensor, attacked: Tensor, labels: Tensor, options: AdversarialConfig, *, smoothing: float = 0.0
) -> Tensor:
    """The scalar that a training step minimises.

    none: J(clean). fgsm, pgd, suite: α J(clean) + (1 − α) J(attacked) (Goodfellow et al. 2015). trades: J(clean) + β
    KL(p(clean) ‖ p(attacked)) (Zhang et al. 2019), where gradients reach both sides. alp: as pgd, plus the pairing
    term (Kannan et al. 2018).

    Args:
        network: images (B, C, H, W) in [0, 1] → logits (B, K), in training mode; clean and attacked images pass it
            apart from each other.
        images: the clean batch.
        attacked: what `attacked_batch` gave for it.
        labels: (B,) int64, or soft labels (B, K).
        options: method and weights.
        smoothing: label smoothing of every J.
    """

    clean = logits = None
    if options.method == "trades":
        clean = network(images).float()
        logits = network(attacked).float() if options.beta != 0 else clean
    elif options.method != "none":
        logits = network(attacked).float()
    if clean is None and (options.method in ("none", "alp") or options.clean_weight > 0):
        clean = network(images).float()
    return weighed(clean, logits, labels, options, smoothing=smoothing)


def weighed(
    clean: Tensor | None, attacked: Tensor | None, labels: Tensor, options: AdversarialConfig, *, smoothing: float = 0.0
) -> Tensor:
    """`loss` from logits (B, K) on clean and on attacked images; None where the method does not look at them."""

    def judge(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    if options.method == "none":
        return judge(clean)
    if options.method == "trades":
        return judge(clean) + options.beta * divergence(attacked, clean) if options.beta != 0 else judge(clean)
    total = judge(attacked)
    if options.clean_weight > 0 or options.method == "alp":
        total = options.clean_weight * judge(clean) + (1 - options.clean_weight) * total
        if options.method == "alp":
            total = total + options.pairing_weight * F.mse_loss(attacked, clean)
    return total


def control(options: AdversarialConfig) -> AttackSpec:
    """What validation images are attacked with: PGD-10 at `validation_eps`, else at the training's budget."""
    return replace(CONTROL, eps=options.eps if options.validation_eps is None else options.validation_eps)


def robust_accuracy(
    network: nn.Module, data: Images, options: AdversarialConfig, device: torch.device, batch_size: int = 250
) -> float:
    """Fraction of the first validation images that stay right under PGD-10; for its budget see `control`."""
    few = data.rows(slice(options.validation_images))
    spec = control(options)
    right = 0
    with frozen(network):  # in eval mode for the prediction, too: batch norm must not learn from validation images
        for images, labels in batches(few, at_once(few.images.shape[-1], batch_size), device):
            right += (predict(network, attack(network, images, labels, spec).images) == labels).sum().item()
    return right / len(few.labels)
