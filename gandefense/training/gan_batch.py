"""What a batch of the GAN training is made of: noise, eq. (2) and earlier regenerations first, then cached attacks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gandefense import distributed
from gandefense.attacks.cache import AttackedSet
from gandefense.attacks.level import perturbation_level
from gandefense.attacks.noise import gaussian_signed
from gandefense.attacks.random_step import random_step
from gandefense.data import datasets
from gandefense.data.batches import to_float
from gandefense.training.parts import Part, gathered


@dataclass
class Mix:
    """The places of a batch at which each kind of perturbation ends; the cached attacks follow.

    Attributes:
        batch: images in all.
        noisy: end of the Gaussian noise.
        stepped: end of eq. (2).
        replayed: end of the earlier regenerations.
        noise_level: largest Gaussian level on the [-1, 1] scale.
        step_eps: budget of eq. (2) in pixel units.
    """

    batch: int
    noisy: int
    stepped: int
    replayed: int
    noise_level: float
    step_eps: float = 8 / 255


@dataclass
class Replay:
    """Regenerated images of the step before, with the clean ones (R, C, H, W) and their logits (R, K), on the CPU."""

    images: Tensor
    clean: Tensor
    goal: Tensor


@dataclass
class Piece:
    """A part of a batch.

    Attributes:
        part: its rows.
        images: (n, C, H, W), perturbed, channels last.
        clean: (n, C, H, W).
        labels: (n,).
        goal: (n, K), the defended classifier's logits on the clean images.
        level: (n,), of the perturbation.
        is_attacked: (n,), 1 or 0.
        judged: (n,), 0 for regenerated images: whether one passes is what the loop asks, not what it is taught.
        regenerated: (n, C, H, W), once the networks have made them.
    """

    part: Part
    images: Tensor
    clean: Tensor
    labels: Tensor
    goal: Tensor
    level: Tensor
    is_attacked: Tensor
    judged: Tensor
    regenerated: Tensor | None = None


def perturbed(
    part: Part,
    rows: Tensor,
    mix: Mix,
    *,
    attacked: AttackedSet,
    images: datasets.Images,
    goals: Tensor,
    teacher: nn.Module,
    replay: Replay | None,
    device: torch.device,
) -> Piece:
    """Put a part of a batch together.

    Args:
        part: which part.
        rows: (B,) the whole batch's rows of the attacked set.
        mix: what goes where.
        attacked: the set.
        images: the clean images that it was made from.
        goals: (N, K), the defended classifier's logits on them.
        teacher: the defended classifier, frozen.
        replay: what is shown again; None in the first step.
        device: where the part goes.
    """
    chosen = rows[part.rows]
    source = attacked.source[chosen]
    clean, labels = to_float(images.images[source].to(device)), images.labels[source].to(device)
    goal = goals[source].to(device)
    batch = attacked.rows(chosen).to(device)
    here = part.between(0, mix.noisy)
    with part.drawing(part.rows[here], mix.noisy):
        levels = mix.noise_level * torch.rand(len(here), 1, 1, 1, device=device)
        batch[here] = gaussian_signed(clean[here], levels)
    here = part.between(mix.noisy, mix.stepped)
    with part.drawing(part.rows[here] - mix.noisy, mix.stepped - mix.noisy):
        batch[here] = random_step(teacher, clean[here], labels[here], mix.step_eps)
    here = part.between(mix.stepped, mix.replayed)
    if replay is not None:
        again = part.rows[here] - mix.stepped
        batch[here], clean[here] = replay.images[again].to(device), replay.clean[again].to(device)
        goal[here] = replay.goal[again].to(device)
    level = perturbation_level(batch, clean)
    judged = torch.ones_like(level)
    judged[here] = 0
    batch = batch.contiguous(memory_format=torch.channels_last)
    return Piece(part, batch, clean, labels, goal, level, (level > 0.5 / 255).float(), judged)


def moved(images: Tensor, *, flip: bool) -> Tensor:
    """Images (B, C, S, S) mirrored by chance, and moved by up to S / 8 whole pixels, what enters reflected from the border.

    As `augmentation` does, but from draws that have a row for each image, so that `Part.drawing` can cut them.

    Args:
        images: the batch.
        flip: whether a mirror image is one of the same class.
    """
    from kornia.geometry.transform import hflip, translate

    furthest = images.shape[-1] // 8
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < (0.5 if flip else 0.0)
    steps = (torch.rand(len(images), 2, device=images.device) * (2 * furthest + 1)).floor() - furthest
    return translate(torch.where(mirrored, hflip(images), images), steps, mode="nearest", padding_mode="reflection")


def fakes(pieces: list[Piece]) -> tuple[list[Tensor], list[float]]:
    """The discriminator's fake images, half of them regenerated and half attacked, and each piece's share of them all.

    Every other image of each is taken, because the batch's order tells how an image was perturbed; neither clean nor
    replayed ones count, unless there are no others.
    """
    taken, counted = [], []
    for piece in pieces:
        even, odd = ((piece.part.rows % 2 == which).nonzero()[:, 0].to(piece.images.device) for which in (0, 1))
        taken.append(torch.cat([piece.regenerated[even], piece.images[odd]]))
        counted.append(torch.cat([piece.judged[even], piece.is_attacked[odd]]) > 0)
    (total,) = distributed.summed([torch.stack([flags.sum() for flags in counted]).sum().float()])
    if not total:
        return taken, [piece.part.share for piece in pieces]
    fake = [images[flags] for images, flags in zip(taken, counted, strict=True)]
    return fake, [len(images) / total.item() for images in fake]


def replayed(pieces: list[Piece], mix: Mix) -> Replay | None:
    """What the next step is to be shown again, the same in every process: the batch's last images; None: nothing."""
    size = mix.replayed - mix.stepped
    if not size:
        return None
    first = mix.batch - size
    places, columns = [], []
    for piece in pieces:
        here = piece.part.between(first, mix.batch)
        places.append(piece.part.rows[here] - first)
        columns.append([piece.regenerated[here].float(), piece.clean[here], piece.goal[here]])
    whole = gathered([torch.cat(parts) for parts in zip(*columns, strict=True)], torch.cat(places), size)
    return Replay(*(tensor.cpu() for tensor in whole))
