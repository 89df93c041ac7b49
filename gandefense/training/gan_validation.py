"""What the GAN training loop looks at from time to time: threshold, validation figures, TensorBoard grids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gandefense.attacks.cache import AttackedSet
from gandefense.data import datasets
from gandefense.data.batches import at_once, to_float
from gandefense.restorers.gan import GANNetworks, GANRestorer
from gandefense.training.run import Run


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
) -> dict[str, float]:
    """Validation accuracy behind the restorer, in float32: clean, attacked, Gaussian levels; and the rate of flags."""
    restorer.eval()
    right: dict[str, list[Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    for rows in torch.arange(len(attacked)).split(at_once(images.images.shape[-1])):
        clean = to_float(images.images[attacked.source[rows]])
        labels = images.labels[attacked.source[rows]].to(device)
        flags = attacked.is_attacked(rows)
        noise = torch.randn(clean.shape, generator=generator)
        inputs = {"attacked": attacked.rows(rows)[flags], "clean": clean[~flags]}
        truth = {"attacked": labels[flags.to(device)], "clean": labels[~flags.to(device)]}
        for level in (0.2, 0.4):
            inputs[f"gaussian_{level}"] = (clean + level / 2 * noise).clamp(0, 1)[~flags]
            truth[f"gaussian_{level}"] = truth["clean"]
        for name, batch in inputs.items():
            if len(batch):
                restoration = restorer(batch.to(device))
                right.setdefault(name, []).append(classifier(restoration.images).argmax(1) == truth[name])
                right.setdefault(f"flagged_{name}", []).append(restoration.flagged)
    return {f"validation/{name}": torch.cat(values).float().mean().item() for name, values in right.items()}


@torch.no_grad()
def grids(run: Run, restorer: GANRestorer, attacked: AttackedSet, images: datasets.Images, device: torch.device) -> None:
    """Fixed grids: clean · attacked · sparsity map · cleaned · each round · residual ×10, for the attacks and a noise level."""
    columns = min(len(attacked), max(4, min(12, 1024 // images.images.shape[-1])))  # fewer of large images
    rows = torch.linspace(0, len(attacked) - 1, columns).long()  # not every so many, which could be always the same attack
    clean = to_float(images.images[attacked.source[rows]])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for name, batch in {"attacked": attacked.rows(rows), "gaussian_0.3": (clean + 0.15 * noise).clamp(0, 1)}.items():
        made = restorer(batch.to(device)).maps
        rounds = [made[f"round_{number + 1}"] for number in range(restorer.rounds)]
        run.grid(f"pictures/{name}", [clean, batch, made["sparsity"], made["cleaned"], *rounds, made["residual"] * 5 + 0.5])
