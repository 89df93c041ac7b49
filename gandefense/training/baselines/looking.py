"""What the baselines' loops look at in the same way: a fixed grid of pictures, and a threshold of the score."""

from __future__ import annotations

import torch

from gandefense.attacks.cache import AttackedSet
from gandefense.data import datasets
from gandefense.data.batches import pieces, to_float
from gandefense.restorers.base import Restorer
from gandefense.training.run import Run


@torch.no_grad()
def grid(run: Run, restorer: Restorer, attacked: AttackedSet, images: datasets.Images, device: torch.device) -> None:
    """A fixed grid in TensorBoard: clean · attacked · restored · removed ×5."""
    rows = torch.arange(0, len(attacked), max(1, len(attacked) // 12))[:12]
    clean = to_float(images.images[attacked.source[rows]])
    batch = attacked.rows(rows)
    restored = restorer(batch.to(device)).images.cpu()
    run.grid("validation/clean_attacked_restored_residual", [clean, batch, restored, (batch - restored) * 5 + 0.5])


@torch.no_grad()
def score_threshold(restorer: Restorer, images: datasets.Images, rate: float, device: torch.device) -> float:
    """The score that a fraction `rate` of clean images exceeds."""
    scores = torch.cat([restorer(part).score for part in pieces(images.images, 128, device)])
    return scores.float().quantile(1 - rate).item()
