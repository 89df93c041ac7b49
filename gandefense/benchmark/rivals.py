"""What a diffusion purifier costs: its U-Net with random weights, for the cost alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIFFUSION_STEPS = 100  # U-Net evaluations an image: DiffPure's on CIFAR-10, t* = 0.1 of 1,000 steps (Nie et al. 2022)


class ResidualBlock(nn.Module):
    """Group norm, swish and convolution, twice; the time is added in between (Ho et al. 2020)."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(32, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(inner)))


class Attention(nn.Module):
    """One head of self-attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        seen = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(seen.transpose(1, 2).reshape(x.shape))


class DiffusionUNet(nn.Module):
    """The CIFAR-10 U-Net of DDPM (Ho et al. 2020, appendix B): 35.7 million parameters.

    Four resolutions from 32×32 down to 4×4, widths 1, 2, 2, 2 times 128, two residual blocks each (three on the way up),
    attention at 16×16 and in the middle.
    """

    def __init__(self, *, channels: int = 3, base: int = 128, multipliers: tuple[int, ...] = (1, 2, 2, 2)) -> None:
        super().__init__()
        time = 4 * base
        self.base = base
        self.time = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(channels, base, 3, padding=1)
        self.down, self.shrink, skips, width = nn.ModuleList(), nn.ModuleList(), [base], base
        for level, multiplier in enumerate(multipliers):
            for _ in range(2):
                block = nn.ModuleList([ResidualBlock(width, base * multiplier, time)])
                width = base * multiplier
                if level == 1:
                    block.append(Attention(width))
                self.down.append(block)
                skips.append(width)
            if level < len(multipliers) - 1:
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList([ResidualBlock(width, width, time), Attention(width), ResidualBlock(width, width, time)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(3):
                block = nn.ModuleList([ResidualBlock(width + skips.pop(), base * multiplier, time)])
                width = base * multiplier
                if level == 1:
                    block.append(Attention(width))
                self.up.append(block)
            if level > 0:
                self.grow.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm, self.out = nn.GroupNorm(32, width), nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, images: Tensor, step: Tensor) -> Tensor:
        """The noise in images (B, C, 32, 32) at diffusion steps (B,): (B, C, 32, 32)."""
        frequencies = torch.exp(-math.log(10_000) * torch.arange(self.base // 2, device=images.device) / (self.base // 2 - 1))
        angles = step[:, None].float() * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        x = self.stem(images)
        skips = [x]
        for number, block in enumerate(self.down):
            x = _through(block, x, time)
            skips.append(x)
            if number % 2 == 1 and number // 2 < len(self.shrink):
                x = self.shrink[number // 2](x)
                skips.append(x)
        x = _through(self.middle, x, time)
        for number, block in enumerate(self.up):
            x = _through(block, torch.cat([x, skips.pop()], dim=1), time)
            if number % 3 == 2 and number // 3 < len(self.grow):
                x = self.grow[number // 3](F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.out(F.silu(self.norm(x)))


def _through(block: nn.ModuleList, x: Tensor, time: Tensor) -> Tensor:
    for layer in block:
        x = layer(x, time) if isinstance(layer, ResidualBlock) else layer(x)
    return x
