"""The instance sparsity mapping network (ISMN): a MagNet-like autoencoder with a sparse code that cleans an image."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.restorers.layers import norm_layer


class Cleaned(NamedTuple):
    """What the ISMN makes of a batch.

    Attributes:
        images: (B, C, H, W) in [0, 1], cleaned.
        code: (B, 128), non-negative and sparse.
        sparsity: (B, 1, H, W) in [0, 1], where and how strongly each image is perturbed.
    """

    images: Tensor
    code: Tensor
    sparsity: Tensor


class SparseCode(nn.Module):
    """A linear layer with ReLU whose mean activation is held at a target by moving its bias (DDSA, Bakhti et al. 2019).

    The running mean follows µ̂ ← 0.999 µ̂ + 0.001 a; after each training step the bias moves by
    b ← b − rate · (µ̂ − µ).
    """

    def __init__(self, inputs: int, outputs: int, *, target: float = 0.1) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.target = target
        self.register_buffer("mean_activation", torch.full((outputs,), target))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, inputs) → activations (B, outputs) ≥ 0; in training mode the running mean is updated."""
        activation = F.relu(self.linear(x))
        if self.training:
            with torch.no_grad():
                self.mean_activation.lerp_(activation.detach().float().mean(0), 0.001)
        return activation

    @torch.no_grad()
    def update_bias(self, rate: float) -> None:
        """Move the bias towards the target activation; `rate` is the learning rate times DDSA's sparsity rate β."""
        self.linear.bias -= rate * (self.mean_activation - self.target)


def _down(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2), nn.LeakyReLU(0.2))


class Encoder(nn.Module):
    """Table 2 of the paper: Conv 64 7×7/2, 128 3×3/2, 256 3×3/2, 256 5×5/2, LeakyReLU 0.2, fully connected 128.

    Table 2 gives no activation between the last convolution and the fully connected layer; we keep it so. The four
    convolutions divide the resolution by 16; larger images are pooled to 2×2 before the fully connected layer, so
    that one network serves every size.
    """

    def __init__(self, channels: int, code: int = 128) -> None:
        super().__init__()
        self.stages = nn.ModuleList([_down(channels, 64, 7), _down(64, 128, 3), _down(128, 256, 3)])
        self.last = nn.Conv2d(256, 256, 5, stride=2, padding=2)
        self.code = SparseCode(256 * 4, code)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Images (B, C, H, W) in [0, 1] → features at 1/2, 1/4, 1/8, 1/16 of the resolution, and the code (B, 128)."""
        features, x = [], (images - 0.5) * 4
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        features.append(self.last(x))
        return features, self.code(F.adaptive_avg_pool2d(features[-1], 2).flatten(1))


def _up(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), norm_layer(norm, outputs), nn.LeakyReLU(0.2))


def _double(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


class PaperISMN(nn.Module):
    """Tables 1 and 2 to the letter: the 128-number code is all that the decoder sees.

    It destroys the content of natural images (our reading of why nobody could have used it alone), and is here for
    comparison. The sparsity map is the mean size of the difference, scaled to [0, 1].
    """

    def __init__(self, *, channels: int, size: int, norm: str = "group") -> None:
        super().__init__()
        self.encoder = Encoder(channels)
        self.smallest = max(1, size // 16)
        self.expand = nn.Linear(128, 256 * self.smallest**2)
        self.up = nn.ModuleList([_up(256, 256, norm), _up(256, 128, norm), _up(128, 64, norm), _up(64, 32, norm)])
        self.out = nn.Conv2d(32, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Cleaned:
        """Clean images (B, C, H, W) in [0, 1]."""
        _, code = self.encoder(images)
        x = F.leaky_relu(self.expand(code), 0.2).view(-1, 256, self.smallest, self.smallest)
        for layer in self.up:
            x = layer(F.interpolate(x, scale_factor=2, mode="nearest"))
        cleaned = torch.sigmoid(self.out(F.interpolate(x, size=images.shape[-2:], mode="nearest")).float())
        return Cleaned(cleaned, code, (images - cleaned).abs().mean(1, keepdim=True).clamp(0, 1))


class FullISMN(nn.Module):
    """Table 2's encoder with skip connections, and an instance sparsity map that gates the removed residual.

    cleaned = x − s · r, with residual r (B, C, H, W) and sparsity map s (B, 1, H, W) in [0, 1], both predicted at full
    resolution. Starts as the identity.
    """

    def __init__(self, *, channels: int, size: int, width: int = 24, norm: str = "group") -> None:
        super().__init__()
        self.encoder = Encoder(channels)
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2))
        self.code_in = nn.Linear(128, 256)
        self.up = nn.ModuleList([_up(256 + 256, 128, norm), _up(128 + 128, 64, norm), _up(64 + 64, 32, norm)])
        self.merge = nn.Sequential(_up(32 + width, width, norm), _up(width, width, norm))
        self.out = nn.Conv2d(width, channels + 1, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, images: Tensor) -> Cleaned:
        """Clean images (B, C, H, W) in [0, 1]."""
        (half, quarter, eighth, sixteenth), code = self.encoder(images)
        x = F.leaky_relu(sixteenth + self.code_in(code)[:, :, None, None], 0.2)
        for layer, skip in zip(self.up, (eighth, quarter, half), strict=True):
            x = layer(torch.cat([_double(x, skip), skip], dim=1))
        x = self.merge(torch.cat([_double(x, images), self.stem((images - 0.5) * 4)], dim=1))
        residual, gate = self.out(x).float().split([images.shape[1], 1], dim=1)
        sparsity = torch.sigmoid(gate)
        return Cleaned((images - sparsity * residual).clamp(0, 1), code, sparsity)


ISMNS = {"paper": PaperISMN, "full": FullISMN}
