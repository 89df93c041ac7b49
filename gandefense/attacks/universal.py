"""One perturbation for a whole data set (Moosavi-Dezfooli et al. 2017), by stochastic gradient steps (Shafahi et al. 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.attacks.spec import AttackSpec
from gandefense.attacks.victim import away_from
from gandefense.data.batches import batch_indices, to_float
from gandefense.memory import in_halves

BATCH = 100  # images a step looks at
CLIP = 9.0  # no image's cross-entropy counts for more, or the few worst would be all that is looked at (the article's β)


def fit(
    network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, seed: int, *, device: torch.device | None = None
) -> Tensor:
    """One perturbation that raises the clipped cross-entropy of all images together.

    `spec.steps` steps of Adam, of about `spec.step()` each, look at BATCH images at a time; after every step the perturbation
    is cut to the budget. Where the network is random, every step sees draws of its own.

    Args:
        network: images (B, C, H, W) in [0, 1] → logits (B, K), frozen and in eval mode.
        images: (N, C, H, W), uint8 or floats in [0, 1], on any device.
        labels: (N,) int64, true classes.
        spec: a "universal" attack.
        seed: of the order of images.
        device: where the network is; None for that of the images.

    Returns:
        (C, H, W) in [-eps, eps], in pixel units.
    """
    device = images.device if device is None else device
    kind = images.dtype if images.is_floating_point() else torch.float32
    delta = torch.zeros(images.shape[1:], device=device, dtype=kind)
    optimiser = torch.optim.Adam([delta], lr=spec.step())
    for step in range(spec.steps):
        chosen = batch_indices(len(labels), BATCH, step, seed).sort().values.to(images.device)
        clean, true = to_float(images[chosen].to(device)), labels[chosen].to(device)

        def gradients(clean: Tensor, true: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                point = delta.expand_as(clean).clone().requires_grad_(True)
                logits = network((clean + point).clamp(0, 1))
                loss = F.cross_entropy(logits, away_from(network, clean, true, spec), reduction="none").clamp(max=CLIP)
                return torch.autograd.grad(loss.sum(), point)

        delta.grad = -in_halves(gradients, clean, true)[0].mean(0)  # Adam goes down, the attack goes up
        optimiser.step()
        delta.clamp_(-spec.eps, spec.eps)
    return delta


def applied(images: Tensor, delta: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] with a perturbation (C, H, W) added to each, clipped to [0, 1]."""
    return (images + delta.to(images)).clamp(0, 1)


def run(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, seed: int) -> Tensor:
    """Attacked images (B, C, H, W) by one perturbation that is made from these very images; see `suite.attack`."""
    return applied(images, fit(network, images, labels, spec, seed))
