"""Batch normalisation over the batch of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gandefense import distributed


class SynchronisedBatchNorm(_BatchNorm):
    """As torch's SyncBatchNorm, which computes on GPUs only: mean and variance are taken over the rows of all processes.

    With one process, or in eval mode, it is torch's batch norm.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # whatever the layer that this one replaces has taken

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, …), B this process's share of the batch."""
        if not self.training or distributed.world() == 1:
            return super().forward(x)
        wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        others = [dimension for dimension in range(x.ndim) if dimension != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = distributed.summed([torch.tensor(wide.numel() / wide.shape[1], dtype=wide.dtype, device=x.device)])[0]
        mean = distributed.differentiable_sum(wide.sum(others)) / count
        centred = wide - mean.view(shape)
        # Twice through the data, as the mean of squares less the square of the mean would lose digits.
        variance = distributed.differentiable_sum(centred.square().sum(others)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                rate = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, rate)
                self.running_var.lerp_(variance * (count / (count - 1)), rate)
        made = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            made = made * self.weight.view(shape) + self.bias.view(shape)
        return made.to(x.dtype)


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """Let a network's batch norms see the batch of all processes; with one process it stays as it is.

    Parameters, buffers and their names are those it had; the layers are replaced in place.
    """
    if distributed.world() == 1:
        return network
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SynchronisedBatchNorm):
                setattr(module, name, _replacement(child))
    return _replacement(network) if isinstance(network, _BatchNorm) else network


def _replacement(layer: _BatchNorm) -> SynchronisedBatchNorm:
    new = SynchronisedBatchNorm(
        layer.num_features, layer.eps, layer.momentum, affine=False, track_running_stats=layer.track_running_stats
    )
    new.affine, new.weight, new.bias = layer.affine, layer.weight, layer.bias
    new.running_mean, new.running_var = layer.running_mean, layer.running_var
    new.num_batches_tracked, new.training = layer.num_batches_tracked, layer.training
    return new
