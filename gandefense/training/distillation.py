"""Defensive distillation (Papernot et al. 2016) with adversarial training: the GAN defence's distilled classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense import distributed
from gandefense.attacks.noise import gaussian_signed
from gandefense.attacks.suite import frozen
from gandefense.data import datasets
from gandefense.data.batches import at_once, to_float
from gandefense.precision import autocast
from gandefense.training.parts import Part, gathered


@dataclass
class StudentConfig:
    """Phase 1, defensive distillation: the student learns the teacher's soft labels, on attacked images."""

    steps: int = 600  # 0: the student stays as it starts
    batch_size: int = 128  # images per step
    learning_rate: float = 0.02  # peak, SGD with momentum 0.9
    temperature: float = 4.0  # of teacher and student (Papernot et al. 2016); the student answers at temperature 1
    eps: float = 8 / 255  # largest budget of the attack on the student itself, drawn uniformly from 0 for each image
    attack_steps: int = 1  # of that attack: 1, a single one from a random start; more, PGD with steps of 2.5 · budget / steps
    noise: float = 0.4  # largest Gaussian level on the [-1, 1] scale
    noise_every: int = 4  # every fourth image is noisy instead of attacked; 2: every second; 1: all, and none is attacked


def distillation(logits: Tensor, goal: Tensor) -> Tensor:
    """KL(softmax(goal) ‖ softmax(logits)), mean over the batch; both (B, K)."""
    return F.kl_div(F.log_softmax(logits.float(), 1), F.log_softmax(goal.float(), 1), reduction="batchmean", log_target=True)


def attack_on_student(
    student: nn.Module, clean: Tensor, soft: Tensor, budget: Tensor, start: Tensor, *, steps: int, temperature: float
) -> Tensor:
    """Signed steps away from the teacher's answers, within a budget: one (Wong et al. 2020) or several (Madry et al. 2018).

    Args:
        student: whose gradient is followed, in eval mode; it is left in the mode it is in.
        clean: (B, C, H, W) in [0, 1].
        soft: (B, K), the teacher's logits on the clean images, divided by the temperature.
        budget: (B, 1, 1, 1), L-infinity, in pixel units.
        start: (B, C, H, W), the perturbation begun with.
        steps: at least 1; one is 1.25 times the budget long, several together 2.5 times.
        temperature: of the student.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    share = 1.25 if steps == 1 else 2.5 / steps
    with frozen(student):
        attacked = (clean + start).clamp(0, 1)
        for _ in range(steps):
            attacked.requires_grad_(True)
            (gradient,) = torch.autograd.grad(distillation(student(attacked) / temperature, soft), attacked)
            moved = (attacked.detach() - clean) + share * budget * gradient.sign()
            attacked = (clean + moved.clamp(-budget, budget)).clamp(0, 1)
    return attacked.detach()


def student_step(
    config: StudentConfig, student: nn.Module, teacher: nn.Module, clean: Tensor, part: Part | None = None
) -> Tensor:
    """One distillation loss: the student on attacked and noisy images against the teacher's soft labels on the clean ones.

    The attack starts at random and is on the student itself, with a budget drawn for each image.

    Args:
        config: temperature, budgets, noise.
        student: in training mode.
        teacher: frozen, in eval mode.
        clean: (B, C, H, W) in [0, 1].
        part: which rows of a larger batch the clean images are; None: they are the batch.
    """
    part = part or Part(len(clean))
    temperature = config.temperature
    with torch.no_grad():
        soft = teacher(clean) / temperature
    with part.drawing():
        budget = config.eps * torch.rand(len(clean), 1, 1, 1, device=clean.device)
        start = budget * (2 * torch.rand_like(clean) - 1)
    attacked = attack_on_student(student, clean, soft, budget, start, steps=config.attack_steps, temperature=temperature)
    is_noisy = part.rows % config.noise_every == 0
    noisy = is_noisy.nonzero()[:, 0].to(clean.device)
    with part.drawing(part.rows[is_noisy] // config.noise_every, -(-part.batch // config.noise_every)):
        levels = config.noise * torch.rand(len(noisy), 1, 1, 1, device=clean.device)
        attacked[noisy] = gaussian_signed(clean[noisy], levels)
    return temperature**2 * distillation(student(attacked) / temperature, soft)


@torch.no_grad()
def clean_logits(
    classifier: nn.Module, images: datasets.Images, device: torch.device, precision: str, *, chosen: Tensor | None = None
) -> Tensor:
    """The frozen classifier's logits on clean images, computed once; by each process for every so many of them.

    Args:
        classifier: maps images to logits (B, K).
        images: N clean images.
        device, precision: to compute on and in.
        chosen: (M,) positions of the images that are wanted; None: all.

    Returns:
        (M, K) in the order of `chosen`, or (N, K).
    """
    rows = torch.arange(len(images.labels)) if chosen is None else chosen
    logits, share = [], at_once(images.images.shape[-1], 500)
    for number, part in enumerate(rows.split(share)):
        if number % distributed.world() == distributed.rank():
            batch = to_float(images.images[part].to(device)).contiguous(memory_format=torch.channels_last)
            with autocast(device, precision):
                logits.append(classifier(batch).float().cpu())
    if distributed.world() == 1:
        return torch.cat(logits)
    places = torch.arange(len(rows))
    mine = torch.cat([places[:0], *places.split(share)[distributed.rank() :: distributed.world()]])
    columns = max(distributed.from_all(logits[0].shape[1] if logits else 0))
    return gathered([torch.cat([torch.zeros(0, columns), *logits])], mine, len(rows))[0]
