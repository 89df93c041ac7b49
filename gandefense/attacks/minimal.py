"""Attacks that look for the smallest perturbation (foolbox), cut to the budget: DeepFool and Carlini and Wagner's.

They measure how near the decision boundary is; within a given budget PGD and APGD find more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import foolbox
import torch
from foolbox import attacks as fa
from torch import Tensor, nn

from gandefense.attacks.spec import AttackSpec
from gandefense.attacks.victim import away_from, ever_right

METHODS: dict[str, Callable[[AttackSpec], Any]] = {
    # the smallest L-infinity step over the linearised boundary, again and again (Moosavi-Dezfooli et al. 2016)
    "deepfool": lambda s: fa.LinfDeepFoolAttack(steps=s.steps),
    # the smallest L2 perturbation (Carlini and Wagner 2017), nine weights of its distance, `steps` Adam steps with each
    "cw": lambda s: fa.L2CarliniWagnerAttack(steps=s.steps),
}


@contextmanager
def _unlogged() -> Iterator[None]:
    """Give the root logger a handler for a while: without one, foolbox's `logging.info` installs one for good."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def run(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec) -> Tensor:
    """Attacked images (B, C, H, W); see `suite.attack`. The perturbation that was found is cut to ±eps, pixel by pixel.

    Images that are wrong to begin with, or for which nothing was found, come back unchanged.
    """
    attacked, goal = images.clone(), away_from(network, images, labels, spec)
    rows = ever_right(network, images, goal).nonzero().squeeze(1)
    if not len(rows):
        return attacked
    clean = images[rows]
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=images.device)
    with torch.enable_grad(), _unlogged():
        found = METHODS[spec.attack](spec).run(model, clean, foolbox.Misclassification(goal[rows]))
    black = (found == 0).flatten(1).all(1)  # what Carlini and Wagner's attack returns where it found nothing
    found = torch.where(black.view(-1, 1, 1, 1), clean, found.detach())
    attacked[rows] = foolbox.distances.linf.clip_perturbation(clean, found, spec.eps)
    return attacked
