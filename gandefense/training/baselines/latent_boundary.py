"""LAD's latent space: a small autoencoder, linear boundaries of a support vector machine in it, and steps across them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.errors import UserError


class AutoEncoder(nn.Module):
    """Three strided convolutions to a flat latent code, and three doublings back.

    Args:
        channels: of the image.
        size: height and width of the image.
        width: channels at half the resolution, doubled at a quarter.
        features: channels of the code at an eighth of the resolution; the code has features · (size / 8)² numbers.
    """

    def __init__(self, *, channels: int, size: int, width: int = 32, features: int = 32) -> None:
        super().__init__()
        self.size = size
        self.shape = (features, -(-size // 8), -(-size // 8))
        self.encoder = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.2)),
            nn.Conv2d(2 * width, features, 3, stride=2, padding=1),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(features, 8 * width, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, 4 * channels, 3, padding=1), nn.PixelShuffle(2)),
        )

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, size, size) in [0, 1] → latent codes (B, n)."""
        return self.encoder((images - 0.5) * 4).flatten(1)

    def decode(self, latents: Tensor) -> Tensor:
        """Latent codes (B, n) → images (B, C, size, size) in [0, 1]."""
        decoded = torch.sigmoid(self.decoder(latents.view(-1, *self.shape)).float())
        return decoded[..., : self.size, : self.size]  # sizes that 8 does not divide are cut out

    def forward(self, images: Tensor) -> Tensor:
        """Images → their reconstructions."""
        return self.decode(self.encode(images))


class Boundaries(nn.Module):
    """One hyperplane a class in latent space, between the class and all others.

    Attributes:
        normals: (K, n), of length 1, pointing to the class's own side.
        offsets: (K,) so that ⟨normal, z⟩ + offset is z's signed distance from the boundary.
        reach: (K,) mean distance of a class's own codes from its boundary.
    """

    def __init__(self, classes: int, length: int) -> None:
        super().__init__()
        self.register_buffer("normals", torch.zeros(classes, length))
        self.register_buffer("offsets", torch.zeros(classes))
        self.register_buffer("reach", torch.zeros(classes))

    @torch.no_grad()
    def fit(self, latents: Tensor, labels: Tensor, *, steps: int, penalty: float) -> None:
        """Fit linear support vector machines, one class against the rest: least mean hinge loss + penalty/2 · ‖w‖².

        A class's images and all others weigh the same together, otherwise "never this class" would be the best answer.
        Full-batch Adam from zero, so that nothing is random.

        Args:
            latents: (N, n).
            labels: (N,) of all K classes.
            steps: of Adam.
            penalty: of the squared length of w, for codes that are centred and scaled to a mean square of 1.

        Raises:
            UserError: a class without an image.
        """
        classes = len(self.offsets)
        counts = torch.bincount(labels, minlength=classes)
        if (counts == 0).any() or (counts == len(labels)).any():
            raise UserError(f"every class needs an image for its boundary, and one beside it; images of each: {counts.tolist()}")
        centre = latents.mean(0)
        scale = (latents - centre).square().mean().sqrt().clamp_min(1e-12)
        inputs = (latents - centre) / scale
        own = F.one_hot(labels, classes).to(inputs.dtype)
        signs = 2 * own - 1
        shares = 0.5 * own / counts + 0.5 * (1 - own) / (len(labels) - counts)
        weight = torch.zeros(classes, latents.shape[1], device=latents.device, requires_grad=True)
        offset = torch.zeros(classes, device=latents.device, requires_grad=True)
        optimiser = torch.optim.Adam([weight, offset], lr=0.02)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
            with torch.enable_grad():
                hinge = F.relu(1 - signs * (inputs @ weight.T + offset))
                loss = (shares * hinge).sum() + penalty / 2 * weight.square().sum()
            weight.grad, offset.grad = torch.autograd.grad(loss, [weight, offset])
            optimiser.step()
        lengths = weight.norm(dim=1).clamp_min(1e-12)
        self.normals.copy_(weight / lengths[:, None])
        self.offsets.copy_(offset * scale / lengths - self.normals @ centre)
        self.reach.copy_((own * self.distances(latents).abs()).sum(0) / counts)

    def distances(self, latents: Tensor) -> Tensor:
        """Signed distances (B, K) of codes (B, n) from all boundaries; positive on the class's own side."""
        return latents @ self.normals.T + self.offsets

    def moved(self, latents: Tensor, labels: Tensor, amount: Tensor | float) -> Tensor:
        """Codes (B, n) moved along the normal of their own class's boundary, towards the other side.

        Args:
            latents: (B, n).
            labels: (B,).
            amount: how far, (B,) or one for all, in units of the class's `reach`: 1 takes a typical image to the boundary, 2 as
                far beyond it as it was before it.
        """
        distance = amount * self.reach[labels]
        return latents - distance[:, None] * self.normals[labels]
