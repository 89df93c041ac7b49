"""The generator: regenerates an image from the cleaned one, the code and the attack level."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.restorers.layers import norm_layer


class ModulatedBlock(nn.Module):
    """Two 3×3 convolutions and a residual connection; code and level scale and shift the features in between."""

    def __init__(self, inputs: int, outputs: int, condition: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = norm_layer(norm, outputs)
        self.modulation = nn.Linear(condition, 2 * outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        inner = F.leaky_relu(self.norm(self.conv1(x)) * (1 + scale) + shift, 0.2)
        return self.skip(x) + self.conv2(inner)


class Generator(nn.Module):
    """A U-Net conditioned on code and level; depth follows the image size, down to 8×8 (at most 6 halvings).

    Args:
        channels: of the image.
        size: of the image; 32 gives two halvings, 512 gives six.
        width: channels at full resolution; doubled at each halving up to 8 × width.
        code: length of the ISMN's code.
        norm: see layers.NORMS.
    """

    def __init__(self, *, channels: int, size: int, width: int = 24, code: int = 128, norm: str = "group") -> None:
        super().__init__()
        depth = max(1, min(6, (size // 8).bit_length() - 1))
        widths = [min(width * 2**i, width * 8) for i in range(depth + 1)]
        condition = 64
        self.condition = nn.Sequential(nn.Linear(code + 1, condition), nn.LeakyReLU(0.2))
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(ModulatedBlock(widths[i], widths[i + 1], condition, norm) for i in range(depth))
        self.middle = ModulatedBlock(widths[-1], widths[-1], condition, norm)
        self.up = nn.ModuleList(
            ModulatedBlock(widths[i + 1] + widths[i], widths[i], condition, norm) for i in reversed(range(depth))
        )
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, cleaned: Tensor, code: Tensor, level: Tensor) -> Tensor:
        """Regenerate images.

        Args:
            cleaned: (B, C, H, W) in [0, 1], from the ISMN.
            code: (B, 128).
            level: (B,), from the perturbation classifier.

        Returns:
            (B, C, H, W) in [0, 1].
        """
        condition = self.condition(torch.cat([code, 10 * level[:, None].to(code.dtype)], dim=1))
        x, skips = self.stem((cleaned - 0.5) * 4), []
        for block in self.down:
            skips.append(x)
            x = block(F.avg_pool2d(x, 2), condition)
        x = self.middle(x, condition)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], dim=1), condition)
        return (cleaned + self.out(x).float()).clamp(0, 1)
