"""HopSkipJump (foolbox; Chen et al. 2020): an attacker who sees nothing but the predicted class, under a query budget."""

from __future__ import annotations

import math
from typing import Any

import foolbox
import torch
from foolbox import attacks as fa
from torch import Tensor, nn

from gandefense.attacks.spec import AttackSpec
from gandefense.attacks.victim import away_from, ever_right, is_broken, predict

DELTA = 0.01  # L2 norm of the noise by which a gradient is estimated, as a share of the distance still to go
NOISE_STARTS = 16  # uniform noise images that are tried as starts, beside the other images of the batch
PROBES = 100  # noise images in the first gradient estimate (Chen et al.); fewer under a small budget
MOST_PROBES = 300  # in any estimate; they are held in memory at once
MEMORY = 2**25  # numbers in those; decides how many images are attacked at a time


class _Stop(Exception):
    """The budget is spent, or every image has been broken within eps."""


class _Watched(nn.Module):
    """A network that counts its queries and keeps, for every image, the nearest point at which it was wrong.

    Args:
        network: images (B, C, H, W) → logits (B, K).
        clean: (B, C, H, W), the images under attack.
        goal: (B,), the classes to get away from.
        start: (B, C, H, W), points at which the network is wrong.
        spec: its eps and queries are read.
    """

    def __init__(self, network: nn.Module, clean: Tensor, goal: Tensor, start: Tensor, spec: AttackSpec) -> None:
        super().__init__()
        self.network, self.clean, self.goal = network, clean, goal
        self.eps, self.left = spec.eps, spec.queries
        self.nearest, self.answering = start, False
        self.distance = self._from_clean(start)

    def _from_clean(self, points: Tensor) -> Tensor:
        return (points - self.clean).flatten(1).abs().amax(1)

    def forward(self, points: Tensor) -> Tensor:
        if self.left == 0 or bool((self.distance <= self.eps).all()):
            raise _Stop
        self.left -= 1
        self.answering = True
        outputs = self.network(points)
        self.answering = False
        distance = self._from_clean(points)
        nearer = (outputs.argmax(1) != self.goal) & (distance < self.distance)
        self.nearest = torch.where(nearer.view(-1, 1, 1, 1), points, self.nearest)
        self.distance = torch.where(nearer, distance, self.distance)
        return outputs


class LinfHopSkipJump(fa.HopSkipJumpAttack):
    """foolbox's attack, with noise large enough to be seen in float32."""

    def __init__(self, queries: int, pixels: int) -> None:
        # gamma is such that foolbox's noise is DELTA of the distance; its own is 1 / pixels of it, lost in rounding.
        probes = max(1, min(PROBES, queries // 10))
        super().__init__(
            constraint="linf", gamma=DELTA * pixels, initial_gradient_eval_steps=probes, max_gradient_eval_steps=MOST_PROBES
        )

    def select_delta(self, originals: Any, distances: Any, step: int) -> Any:
        # foolbox divides noise by its norm over the whole batch instead of each image's own.
        return super().select_delta(originals, distances, step) * math.sqrt(len(originals))


def _starts(network: nn.Module, images: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """For every image the nearest point (B, C, H, W) of another class among the batch and noise; whether there is one (B,)."""
    noise = torch.rand((NOISE_STARTS, *images.shape[1:]), device=images.device, dtype=images.dtype)
    points = torch.cat([images, noise])
    distance = torch.cdist(images.flatten(1), points.flatten(1))
    distance[predict(network, points)[None, :] == goal[:, None]] = torch.inf
    distance[:, : len(images)].fill_diagonal_(torch.inf)  # one that a random network happens to get wrong is no start of its own
    nearest = distance.min(1)
    return points[nearest.indices], nearest.values.isfinite()


def run(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec) -> Tensor:
    """Attacked images (B, C, H, W); see `suite.attack`. Every image gets `spec.queries` queries in each restart.

    An image that is broken within eps gets no more queries once all images attacked with it are. One that is broken only
    outside the budget comes back cut to it, ±eps pixel by pixel; one that is wrong to begin with, or has no start, unchanged.
    """
    attacked, goal = images.clone(), away_from(network, images, labels, spec)
    rows = ever_right(network, images, goal).nonzero().squeeze(1)
    size = max(1, MEMORY // (MOST_PROBES * images[0].numel()))
    for restart in range(spec.restarts):
        if restart > 0:
            rows = rows[~is_broken(network, attacked[rows], goal[rows], spec.loss)]
        if not len(rows):
            break
        start, exists = _starts(network, images, goal)
        rows = rows[exists[rows]]
        for part in rows.split(size) if len(rows) else ():
            attacked[part] = _attack(network, images[part], goal[part], start[part], spec)
    return attacked


def _attack(network: nn.Module, clean: Tensor, goal: Tensor, start: Tensor, spec: AttackSpec) -> Tensor:
    watched = _Watched(network, clean, goal, start, spec).eval()
    model = foolbox.PyTorchModel(watched, bounds=(0, 1), device=clean.device)
    method = LinfHopSkipJump(spec.queries, clean[0].numel())
    while True:
        try:
            with torch.no_grad():
                method.run(model, clean, foolbox.Misclassification(goal), starting_points=watched.nearest)
        except _Stop:
            return foolbox.distances.linf.clip_perturbation(clean, watched.nearest, spec.eps)
        except (AssertionError, ValueError):
            # foolbox gives up where a randomised network changes its mind. It starts again until the budget is spent.
            if watched.answering:
                raise
