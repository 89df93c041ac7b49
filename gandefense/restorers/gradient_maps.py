"""Gradient maps: the classifier's loss gradient for every label (Hong et al. 2022), TRN's second input."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
TINY = 1e-12  # keeps the norm of an all-zero gradient finite


class GradientMaps(NamedTuple):
    """Normalised gradient maps of a batch.

    Attributes:
        maps: (B, K·C, H, W) in (-1, 1), label by label, each divided by its root mean square and squashed.
        log_norms: (B, K), natural logarithm of those root mean squares.
    """

    maps: Tensor
    log_norms: Tensor


def loss_gradients(classifier: nn.Module, images: Tensor, *, top_k: int | None = None, create_graph: bool = False) -> Tensor:
    """∂ CE(f(x), k)/∂x for every label k, by one forward pass and one backward pass a label.

    With logits z, softmax p and Jacobian J, the gradient for label k is Jᵀ(p − e_k); each label's backward pass is
    started with p − e_k. Its own entry is taken as −Σ p_j over the others, not as p_k − 1: for a confident image p_k
    rounds to 1, and the difference would be rounding error alone. Works under `torch.no_grad()` and leaves parameter
    gradients alone.

    Args:
        classifier: images (B, C, H, W) in [0, 1] → logits (B, K).
        images: (B, C, H, W).
        top_k: take only the most probable labels, image by image, most probable first; None takes all K in order.
        create_graph: keep the graph, for a second derivative.

    Returns:
        (B, k, C, H, W), in float32 (or the images' wider type).
    """
    with torch.enable_grad():
        point = images if create_graph and images.requires_grad else images.detach().requires_grad_(True)
        logits = classifier(point)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        probabilities = F.softmax(wide, dim=1)
        if not create_graph:
            probabilities = probabilities.detach()
        count, classes = logits.shape
        if top_k is None:
            labels = torch.arange(classes, device=images.device).expand(count, classes)
        else:
            labels = wide.detach().topk(top_k, dim=1).indices
        gradients = []
        for k in range(labels.shape[1]):
            chosen = F.one_hot(labels[:, k], classes).to(wide.dtype)
            others = probabilities * (1 - chosen)
            start = others - chosen * others.sum(dim=1, keepdim=True)
            last = k == labels.shape[1] - 1
            (gradient,) = torch.autograd.grad(
                wide, point, start, retain_graph=create_graph or not last, create_graph=create_graph
            )
            gradients.append(gradient)
    return torch.stack(gradients, dim=1)


def normalise(gradients: Tensor) -> GradientMaps:
    """Raw gradients (B, k, C, H, W) as maps of equal scale and log-norms.

    The gradient of the predicted class vanishes for every confident image, clean ones too; the maps therefore carry
    direction only, and the log-norms carry size. x ↦ x / (1 + |x|) tames the heavy tails.
    """
    flat = gradients.flatten(2)
    mean_square = flat.square().mean(dim=2)
    norms = (mean_square + TINY**2).sqrt()
    scaled = gradients / norms[:, :, None, None, None]
    return GradientMaps((scaled / (1 + scaled.abs())).flatten(1, 2), norms.log())


def gradient_maps(classifier: nn.Module, images: Tensor, *, top_k: int | None = None, create_graph: bool = False) -> GradientMaps:
    """Normalised gradient maps of images (B, C, H, W) in [0, 1]; see `loss_gradients` and `normalise`.

    Args:
        classifier: images → logits (B, K).
        images: the batch.
        top_k: see `loss_gradients`.
        create_graph: keep the graph, for the `exact` and `smooth` views.
    """
    return normalise(loss_gradients(classifier, images, top_k=top_k, create_graph=create_graph))


class _Softplus(TorchFunctionMode):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in RELUS:
            return F.softplus(args[0] if args else kwargs["input"], beta=self.beta)
        return func(*args, **(kwargs or {}))


def softplus_activations(beta: float = 20.0) -> AbstractContextManager:
    """Compute every ReLU as a softplus for a while, whether it is a module or a function.

    A ReLU network's logits are piecewise linear in its input, so the second derivatives that an attack through
    gradient maps needs are zero almost everywhere; softplus has them.

    Args:
        beta: sharpness; softplus comes within log(2) / beta of ReLU.
    """
    return _Softplus(beta)
