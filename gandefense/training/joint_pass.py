"""What a step of joint training differentiates: a batch's way through restorer and classifier, and the losses along it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gandefense.attacks.level import perturbation_level
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.gan import GANRestorer, Judged
from gandefense.restorers.gradient_maps import GradientMaps, gradient_maps
from gandefense.restorers.trn import TRNRestorer
from gandefense.training import adversarial
from gandefense.training.adversarial import AdversarialConfig


@dataclass
class PassConfig:
    """What the training pass, not the attacker, differentiates; see `through`."""

    maps_gradient: bool = False  # trn: also train the classifier through its gradient maps, by a double backward pass a label
    rounds: int = 2  # gan: rounds that the loop is unrolled for, and the most that it takes when it is used
    softness: float = 1.0  # gan: temperature of the soft decisions, in units of the attack logit


@dataclass
class RestoringConfig:
    """Weights of the losses that keep the restorer a restorer; none of them is tuned yet.

    They stay small beside the classification loss, which is about 1: an attack at 8/255 that nothing undoes has a mean
    absolute error of about 0.02, a pixel loss of 0.2 at the weight below.
    """

    pixel: float = 10.0  # mean absolute error of the restored image, attacked and clean alike
    cleaned: float = 5.0  # gan: the same of what the ISMN leaves
    sparsity: float = 0.1  # gan: mean of the sparsity map on clean images
    detection: float = 0.5  # gan: cross-entropy of "attacked or not" about the loop's threshold
    level: float = 1.0  # gan: mean absolute error of the attack level
    code_rate: float = 0.1  # gan: DDSA's sparsity rate, see `SparseCode`


class Pass(NamedTuple):
    """What a batch becomes: restored images (B, C, H, W), logits (B, K), and of a GAN the first half of its first round."""

    restored: Tensor
    logits: Tensor
    first: Judged | None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Hold a module in eval mode, and put each part back as it was; parameters keep their gradients."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def maps_now(restorer: TRNRestorer, images: Tensor, *, differentiable: bool) -> GradientMaps:
    """The gradient maps of the classifier as it stands, in eval mode, because that is how it will be asked for them.

    Args:
        restorer: TRN before the classifier that is being trained.
        images: (B, C, H, W) in [0, 1].
        differentiable: keep the graph, for the derivative of the maps with respect to the classifier's weights and to
            images that require one: a second derivative of the classifier.
    """
    classifier = restorer.classifier
    with evaluating(classifier):
        if not differentiable:
            return gradient_maps(classifier, images.detach(), top_k=restorer.top_k)
        # Running statistics as they are now: the passes that follow move them before the gradient is taken.
        statistics = {name: buffer.clone() for name, buffer in classifier.named_buffers()}

        def asked(point: Tensor) -> Tensor:
            return functional_call(classifier, statistics, (point,))

        return gradient_maps(asked, images, top_k=restorer.top_k, create_graph=True)


def through(defended: DefendedClassifier, images: Tensor, options: PassConfig) -> Pass:
    """Restore and classify a batch so that restorer and classifier learn from it.

    TRN: the maps are recomputed from the classifier as it stands. Their own derivative with respect to the classifier's
    weights is left out unless `maps_gradient` asks for it: it costs a double backward pass per label, and of a ReLU network
    it is mostly zero or shattered (its logit gradients are piecewise constant; only the softmax within the maps bends).
    The classifier then learns from what it classifies, and the restorer reads maps as data, as it does before a frozen
    classifier. Nothing of this weakens the attacker, who has views of his own (`exact` differentiates the maps).

    GAN: the loop unrolled with soft decisions, see `GANRestorer.soft`; the loop with its hard ones is what the attacker
    meets and what validation measures.

    Args:
        defended: a TRNRestorer or GANRestorer before a classifier, in training mode.
        images: (B, C, H, W) in [0, 1].
        options: what is differentiated.
    """
    restorer, first = defended.restorer, None
    if isinstance(restorer, TRNRestorer):
        restored = restorer.network(images, maps_now(restorer, images, differentiable=options.maps_gradient))
    else:
        restored, first = restorer.soft(images, rounds=options.rounds, softness=options.softness)
    logits = defended.classifier(restored.contiguous(memory_format=torch.channels_last))
    return Pass(restored, logits if logits.dtype == torch.float64 else logits.float(), first)


def misalignment(defended: DefendedClassifier, images: Tensor, nearby: Tensor, labels: Tensor, options: PassConfig) -> Tensor:
    """GradAlign (Andriushchenko & Flammarion 2020): 1 − cos of the loss's gradients at an image and near it, mean over a batch.

    Training against a single step breaks down when the loss is no longer about linear within the budget; this keeps it so.
    Gradient maps are held constant in it, as a second derivative of theirs would be a third one of the classifier.

    Args:
        defended: restorer and classifier.
        images: (B, C, H, W) in [0, 1].
        nearby: the same images plus uniform noise within the budget.
        labels: (B,).
        options: see `through`; `maps_gradient` does not count.
    """
    constant, gradients = PassConfig(False, options.rounds, options.softness), []
    with evaluating(defended):
        for batch in (images, nearby):
            point = batch.detach().clone().requires_grad_(True)
            total = F.cross_entropy(through(defended, point, constant).logits, labels, reduction="sum")
            gradients.append(torch.autograd.grad(total, point, create_graph=True)[0].flatten(1))
    return 1 - F.cosine_similarity(*gradients, dim=1).mean()


def losses(
    defended: DefendedClassifier,
    clean: Tensor,
    attacked: Tensor,
    labels: Tensor,
    *,
    attacks: AdversarialConfig,
    options: PassConfig,
    restoring: RestoringConfig,
    smoothing: float = 0.0,
    alignment: float = 0.0,
    nearby: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses of a training step, each with its weight in it, and what else there is to watch.

    Clean and attacked images pass apart from each other, as in `adversarial.loss`, so that batch norm sees either by itself.

    Args:
        defended: restorer and classifier, in training mode.
        clean: (B, C, H, W) in [0, 1].
        attacked: the same images attacked.
        labels: (B,).
        attacks: how the two classifications are weighed, see `adversarial.weighed`.
        options: see `through`.
        restoring: weights of the other losses.
        smoothing: label smoothing.
        alignment: weight of `misalignment`; 0: left out.
        nearby: for that, see there.

    Returns:
        "loss", the sum; "loss_…", its parts; "accuracy_clean", "accuracy_attacked"; "pixel_error", of restored attacked
        images in units of 1/255.
    """
    made = {"clean": through(defended, clean, options), "attacked": through(defended, attacked, options)}
    parts = {"class": adversarial.weighed(made["clean"].logits, made["attacked"].logits, labels, attacks, smoothing=smoothing)}
    errors = {name: (one.restored - clean).abs().mean() for name, one in made.items()}
    parts["pixel"] = restoring.pixel * (errors["clean"] + errors["attacked"]) / 2
    if isinstance(defended.restorer, GANRestorer):
        first = [one.first for one in made.values()]
        cleaned, logits, levels = (torch.cat([getattr(one, name) for one in first]) for name in ("cleaned", "logit", "level"))
        is_attacked = torch.arange(2, device=labels.device).repeat_interleave(len(clean)).to(logits.dtype)
        wanted = torch.cat([torch.zeros_like(levels[: len(clean)]), perturbation_level(attacked.detach(), clean)])
        parts["cleaned"] = restoring.cleaned * (cleaned - clean.repeat(2, 1, 1, 1)).abs().mean()
        parts["sparsity"] = restoring.sparsity * first[0].sparsity.mean()
        judged = F.binary_cross_entropy_with_logits(logits - defended.restorer.threshold, is_attacked)
        parts["detection"] = restoring.detection * judged
        parts["level"] = restoring.level * (levels - wanted).abs().mean()
    if alignment > 0:  # last, because its pass in eval mode reads the running statistics that the others have moved
        parts["alignment"] = alignment * misalignment(defended, clean, nearby, labels, options)
    right = {f"accuracy_{name}": (one.logits.argmax(1) == labels).float().mean() for name, one in made.items()}
    total = torch.stack(list(parts.values())).sum()
    return {"loss": total, **{f"loss_{k}": v for k, v in parts.items()}, **right, "pixel_error": errors["attacked"] * 255}
