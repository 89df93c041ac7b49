"""Adversarial weight perturbation (Wu, Xia & Wang 2020): a training step's gradient is taken where the weights are worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gandefense import distributed


def _worsen(network: nn.Module, weights: list[nn.Parameter], loss: Callable[[], Tensor], gamma: float) -> None:
    """Move each weight up the loss's gradient by gamma times its own norm; buffers stay as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    gradients = distributed.summed(torch.autograd.grad(loss(), weights, allow_unused=True))
    with torch.no_grad():
        for buffer, before in buffers:  # this pass must not count for batch norm's running statistics
            buffer.copy_(before)
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.add_(gamma * weight.norm() / (gradient.norm() + 1e-12) * gradient)


@contextmanager
def perturbed_weights(network: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Hold a network's weights perturbed so that the loss is higher; they come back bit for bit.

    The paper's step: v = γ ‖w‖ / ‖∇‖ · ∇, for each weight of more than one dimension by itself.
    Compute the loss anew and its gradient inside, and let the optimiser step outside.

    Args:
        network: the network in training mode.
        loss: computes the loss on the batch with the network as it stands; under torchrun each process's share of it.
        gamma: γ; 0: nothing is done.
    """
    if gamma == 0:
        yield
        return
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1 and parameter.requires_grad]
    kept = [weight.detach().clone() for weight in weights]
    _worsen(network, weights, loss, gamma)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
