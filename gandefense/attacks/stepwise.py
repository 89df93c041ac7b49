"""Attacks of one gradient a step: FGSM, FFGSM, BIM, PGD, MIM, PGD on rectangles or in an L2 ball; losses, EOT and restarts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import eagerpy as ep
import foolbox
import torch
from foolbox import attacks as fa
from foolbox.attacks.gradient_descent_base import normalize_lp_norms, uniform_l2_n_balls
from torch import Tensor, nn

from gandefense.attacks.losses import LOSSES
from gandefense.attacks.noise import constant_on, rectangles, sums_on
from gandefense.attacks.spec import AttackSpec
from gandefense.attacks.victim import away_from, broken, count_classes, is_broken
from gandefense.errors import UserError


class Steered:
    """Mixed into foolbox's gradient attacks: a loss of ours, gradients averaged over several passes, starts by row.

    Args:
        spec: the attack; its step size, loss and eot are read.
        batch: the shape of the whole batch.
        options: of the foolbox attack.
    """

    def __init__(self, spec: AttackSpec, batch: torch.Size, **options: Any) -> None:
        super().__init__(abs_stepsize=spec.step(), **options)
        self.loss, self.eot, self.batch = spec.loss, spec.eot, batch

    def attack(self, model: foolbox.PyTorchModel, images: Tensor, goal: Any, eps: float, rows: Tensor) -> Tensor:
        """Attack the images (R, C, H, W) that lie in these rows (R,) of the batch.

        Under a joint loss an image comes back as it was at the last step that found it wrong and undetected, if any did:
        the steps after it may have traded one for the other.
        """
        self.rows, self.best = rows, images
        self.found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        with torch.enable_grad():
            last = self.run(model, images, goal, epsilon=eps)
        attacked = torch.where(self.found.view(-1, 1, 1, 1), self.best, last)
        return self.distance.clip_perturbation(images, attacked, eps)  # rounding may have left the budget

    def get_random_start(self, x0: ep.Tensor, epsilon: float) -> ep.Tensor:
        # Noise is drawn for the whole batch, so that a start does not depend on which other images still stand.
        return x0 + ep.uniform(x0, self.batch, -epsilon, epsilon)[self.rows]

    def get_loss_fn(self, model: foolbox.PyTorchModel, labels: ep.Tensor) -> Callable[[ep.Tensor], ep.Tensor]:
        if self.loss == "ce":
            return super().get_loss_fn(model, labels)

        def loss_fn(inputs: ep.Tensor) -> ep.Tensor:
            outputs = model(inputs).raw
            if self.loss == "joint":
                self.held &= broken(outputs.detach(), labels.raw, self.loss)
            return ep.astensor(LOSSES[self.loss](outputs, labels.raw).sum())

        return loss_fn

    def value_and_grad(self, loss_fn: Callable[[ep.Tensor], ep.Tensor], x: ep.Tensor) -> tuple[ep.Tensor, ep.Tensor]:
        self.held = torch.ones(len(x), dtype=torch.bool, device=x.raw.device)
        value, gradient = super().value_and_grad(loss_fn, x)
        for _ in range(self.eot - 1):  # gradients are added up rather than losses, which would keep every pass in memory
            another, change = super().value_and_grad(loss_fn, x)
            value, gradient = value + another, gradient + change
        bad = int((~gradient.raw.isfinite()).flatten(1).any(1).sum())
        if bad:  # its sign would be 0, and the attack would quietly stand still where it is
            raise UserError(f"the gradient that the attack follows has NaN or infinite entries, on {bad} of {len(x)} images")
        if self.loss == "joint":
            self.found |= self.held
            self.best = torch.where(self.held.view(-1, 1, 1, 1), x.raw, self.best)
        return value / self.eot, gradient / self.eot


class BasicIterative(Steered, fa.LinfBasicIterativeAttack):
    """FGSM with one step (Goodfellow et al. 2015), BIM with many (Kurakin et al. 2017)."""


class ProjectedGradientDescent(Steered, fa.LinfPGD):
    """PGD (Madry et al. 2018), and FFGSM with one long step (Wong et al. 2020)."""


class MomentumIterative(Steered, fa.LinfMomentumIterativeFastGradientMethod):
    """MIM of Dong et al. (2018), eq. 6: the momentum gathers L1-normalised gradients.

    foolbox's own class for L-infinity gathers signs; this overrides that one hook.
    """

    def normalize(self, gradients: Any, *, x: Any, bounds: Any) -> Any:
        return normalize_lp_norms(gradients, p=1)


class CoarseDescent(Steered, fa.LinfPGD):
    """PGD whose perturbation is constant on the rectangles of a grid, drawn for every image, but where a step met 0 or 1.

    Coarse as Square's perturbations are, but found by gradients: a step follows the sign of the gradient's sum over a
    rectangle and channel. No attack of the literature, and weaker than PGD, which no grid binds.
    """

    def get_random_start(self, x0: ep.Tensor, epsilon: float) -> ep.Tensor:
        self.grid = rectangles(self.batch, x0.raw.device)[self.rows]
        noise = ep.uniform(x0, self.batch, -epsilon, epsilon)[self.rows]
        return x0 + ep.astensor(constant_on(self.grid, noise.raw))

    def normalize(self, gradients: ep.Tensor, *, x: ep.Tensor, bounds: Any) -> ep.Tensor:
        return ep.astensor(constant_on(self.grid, sums_on(self.grid, gradients.raw)).sign())


class EuclideanDescent(Steered, fa.L2PGD):
    """PGD within an L2 ball (Madry et al. 2018), its steps along the gradient itself, from a random point of the ball."""

    def get_random_start(self, x0: ep.Tensor, epsilon: float) -> ep.Tensor:
        ball = uniform_l2_n_balls(x0, self.batch[0], self.batch[1:].numel())
        return x0 + epsilon * ball.reshape(self.batch)[self.rows]

    def normalize(self, gradients: ep.Tensor, *, x: ep.Tensor, bounds: Any) -> ep.Tensor:
        # A confident network's gradient is shorter than the least length that foolbox divides by, and would give no step at all.
        largest = gradients.raw.abs().amax((1, 2, 3), keepdim=True)
        scaled = torch.where(largest > 0, gradients.raw / largest.clamp(min=torch.finfo(largest.dtype).tiny), gradients.raw)
        return normalize_lp_norms(ep.astensor(scaled), p=2)


METHODS: dict[str, Callable[[AttackSpec, torch.Size], Steered]] = {
    # one step of size eps (Goodfellow et al. 2015)
    "fgsm": lambda s, batch: BasicIterative(s, batch, steps=1, random_start=False),
    # uniform random start, one step of 1.25 eps, projected (Wong et al. 2020)
    "ffgsm": lambda s, batch: ProjectedGradientDescent(s, batch, steps=1, random_start=True),
    # no random start, eps / 10 a step (Kurakin et al. 2017; the step such that ten of them reach the budget's edge)
    "bim": lambda s, batch: BasicIterative(s, batch, steps=s.steps, random_start=False),
    # random start, eps / 4 a step (Madry et al. 2018: 2/255 at 8/255)
    "pgd": lambda s, batch: ProjectedGradientDescent(s, batch, steps=s.steps, random_start=True),
    # momentum 1, eps / 10 a step (Dong et al. 2018)
    "mim": lambda s, batch: MomentumIterative(s, batch, steps=s.steps, momentum=1.0),
    # a random grid and start, eps / 4 a step
    "pgd-coarse": lambda s, batch: CoarseDescent(s, batch, steps=s.steps, random_start=True),
    # random start, eps / 4 a step
    "pgd-l2": lambda s, batch: EuclideanDescent(s, batch, steps=s.steps, random_start=True),
}


def run(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec) -> Tensor:
    """Attacked images (B, C, H, W); see `suite.attack`. A later restart attacks only what still stands."""
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=images.device)
    goal, kind = away_from(network, images, labels, spec), foolbox.Misclassification
    if spec.labels == "random_target":
        classes = count_classes(network, images)
        shift = torch.randint(1, classes, labels.shape, device=labels.device)
        goal, kind = (labels + shift) % classes, foolbox.TargetedMisclassification
    method = METHODS[spec.attack](spec, images.shape)
    attacked = images.clone()
    rows = torch.arange(len(images), device=images.device)
    for restart in range(spec.restarts):
        if restart > 0:
            rows = rows[~is_broken(network, attacked[rows], labels[rows], spec.loss)]
        if not len(rows):
            break
        attacked[rows] = method.attack(model, images[rows], kind(goal[rows]), spec.eps, rows)
    return attacked
