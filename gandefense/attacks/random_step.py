"""Eq. (2) of the ISMN paper: a randomised perturbation step, used as a training attack."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def random_step(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Eq. (2) of the ISMN paper: x_adv = x̂ + (ε − φ) ∇ J(x̂, y), our reading.

    x̂ is a random vector near the image, φ a noise factor that shortens the step; we draw φ uniformly from [0, ε], take
    the gradient's sign as in eq. (1), and stay within ε of the image, as R+FGSM does (Tramèr et al. 2018).

    Args:
        network: a frozen classifier.
        images: (B, C, H, W) in [0, 1].
        labels: (B,).
        eps: budget in pixel units.
    """
    factor = eps * torch.rand(len(images), 1, 1, 1, device=images.device)
    start = (images + factor * torch.randn_like(images).sign()).clamp(0, 1).requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(start).float(), labels, reduction="sum"), start)
    return (start.detach() + (eps - factor) * gradient.sign()).clamp(0, 1)
