"""The AutoAttack family (pyautoattack): APGD, FAB, Square, and AutoAttack itself (Croce and Hein 2020).

Images that these attacks do not break, or that are wrong to begin with, come back unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from gandefense.attacks import stepwise
from gandefense.attacks.spec import AttackSpec, check_classes, standard_specs
from gandefense.attacks.victim import away_from, count_classes, ever_right, is_broken

TURNS = 5  # most runs of an attack, each on the images that the one before it left out because they happened to be wrong
TARGETS = 9  # other classes that a targeted attack tries, most likely first (the standard version's number)
SILENT = logging.Logger("pyautoattack", logging.CRITICAL + 1)  # the evaluation has its own checks for zero gradients


def _apgd(kind: type[APGDAttack], **own: Any) -> Callable[..., APGDAttack]:
    def build(network: nn.Module, spec: AttackSpec, classes: int, **common: Any) -> APGDAttack:
        targets = {"n_target_classes": min(TARGETS, classes - 1)} if kind is APGDAttack_targeted else {}
        return kind(network, n_iter=spec.steps, eot_iter=spec.eot, logger=SILENT, **common, **own, **targets)

    return build


class _FAB(FABAttack_PT):
    """FAB that attacks all that its first pass found right. The original asks once more and leaves out what is wrong then."""

    given: Tensor | None = None

    def attack_single_run(self, x: Tensor, y: Tensor | None = None, **how: Any) -> Tensor:
        self.given = y
        return super().attack_single_run(x, y, **how)

    def _get_predicted_label(self, x: Tensor) -> Tensor:
        given, self.given = self.given, None
        return super()._get_predicted_label(x) if given is None else given


def _fab(targeted: bool) -> Callable[..., FABAttack_PT]:
    def build(network: nn.Module, spec: AttackSpec, classes: int, **common: Any) -> FABAttack_PT:
        return _FAB(network, n_iter=spec.steps, targeted=targeted, n_target_classes=min(TARGETS, classes - 1), **common)

    return build


def _square(network: nn.Module, spec: AttackSpec, classes: int, **common: Any) -> SquareAttack:
    # A copy of the outputs, because Square writes into them. The schedule of square sizes is AutoAttack's own.
    return SquareAttack(lambda images: network(images).clone(), n_queries=spec.queries, resc_schedule=False, **common)


METHODS: dict[str, Callable[..., Any]] = {
    "apgd-ce": _apgd(APGDAttack, loss="ce"),
    "apgd-dlr": _apgd(APGDAttack, loss="dlr"),
    "apgd-t": _apgd(APGDAttack_targeted),
    "fab": _fab(targeted=False),
    "fab-t": _fab(targeted=True),
    "square": _square,
}


class _FirstPass(nn.Module):
    """A network that keeps which classes (B,) it saw in its first pass, that by which an attack of METHODS leaves images out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.classes: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.network(images)
        if self.classes is None:
            self.classes = outputs.detach().argmax(1)
        return outputs


def run(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, seed: int) -> Tensor:
    """Attacked images (B, C, H, W) of one of METHODS; see `suite.attack`.

    These attacks leave out images that are wrong in a first pass. What a randomised network only happens to have got wrong in it
    is attacked in a run of its own.

    Raises:
        UserError: the network has too few classes for the attack.
    """
    classes = count_classes(network, images)
    check_classes(spec.attack, classes)
    common = {"norm": "Linf", "eps": spec.eps, "n_restarts": spec.restarts, "device": images.device}
    goal = away_from(network, images, labels, spec)
    attacked = images.contiguous().clone()  # the attacks cannot read channels-last tensors
    rows = torch.arange(len(images), device=images.device)
    for turn in range(TURNS):
        watched = _FirstPass(network)
        method = METHODS[spec.attack](watched, spec, classes, verbose=False, seed=seed + turn, **common)
        with torch.no_grad():  # the attacks turn gradients on where they need them
            attacked[rows] = method.perturb(attacked[rows], goal[rows])
        rows = rows[watched.classes != goal[rows]]
        rows = rows[ever_right(network, images[rows], goal[rows])] if len(rows) else rows
        if not len(rows):
            break
    return attacked


def standard(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, seed: int) -> Tensor:
    """Attacked images (B, C, H, W) of `standard_specs`, one attack after another on what still stands.

    With the usual settings and ten classes the images are those of pyautoattack's own class. That class is not used
    because it spends seven passes on checks, switches Python's tracing off (and so coverage and debuggers), and stops
    with an IndexError where there are fewer than ten classes.
    """
    attacked, goal = images.clone(), away_from(network, images, labels, spec)
    standing = ever_right(network, images, goal).nonzero().squeeze(1)
    for part in standard_specs(spec, count_classes(network, images)):
        if not len(standing):
            break
        clean, pushed = images[standing], goal[standing]
        ours = part.attack not in METHODS
        found = stepwise.run(network, clean, pushed, part) if ours else run(network, clean, pushed, part, seed)
        moved = (found != clean).flatten(1).any(1)  # what comes back as it was is not broken, though it may happen to be wrong
        fell = is_broken(network, found, pushed, part.loss) & moved
        attacked[standing[fell]] = found[fell]
        standing = standing[~fell]
    return attacked
