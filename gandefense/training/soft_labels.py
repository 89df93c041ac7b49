"""Defensive distillation of a classifier (Papernot et al. 2016): trained at a temperature, and then answering at 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gandefense import zoo
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.training.state import require


@dataclass
class DistillationConfig:
    """The teacher and the temperatures.

    A teacher trained at temperature T gives at T the soft labels that an ordinary network gives at 1: its logits are T times
    as large, see `magnify`. So an ordinary teacher will do, at its own temperature of 1. To go Papernot's way in full, train
    the teacher first (teacher: null, temperature: T) and then the student (teacher: its run folder, both temperatures: T).
    """

    teacher: str | None = None  # a classifier: zoo name, run folder, file; None: trained on the true labels
    temperature: float = 1.0  # that this network is trained at; Papernot et al. take up to 100; 1: ordinary training
    teacher_temperature: float = 1.0  # that the teacher was trained at, and gives its soft labels at


def load_teacher(options: DistillationConfig, data: datasets.Dataset, device: torch.device) -> nn.Module | None:
    """The teacher, frozen and in eval mode; None where the config names none.

    Raises:
        UserError: a temperature that is not positive, no such classifier, or one with other classes or image channels.
    """
    require(
        positive={
            "train.distillation.temperature": options.temperature,
            "train.distillation.teacher_temperature": options.teacher_temperature,
        }
    )
    if options.teacher is None:
        return None
    teacher = zoo.load_classifier(options.teacher)
    if zoo.describe(options.teacher).get("data", data.name) != data.name:
        trained_on = zoo.describe(options.teacher)["data"]
        raise UserError(f"train.distillation.teacher={options.teacher} was trained on {trained_on}, not on {data.name}")
    zoo.try_out(options.teacher, teacher, data)
    return teacher.to(device).eval().requires_grad_(False)


@torch.no_grad()
def soft_labels(teacher: nn.Module, images: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities (B, K) at a temperature, for images (B, C, H, W) in [0, 1]."""
    return (teacher(images).float() / temperature).softmax(1)


def last_layer(network: nn.Module) -> nn.Linear:
    """A classifier's last linear layer; raises UserError for one that ends in something else."""
    last = list(network.modules())[-1]
    if not isinstance(last, nn.Linear):
        kind = type(last).__name__
        raise UserError(f"train.distillation.temperature needs a classifier that ends in a linear layer, not in {kind}")
    return last


@torch.no_grad()
def magnify(network: nn.Module, temperature: float) -> None:
    """Multiply a network's logits by the temperature that it was trained at, in its last linear layer.

    Papernot et al. divide the logits z by T in the training's softmax. We let the network give u = z / T while it trains and
    multiply at the end: the same function and the same loss, but a last layer whose steps are not T² times as small. At
    temperature 1 the softmax of z = T · u saturates; that is the defence.

    Raises:
        UserError: see `last_layer`.
    """
    if temperature != 1:
        for parameter in last_layer(network).parameters():
            parameter.mul_(temperature)
