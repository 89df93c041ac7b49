"""What the GAN training loop measures from time to time: threshold, accuracy, detection, attack levels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gandefense.attacks.cache import AttackedSet
from gandefense.attacks.level import LEVELS, nearest_level, perturbation_level
from gandefense.data import datasets
from gandefense.data.batches import at_once, to_float
from gandefense.evaluation.metrics import auroc
from gandefense.restorers.gan import GANNetworks, GANRestorer

NOISES = (0.2, 0.3, 0.4)  # Gaussian levels on the [-1, 1] scale


@dataclass
class Validation:
    """What validation images showed.

    Attributes:
        figures: name → value, for the log.
        scores: the detector's, name → (N,): "clean", and of each perturbation those with which it misled the classifier.
        true: (M,) int64, number in LEVELS of each image's perturbation.
        estimated: (M,) int64, of what the perturbation classifier said.
    """

    figures: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    true: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    estimated: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def confusion(self) -> Tensor:
        """Counts (L, L): rows are the true levels, columns the estimated ones."""
        size = len(LEVELS)
        return torch.bincount(self.true * size + self.estimated, minlength=size * size).view(size, size)


@torch.no_grad()
def choose_threshold(networks: GANNetworks, validation: datasets.Images, rate: float, device: torch.device) -> float:
    """The attack logit that a fraction `rate` of clean validation images exceeds."""
    was_training = networks.training
    networks.eval()
    parts = validation.images.split(at_once(validation.images.shape[-1]))
    logits = torch.cat([networks.detect(to_float(part.to(device))) for part in parts])
    networks.train(was_training)
    return logits.float().quantile(1 - rate).item()


@torch.no_grad()
def validate(
    restorer: GANRestorer, classifier: nn.Module, attacked: AttackedSet, images: datasets.Images, device: torch.device
) -> Validation:
    """Validation figures in float32, on clean images, on attacked ones and under noise.

    Accuracy behind the restorer; the share that is flagged; AUROC of the detector's score, clean images against those whose
    perturbation misled the classifier; the share of levels that are estimated at most one step of LEVELS off.
    """
    restorer.eval()
    right: dict[str, list[Tensor]] = {}
    scores: dict[str, list[Tensor]] = {}
    true, estimated = [], []
    generator = torch.Generator().manual_seed(0)
    for rows in torch.arange(len(attacked)).split(at_once(images.images.shape[-1])):
        clean = to_float(images.images[attacked.source[rows]])
        labels = images.labels[attacked.source[rows]].to(device)
        flags = attacked.is_attacked(rows)
        noise = torch.randn(clean.shape, generator=generator)
        inputs = {"attacked": attacked.rows(rows)[flags], "clean": clean[~flags]}
        truth = {"attacked": labels[flags.to(device)], "clean": labels[~flags.to(device)]}
        before = {"attacked": clean[flags]}
        for level in NOISES:
            inputs[f"gaussian_{level}"] = (clean + level / 2 * noise).clamp(0, 1)[~flags]
            truth[f"gaussian_{level}"] = truth["clean"]
        for name, batch in inputs.items():
            if len(batch):
                placed = batch.to(device)
                restoration = restorer(placed)
                right.setdefault(name, []).append(classifier(restoration.images).argmax(1) == truth[name])
                right.setdefault(f"flagged_{name}", []).append(restoration.flagged)
                misled = classifier(placed).argmax(1) != truth[name]
                scores.setdefault(name, []).append(restoration.score[misled | (name == "clean")].float().cpu())
                true.append(nearest_level(perturbation_level(batch, before.get(name, clean[~flags]))))
                estimated.append(nearest_level(restoration.level.float().cpu()))
    figures = {f"validation/{name}": torch.cat(values).float().mean().item() for name, values in right.items()}
    seen = Validation(figures, {name: torch.cat(parts) for name, parts in scores.items()}, torch.cat(true), torch.cat(estimated))
    for name, met in seen.scores.items():
        if name != "clean" and len(met) and len(seen.scores.get("clean", ())):
            figures[f"validation/auroc_{name}"] = auroc(seen.scores["clean"], met)
    figures["validation/level_within_one_step"] = ((seen.true - seen.estimated).abs() <= 1).float().mean().item()
    return seen
