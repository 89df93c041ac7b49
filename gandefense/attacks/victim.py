"""The attacked network: held frozen, asked for its classes, judged wrong or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gandefense.attacks.spec import AttackSpec
from gandefense.errors import UserError

ASKED = 10  # passes in which a randomised network may be right, see `ever_right`


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


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network(images)
    if logits.isnan().any():
        raise UserError("a network's logits contain NaN, which says nothing of the class")
    return logits


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes (B,) of images (B, C, H, W) in [0, 1], without gradients; raises UserError for logits that are NaN."""
    return _logits(network, images).argmax(1)


def ever_right(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Whether a network sees images (B, C, H, W) as classes (B,) in one of `ASKED` passes at least, as bool (B,).

    An attack that leaves out what is wrong to begin with asks this, not one pass: a randomised network that happens to be wrong
    once has not been broken. One that gives the same logits twice is asked no more than that.

    Raises:
        UserError: logits that are NaN.
    """
    first = _logits(network, images)
    right = first.argmax(1) == classes
    for _ in range(ASKED - 1):
        again = _logits(network, images)
        if torch.equal(again, first):
            break
        right |= again.argmax(1) == classes
    return right


def split(outputs: Tensor, loss: str) -> tuple[Tensor, Tensor | None]:
    """Logits (B, K) of outputs, and under a joint loss their last column (B,), the detector's, positive where it detects."""
    return (outputs[:, :-1], outputs[:, -1]) if loss == "joint" else (outputs, None)


def broken(outputs: Tensor, labels: Tensor, loss: str) -> Tensor:
    """Whether outputs are a success for the attacker, as bool (B,): a wrong class, and under a joint loss undetected."""
    logits, detector = split(outputs, loss)
    wrong = logits.argmax(1) != labels
    return wrong if detector is None else wrong & (detector <= 0)


def is_broken(network: nn.Module, images: Tensor, labels: Tensor, loss: str) -> Tensor:
    """`broken` of a network's outputs on images (B, C, H, W) in [0, 1], without gradients."""
    with torch.no_grad():
        return broken(network(images), labels, loss)


def count_classes(network: nn.Module, images: Tensor, loss: str = "ce") -> int:
    """The number of classes that a network tells apart, from its outputs for the first image."""
    with torch.no_grad():
        return split(network(images[:1]), loss)[0].shape[1]


def away_from(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec) -> Tensor:
    """The classes (B,) that an untargeted attack pushes away from: the true labels, or the network's predictions."""
    if spec.labels != "predicted":
        return labels
    with torch.no_grad():
        return split(network(images), spec.loss)[0].argmax(1)
