"""Attacks by name; the only file that imports an attack library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import foolbox
import torch
from foolbox import attacks as fa
from foolbox.attacks.gradient_descent_base import normalize_lp_norms
from torch import Tensor, nn

from gandefense.attacks.noise import NOISES
from gandefense.data.batches import check_images
from gandefense.errors import UserError

EPS_TOLERANCE = 1e-6  # rounding that ‖δ‖ may exceed eps by


@dataclass(frozen=True)
class AttackSpec:
    """One attack, fully described.

    Attributes:
        attack: a key of ATTACKS or NOISES.
        eps: budget in pixel units of [0, 1] images (L-infinity), or the noise level.
        steps: gradient steps of the iterative attacks.
        step_size: of one step, in pixel units; None takes the attack's usual one (see ATTACKS).
        restarts: random starts; an image counts as broken when one of them breaks it.
        labels: what the attacker pushes away from: "true" labels, the classifier's "predicted" ones, or towards
            "random_target" classes. The last two are the controls for label leaking.
    """

    attack: str
    eps: float = 8 / 255
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    labels: str = "true"

    @property
    def norm(self) -> str:
        """The norm that `eps` bounds; noise has none."""
        return "noise" if self.attack in NOISES else "linf"

    def step(self) -> float | None:
        """The size of one step in pixel units; None for noise."""
        if self.attack not in STEP_SHARES:
            return None
        return self.step_size or STEP_SHARES[self.attack] * self.eps

    def title(self) -> str:
        """A short name for tables, such as "pgd-20"."""
        iterative = self.attack in MANY_STEPS
        leak = "" if self.labels == "true" else f" ({self.labels})"
        return f"{self.attack}{f'-{self.steps}' if iterative else ''}{leak}"


class Attacked(NamedTuple):
    """What an attack returns.

    Attributes:
        images: (B, C, H, W) in [0, 1].
        success: (B,) bool, the attacked network's prediction on `images` is not the label.
        changed: (B,) bool, some pixel differs from the clean image.
    """

    images: Tensor
    success: Tensor
    changed: Tensor


class MomentumIterative(fa.LinfMomentumIterativeFastGradientMethod):
    """MIM of Dong et al. (2018), eq. 6: the momentum gathers L1-normalised gradients.

    foolbox's own class for L-infinity gathers signs; this overrides that one hook.
    """

    def normalize(self, gradients: Any, *, x: Any, bounds: Any) -> Any:
        return normalize_lp_norms(gradients, p=1)


ATTACKS: dict[str, Callable[[AttackSpec], Any]] = {
    # one step of size eps (Goodfellow et al. 2015)
    "fgsm": lambda s: fa.LinfBasicIterativeAttack(steps=1, abs_stepsize=s.step(), random_start=False),
    # uniform random start, one step of 1.25 eps, projected (Wong et al. 2020)
    "ffgsm": lambda s: fa.LinfPGD(steps=1, abs_stepsize=s.step(), random_start=True),
    # no random start, eps / 10 a step (Kurakin et al. 2017; the step such that ten of them reach the budget's edge)
    "bim": lambda s: fa.LinfBasicIterativeAttack(steps=s.steps, abs_stepsize=s.step(), random_start=False),
    # random start, eps / 4 a step (Madry et al. 2018: 2/255 at 8/255)
    "pgd": lambda s: fa.LinfPGD(steps=s.steps, abs_stepsize=s.step(), random_start=True),
    # momentum 1, eps / 10 a step (Dong et al. 2018)
    "mim": lambda s: MomentumIterative(steps=s.steps, abs_stepsize=s.step(), momentum=1.0),
}
ONE_STEP, MANY_STEPS = ("fgsm", "ffgsm"), ("bim", "pgd", "mim")
STEP_SHARES = {"fgsm": 1.0, "ffgsm": 1.25, "bim": 0.1, "pgd": 0.25, "mim": 0.1}  # of eps, where no step size is given


def check_spec(spec: AttackSpec) -> None:
    """Raise UserError for an unknown attack or a value out of range."""
    if spec.attack not in ATTACKS and spec.attack not in NOISES:
        raise UserError(f"unknown attack {spec.attack!r}; known: {', '.join([*ATTACKS, *NOISES])}")
    if not 0 <= spec.eps <= 1:
        raise UserError(f"{spec.attack}: eps is in pixel units of [0, 1] images (write 8/255), got {spec.eps}")
    if spec.step_size is not None and spec.step_size <= 0:
        raise UserError(f"{spec.attack}: step_size must be positive, got {spec.step_size}")
    if spec.steps < 1 or spec.restarts < 1:
        raise UserError(f"{spec.attack}: steps and restarts must be at least 1")
    if spec.labels not in ("true", "predicted", "random_target"):
        raise UserError(f"{spec.attack}: labels must be true, predicted or random_target, got {spec.labels!r}")


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Hold a network in eval mode with frozen parameters, and put every module and parameter back as it was."""
    modes = {module: module.training for module in network.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.eval()
    network.requires_grad_(False)
    try:
        yield network
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes (B,) of images (B, C, H, W) in [0, 1], without gradients."""
    with torch.no_grad():
        return network(images).argmax(1)


def attack(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, *, seed: int = 0) -> Attacked:
    """Attack a network: parameters frozen and eval mode during the attack, both restored after it.

    Args:
        network: images (B, C, H, W) in [0, 1] → logits (B, K); any module, a view of a defence included.
        images: (B, C, H, W) in [0, 1], float32.
        labels: (B,) int64, true classes.
        spec: the attack.
        seed: of its random parts; the global random state is left untouched.

    Raises:
        UserError: images out of range or not finite, an unknown attack or value.
    """
    check_spec(spec)
    check_images(images)
    images = images.clamp(0, 1)  # rounding that check_images lets pass
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # manual_seed reseeds them all
    with torch.random.fork_rng(devices=devices), frozen(network):
        torch.manual_seed(seed)
        if spec.attack in NOISES:
            attacked = NOISES[spec.attack](images, spec.eps)
        elif spec.eps == 0:
            attacked = images.clone()
        else:
            attacked = _gradient_attack(network, images, labels, spec)
        success = predict(network, attacked) != labels
    return Attacked(attacked, success, (attacked != images).flatten(1).any(1))


def _gradient_attack(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec) -> Tensor:
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=images.device)
    goal: Any = labels
    if spec.labels == "predicted":
        goal = predict(network, images)
    elif spec.labels == "random_target":
        classes = network(images[:1]).shape[1]
        shift = torch.randint(1, classes, labels.shape, device=labels.device)
        goal = foolbox.TargetedMisclassification((labels + shift) % classes)
    method = ATTACKS[spec.attack](spec)
    best = images
    for restart in range(spec.restarts):
        with torch.enable_grad():
            _, clipped, _ = method(model, images, goal, epsilons=spec.eps)
        found = clipped.detach()
        # A later restart replaces an earlier one only on images that are not broken yet.
        best = found if restart == 0 else torch.where((predict(network, best) == labels).view(-1, 1, 1, 1), found, best)
    delta = (best - images).flatten(1).abs().amax(1)
    if delta.numel() and delta.max() > spec.eps + EPS_TOLERANCE:
        raise AssertionError(f"{spec.attack} exceeded its budget: {delta.max().item()} > {spec.eps}")
    return best
