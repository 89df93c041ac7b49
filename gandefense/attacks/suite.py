"""Attacks by name. Only the modules of this package import an attack library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gandefense.attacks import autoattack, hopskipjump, minimal, stepwise, universal
from gandefense.attacks.noise import NOISES
from gandefense.attacks.spec import (
    MANY_STEPS,
    NAMES,
    ONE_STEP,
    UNIVERSAL,
    AttackSpec,
    check_classes,
    check_spec,
    family,
    standard_suite,
)
from gandefense.attacks.victim import frozen, is_broken, predict
from gandefense.data.batches import check_images

__all__ = [
    "ATTACKS",
    "MANY_STEPS",
    "NAMES",
    "ONE_STEP",
    "UNIVERSAL",
    "AttackSpec",
    "Attacked",
    "attack",
    "check_classes",
    "check_images",
    "check_spec",
    "family",
    "frozen",
    "predict",
    "standard_suite",
    "universal_perturbation",
]

EPS_TOLERANCE = 1e-6  # rounding that ‖δ‖ may exceed eps by, absolute and relative


class Attacked(NamedTuple):
    """What an attack returns.

    Attributes:
        images: (B, C, H, W) in [0, 1].
        success: (B,) bool, the attacked network's prediction on `images` is not the label; under a joint loss, and its
            detector's column is not positive.
        changed: (B,) bool, some pixel differs from the clean image.
    """

    images: Tensor
    success: Tensor
    changed: Tensor


# Every attack takes the network, images, true labels, the spec and the seed; those without a seed of their own draw from
# torch's generator, which `attack` has seeded.
ATTACKS: dict[str, Callable[[nn.Module, Tensor, Tensor, AttackSpec, int], Tensor]] = {
    **dict.fromkeys(stepwise.METHODS, lambda network, images, labels, spec, seed: stepwise.run(network, images, labels, spec)),
    **dict.fromkeys(autoattack.METHODS, autoattack.run),
    "autoattack": autoattack.standard,
    **dict.fromkeys(minimal.METHODS, lambda network, images, labels, spec, seed: minimal.run(network, images, labels, spec)),
    "hopskipjump": lambda network, images, labels, spec, seed: hopskipjump.run(network, images, labels, spec),
    UNIVERSAL: universal.run,
}


@contextmanager
def _attacking(network: nn.Module, seed: int) -> Iterator[None]:
    """The network frozen and torch's generators seeded; both are put back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # manual_seed reseeds them all
    with torch.random.fork_rng(devices=devices), frozen(network):
        torch.manual_seed(seed)
        yield


def attack(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    spec: AttackSpec,
    *,
    seed: int = 0,
    perturbation: Tensor | None = None,
) -> Attacked:
    """Attack a network: parameters frozen and eval mode during the attack, both restored after it.

    Args:
        network: images (B, C, H, W) in [0, 1] → logits (B, K); any module, a view of a defence included. Under
            loss="joint": (B, K + 1), the last column a detector's score above its threshold.
        images: (B, C, H, W) in [0, 1], float32.
        labels: (B,) int64, true classes.
        spec: the attack.
        seed: of its random parts; the global random state is left untouched.
        perturbation: of "universal" alone, (C, H, W), made earlier by `universal_perturbation`; None makes one from these
            very images.

    Raises:
        UserError: images out of range or not finite, an unknown attack or value, too few classes for the attack.
    """
    check_spec(spec)
    check_images(images)
    images = images.clamp(0, 1)  # rounding that check_images lets pass
    with _attacking(network, seed):
        if spec.attack in NOISES:
            attacked = NOISES[spec.attack](images, spec.eps)
        elif spec.eps == 0 or not len(images):
            attacked = images.clone()
        else:
            if spec.attack == UNIVERSAL and perturbation is not None:
                attacked = universal.applied(images, perturbation)
            else:
                attacked = ATTACKS[spec.attack](network, images, labels, spec, seed).detach()
            change = (attacked - images).flatten(1)
            size = change.norm(dim=1).max() if spec.norm == "l2" else change.abs().max()
            if not size <= spec.eps * (1 + EPS_TOLERANCE) + EPS_TOLERANCE:  # a NaN is no budget kept either
                raise AssertionError(f"{spec.attack} exceeded its budget: {size.item()} > {spec.eps}")
        success = is_broken(network, attacked, labels, spec.loss)
    return Attacked(attacked, success, (attacked != images).flatten(1).any(1))


def universal_perturbation(
    network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, *, seed: int = 0, device: torch.device | None = None
) -> Tensor:
    """One perturbation for all images of a kind, (C, H, W) in ±eps, made from some of them; see `universal.fit`.

    The network is frozen and in eval mode meanwhile, and the global random state left untouched.

    Raises:
        UserError: see `check_spec`.
    """
    check_spec(spec)
    with _attacking(network, seed):
        return universal.fit(network, images, labels, spec, seed, device=device)
