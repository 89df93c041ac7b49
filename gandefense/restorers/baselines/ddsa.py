"""DDSA (Bakhti et al., IEEE Access 2019): a denoising autoencoder whose fully connected code is held sparse by its bias.

The article's tables could not be read; widths, depth and the code's size are ours. Nothing but the code reaches the
decoder, so that natural images lose detail: that is the method, not an accident of this implementation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import Restoration, Restorer
from gandefense.restorers.sparsity_mapping import SparseCode
from gandefense.restorers.trn import removed
from gandefense.weights_io import finite_number, rebuild


class SparseAutoEncoder(nn.Module):
    """Two strided convolutions, a fully connected sparse code with ReLU, a fully connected layer, two doublings.

    Args:
        channels: of the image.
        size: height and width of the image, divisible by 4.
        width: channels at half the resolution, an even number.
        features: channels at a quarter of the resolution, on either side of the code.
        code: numbers in the code. A ReLU keeps one sign only: it takes about two to carry one signed number.
        target: mean activation µ that every number of the code is held at.

    Raises:
        UserError: a size that is not divisible by 4, an odd width.
    """

    def __init__(
        self, *, channels: int, size: int, width: int = 32, features: int = 9, code: int = 1024, target: float = 0.1
    ) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise UserError(f"DDSA's autoencoder needs an even width, got {width}")
        if size % 4:
            raise UserError(f"DDSA's autoencoder needs images whose size is divisible by 4, got {size}")
        self.shape = (features, size // 4, size // 4)
        flat = features * (size // 4) ** 2
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, features, 3, stride=2, padding=1),
        )
        self.code = SparseCode(flat, code, target=target)
        self.expand = nn.Linear(code, flat)
        self.decoder = nn.Sequential(
            *(nn.Conv2d(features, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(0.2)),
            nn.Conv2d(width // 2, channels, 3, padding=1),
        )
        self._start_in_pairs(flat, code)

    @torch.no_grad()
    def _start_in_pairs(self, flat: int, code: int) -> None:
        """Start the fully connected layers as a projection: every direction twice, with either sign, for ReLU keeps one.

        From a random start a short training would spend its time on finding this. The scale 0.5 puts the mean activation
        near its target.
        """
        directions = nn.init.orthogonal_(torch.empty(max(1, min(flat, code // 2)), flat))
        pairs = torch.cat([directions, -directions])[:code]
        self.code.linear.weight[: len(pairs)] = 0.5 * pairs
        self.expand.weight[:, : len(pairs)] = 2 * pairs.T
        nn.init.zeros_(self.code.linear.bias)
        nn.init.zeros_(self.expand.bias)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → the code (B, code), non-negative."""
        return self.code(self.encoder((images - 0.5) * 4).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → reconstructions of the same shape and range."""
        decoded = self.decoder(self.expand(self.encode(images)).view(-1, *self.shape))
        return torch.sigmoid(decoded.to(images.dtype))


def worst_perturbation(network: nn.Module, images: Tensor, *, eps: float, steps: int) -> Tensor:
    """The inner maximum of DDSA's training: PGD on J(x, f(x')) = mean (x − f(x'))², not on any classifier.

    Args:
        network: f; its parameters must be frozen and its running statistics at rest while this runs.
        images: x, (B, C, H, W) in [0, 1].
        eps: greatest change of a pixel.
        steps: signed gradient steps of 2.5 · eps / steps from a random start.

    Returns:
        x', (B, C, H, W) in [0, 1].
    """
    attacked = (images + eps * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    for _ in range(steps):
        attacked.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.mse_loss(network(attacked), images, reduction="sum"), attacked)
        stepped = attacked.detach() + 2.5 * eps / steps * gradient.sign()
        attacked = (images + (stepped - images).clamp(-eps, eps)).clamp(0, 1)
    return attacked


class DDSARestorer(Restorer):
    """The autoencoder before a classifier that it knows nothing of.

    Args:
        network: the autoencoder.
        threshold: of the score, chosen on validation images. DDSA itself rejects nothing; the score is ours.
    """

    def __init__(self, network: SparseAutoEncoder, *, threshold: float = float("inf")) -> None:
        super().__init__()
        self.network = network
        self.threshold = threshold

    def forward(self, images: Tensor) -> Restoration:
        """Reconstruct a batch; `score` is the root mean square of what was removed, in units of 1/255."""
        restored = self.network(images)
        residual = images - restored
        score = removed(residual)
        return Restoration(restored, score, score > self.threshold, torch.full_like(score, torch.nan), {"residual": residual})


def from_weights(tensors: dict[str, Tensor], description: dict[str, Any], classifier: nn.Module, source: Path) -> DDSARestorer:
    """A restorer from the contents of a weights file; raises UserError when they do not fit together."""
    network = rebuild(SparseAutoEncoder, description.get("network"), tensors, source=source)
    threshold = finite_number(description.get("threshold", float("inf")), "threshold", source=source, infinite=True)
    return DDSARestorer(network, threshold=threshold)
