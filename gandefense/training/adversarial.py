"""Adversarial training of a classifier: which attacked images a batch is joined by, and how the two losses are weighed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gandefense.attacks.random_step import random_step
from gandefense.attacks.suite import AttackSpec, attack, frozen, predict
from gandefense.data.batches import batches
from gandefense.data.datasets import Images
from gandefense.errors import UserError

METHODS = ("none", "fgsm")
CONTROL = AttackSpec("pgd", steps=10)  # what validation images are attacked with; its eps is the training's


@dataclass
class AdversarialConfig:
    """How a classifier is trained against attacks."""

    method: str = "none"  # none, or fgsm: one step from a random start, made anew for every batch
    eps: float = 8 / 255  # budget in pixel units
    clean_weight: float = 0.5  # α in α · J(clean) + (1 − α) · J(attacked) (Goodfellow et al. 2015); 0: attacked images alone
    validation_images: int = 500  # attacked with PGD-10 after every epoch, to see whether the one step still teaches


def check(options: AdversarialConfig) -> None:
    """Raise UserError for an unknown method or a value out of range."""
    if options.method not in METHODS:
        raise UserError(f"unknown train.adversarial.method {options.method!r}; known: {', '.join(METHODS)}")
    if not 0 < options.eps <= 1:
        raise UserError(f"train.adversarial.eps is in pixel units of [0, 1] images (write 8/255), got {options.eps}")
    if options.validation_images < 1:
        raise UserError(f"train.adversarial.validation_images must be at least 1, got {options.validation_images}")
    if not 0 <= options.clean_weight <= 1:
        raise UserError(f"train.adversarial.clean_weight must lie in [0, 1], got {options.clean_weight}")


def attacked_batch(network: nn.Module, images: Tensor, labels: Tensor, options: AdversarialConfig) -> Tensor:
    """Images (B, C, H, W) in [0, 1] attacked against the network as it stands, in eval mode."""
    with frozen(network):
        return random_step(network, images, labels, options.eps)


def robust_accuracy(network: nn.Module, data: Images, options: AdversarialConfig, device: torch.device) -> float:
    """Fraction of the first validation images that stay right under PGD-10 of the training's eps."""
    few = Images(*(part[: options.validation_images] for part in data))
    spec = AttackSpec(CONTROL.attack, eps=options.eps, steps=CONTROL.steps)
    right = 0
    with frozen(network):  # in eval mode for the prediction, too: batch norm must not learn from validation images
        for images, labels in batches(few, 250, device):
            right += (predict(network, attack(network, images, labels, spec).images) == labels).sum().item()
    return right / len(few.labels)
