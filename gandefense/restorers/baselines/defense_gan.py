"""Defense-GAN (Samangouei, Kabkab, Chellappa, ICLR 2018): the nearest image that a generator of clean images can make.

z* = argmin ‖G(z) − x‖² is searched by gradient descent with momentum from several random starts; G(z*) is the restored
image. Generator and search are those of the authors' code for MNIST (kabkabm/defensegan on GitHub), with fewer channels and
for any size. The article has no CIFAR-10: a generator that is trained on a CPU in minutes makes no natural image well, so
that much of a clean image is lost here. That is the method's limit, and it shows in the clean accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import Restoration, Restorer
from gandefense.restorers.trn import removed
from gandefense.weights_io import check_sizes, finite_number, rebuild


def he_initialisation(network: nn.Module) -> None:
    """Start layers so that ReLUs keep a signal's size (He et al. 2015), as the authors do; torch's own start is a grey image.

    Of a transposed convolution's kernel only one number in stride² meets each output pixel, which torch does not count.
    """
    for layer in network.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            inputs = layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            inputs = layer.weight[0].numel()
        else:
            continue
        nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs))
        nn.init.zeros_(layer.bias)


class ImageGenerator(nn.Module):
    """A linear layer and three transposed convolutions with ReLU: latents (B, latent) → images (B, C, size, size) in [0, 1].

    No normalisation, as in the authors' configuration: an image does not depend on its batch.

    Args:
        channels: of the image.
        size: height and width of the image.
        latent: numbers that an image is made from; the authors have 128.
        width: channels at half the resolution, doubled towards the start; the authors have 64.
    """

    def __init__(self, *, channels: int, size: int, latent: int = 64, width: int = 32) -> None:
        super().__init__()
        self.latent = latent
        self.shape = (channels, size, size)
        self.start = (4 * width, -(-size // 8), -(-size // 8))
        self.expand = nn.Linear(latent, self.start[0] * self.start[1] * self.start[2])
        self.layers = nn.Sequential(
            *(nn.ReLU(), nn.ConvTranspose2d(4 * width, 2 * width, 5, stride=2, padding=2, output_padding=1)),
            *(nn.ReLU(), nn.ConvTranspose2d(2 * width, width, 5, stride=2, padding=2, output_padding=1)),
            *(nn.ReLU(), nn.ConvTranspose2d(width, channels, 5, stride=2, padding=2, output_padding=1), nn.Sigmoid()),
        )
        he_initialisation(self)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, latent), standard normal in training → images (B, C, size, size) in [0, 1]."""
        made = self.layers(self.expand(latents).view(-1, *self.start))
        return made[..., : self.shape[1], : self.shape[2]]  # sizes that 8 does not divide are cut out


