"""Phase 3 of the GAN training: the part of a batch that is attacked on the student itself."""

from __future__ import annotations

import torch
from torch import nn

from gandefense.training.distillation import attack_on_student
from gandefense.training.gan_batch import Piece
from gandefense.training.gan_config import GANConfig


def add_own_attacks(config: GANConfig, student: nn.Module, piece: Piece, *, first: int, steps: int) -> None:
    """Put attacks on the student, as it is now and in eval mode, in the place of `adapt.own_share` of a batch's images.

    An attacked set is made once and on the teacher. Behind the defence the student answers, so that a gray_box attacker
    attacks the student: what the restorer leaves of those attacks is what it has to be right about.

    Args:
        config: `adapt.own_share`, `adapt.own_eps` and `distil.temperature`.
        student: in training mode, and left in it.
        piece: changed in place; `level` and `is_attacked` keep what they were, phase 3 does not use them.
        first: the batch's row at which these images begin.
        steps: of the attack.
    """
    count = round(config.adapt.own_share * piece.part.batch)
    here = piece.part.between(first, first + count)
    clean = piece.clean[here]
    with piece.part.drawing(piece.part.rows[here] - first, count):
        budget = config.adapt.own_eps * torch.rand(len(here), 1, 1, 1, device=clean.device)
        start = budget * (2 * torch.rand_like(clean) - 1)
    if not len(here):
        return
    temperature = config.distil.temperature
    soft = piece.goal[here] / temperature
    piece.images[here] = attack_on_student(student, clean, soft, budget, start, steps=steps, temperature=temperature)