@dataclass(frozen=True)
class LatentSearch:
    """How z* is searched: v ← momentum · v + ∇ mean (G(z) − x)², z ← z − rate · v; the last fifth of the steps at a tenth.

    Raises:
        UserError: a value out of range.
    """

    steps: int = 30  # L; the authors have 200
    restarts: int = 2  # R, random starts of every image, of which the best is kept; the authors have 10
    rate: float = 10.0  # as the authors', on pixels from 0 to 1
    momentum: float = 0.7  # as the authors'
    fixed_starts: bool = False  # the same starts for every image and every time, instead of new random ones
    truncated: int = 5  # steps that the view `detached` differentiates, the last ones

    def __post_init__(self) -> None:
        counts = {"steps": self.steps, "restarts": self.restarts, "truncated": self.truncated}
        for name, value in counts.items():
            if type(value) is not int or value < 1:
                raise UserError(f"search.{name} must be a whole number and at least 1, got {value!r}")
        if not self.rate > 0:
            raise UserError(f"search.rate must be positive, got {self.rate}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"search.momentum must be at least 0 and less than 1, got {self.momentum}")
        if type(self.fixed_starts) is not bool:
            raise UserError(f"search.fixed_starts must be true or false, got {self.fixed_starts!r}")


def distances(made: Tensor, images: Tensor) -> Tensor:
    """Mean squared difference of images (B, C, H, W): (B,)."""
    return (made - images).square().flatten(1).mean(1)


def descend(generator: nn.Module, images: Tensor, starts: Tensor, search: LatentSearch, *, recorded: int = 0) -> Tensor:
    """Gradient descent on the distance of G(z) to an image, from one start for each image.

    It takes gradients inside `torch.no_grad` too.

    Args:
        generator: latents (B, latent) → images (B, C, H, W).
        images: (B, C, H, W) in [0, 1].
        starts: (B, latent).
        search: steps, rate and momentum.
        recorded: so many of the last steps are part of the caller's graph, through which z* depends on the images; what was
            found before them is held constant.

    Returns:
        z*, (B, latent).
    """
    latents, speed = starts.detach(), torch.zeros_like(starts)
    with torch.enable_grad():
        for step in range(search.steps):
            in_graph = step >= search.steps - recorded
            if not latents.requires_grad:
                latents = latents.requires_grad_(True)
            # Every image has a distance of its own, so that the sum's gradient is each one's.
            distance = distances(generator(latents), images if in_graph else images.detach()).sum()
            (gradient,) = torch.autograd.grad(distance, latents, create_graph=in_graph)
            rate = search.rate * (0.1 if step >= math.ceil(0.8 * search.steps) else 1)
            speed = search.momentum * speed + gradient
            latents = latents - rate * speed
            if not in_graph:
                latents, speed = latents.detach(), speed.detach()
    return latents


class DefenseGANRestorer(Restorer):
    """The search before a classifier that it knows nothing of.

    Views: `straight_through` takes the identity's gradient. `exact` differentiates all steps of the search (unrolled), from
    the start that turned out best; which start that is depends on the image in jumps, and has no gradient. `smooth` is
    `exact`: nothing else is hard. `detached` holds constant what was found before the last `truncated` steps, and
    differentiates those alone: with the whole search held constant nothing would depend on the image, and an attack would be
    blind.

    Args:
        generator: latents → images.
        search: how z* is searched. Its random starts come from torch's global generator.
        threshold: of the score, chosen on validation images.
    """

    def __init__(self, generator: ImageGenerator, search: LatentSearch, *, threshold: float = float("inf")) -> None:
        super().__init__()
        self.generator = generator
        self.search = search
        self.threshold = threshold
        starts = torch.randn(search.restarts, generator.latent, generator=torch.Generator().manual_seed(0))
        self.register_buffer("fixed_starts", starts, persistent=False)

    def starts(self, images: Tensor) -> Tensor:
        """Where the search begins, (B, restarts, latent): normal with a standard deviation of 1/√latent, as the authors'."""
        shape = (len(images), self.search.restarts, self.generator.latent)
        if self.search.fixed_starts:
            return self.fixed_starts.to(images.dtype).expand(shape) / math.sqrt(self.generator.latent)
        return torch.randn(shape, device=images.device, dtype=images.dtype) / math.sqrt(self.generator.latent)

    def best(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The best z* (B, latent) of all restarts, which are searched in one go, and the start (B, latent) that led there."""
        if images.shape[1:] != self.generator.shape:
            raise UserError(f"this Defense-GAN makes images of shape {self.generator.shape}, got {tuple(images.shape[1:])}")
        starts = self.starts(images)
        goals = images.detach().repeat_interleave(self.search.restarts, dim=0)
        found = descend(self.generator, goals, starts.flatten(0, 1), self.search)
        with torch.no_grad():
            nearest = distances(self.generator(found), goals).view(len(images), -1).argmin(1)
        rows = torch.arange(len(images), device=images.device)
        return found.view(starts.shape)[rows, nearest], starts[rows, nearest]

    def forward(self, images: Tensor) -> Restoration:
        """Restore a batch; `score` is the root mean square reconstruction error, in units of 1/255, as in the article's 4.4."""
        latents, _ = self.best(images)
        restored = self.generator(latents)
        residual = images - restored
        score = removed(residual)
        return Restoration(restored, score, score > self.threshold, torch.full_like(score, torch.nan), {"residual": residual})

    def scored(self, images: Tensor, view: str) -> tuple[Tensor, Tensor]:
        # The graph of a search is large: only the best start's is recorded, in a second search.
        _, starts = self.best(images)
        recorded = self.search.truncated if view == "detached" else self.search.steps
        restored = self.generator(descend(self.generator, images, starts, self.search, recorded=recorded))
        return restored, removed(images - restored)


def from_weights(
    tensors: dict[str, Tensor], description: dict[str, Any], classifier: nn.Module, source: Path
) -> DefenseGANRestorer:
    """A restorer from the contents of a weights file; raises UserError when they do not fit together."""
    generator = rebuild(ImageGenerator, description.get("network"), tensors, source=source)
    options = description.get("search")
    check_sizes(options, source=source)
    for name in ("rate", "momentum"):
        finite_number(options.get(name), f"search.{name}", source=source)
    try:
        search = LatentSearch(**options)
    except TypeError as error:
        raise UserError(f"{source}: its description of the search is incomplete ({error})") from None
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    threshold = finite_number(description.get("threshold", float("inf")), "threshold", source=source, infinite=True)
    return DefenseGANRestorer(generator, search, threshold=threshold)
