"""Gradient maps of a whole attacked set, made once: the classifier is frozen, so they do not change between epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gandefense.attacks.cache import AttackedSet
from gandefense.attacks.suite import frozen
from gandefense.data.mapped import memory_mapped, remaining_chunks
from gandefense.files import locked, storing
from gandefense.precision import resolve
from gandefense.restorers.gradient_maps import GradientMaps, gradient_maps


class CachedMaps:
    """Gradient maps of an attacked set on disk: int8 (N, K·C, H, W), 127 standing for 1, and float16 log-norms (N, K)."""

    def __init__(self, folder: Path) -> None:
        self.maps = np.load(folder / "maps.npy", mmap_mode="r")
        self.log_norms = np.load(folder / "log_norms.npy", mmap_mode="r")

    def rows(self, chosen: Tensor, device: torch.device | str = "cpu") -> GradientMaps:
        """Maps (B, K·C, H, W) in [-1, 1] and log-norms (B, K) of some rows (B,), as float32.

        Only these rows are read; they travel to the device as int8 and float16 and are widened there.
        """
        index = chosen.numpy()
        maps = torch.from_numpy(self.maps[index]).to(device).float().div_(127)
        return GradientMaps(maps, torch.from_numpy(self.log_norms[index]).to(device).float())


def cached_maps(
    classifier: nn.Module, attacked: AttackedSet, classes: int, *, device: torch.device, precision: str, top_k: int | None = None
) -> CachedMaps:
    """Open the gradient maps of an attacked set, making them first where they are missing or incomplete.

    Args:
        classifier: the network that the set attacks, in eval mode.
        attacked: the set; the maps are stored in its folder.
        classes: K, the classifier's number of logits.
        device: to compute on.
        precision: see `gandefense.precision`.
        top_k: see `gradient_maps`.

    Raises:
        StorageError: the disk is full, or the set's folder cannot be written.
    """
    labels = top_k or classes
    precision = resolve(device, precision)
    folder = attacked.folder / f"maps-{labels if top_k is None else f'top{top_k}'}-{precision}"
    with storing(folder):
        folder.mkdir(exist_ok=True)
    count, channels, height, width = attacked.attacked.shape
    with frozen(classifier), locked(folder, wait=True):
        shape = (count, labels * channels, height, width)
        with storing(folder):
            done, maps, norms = memory_mapped(
                folder, len(attacked.specs), maps=(shape, "int8"), log_norms=((count, labels), "float16")
            )
        for _, rows in remaining_chunks(count, attacked.chunk, done, "gradient maps"):
            batch = attacked.rows(torch.arange(rows.start, rows.stop)).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                made = gradient_maps(classifier, batch.contiguous(memory_format=torch.channels_last), top_k=top_k)
            maps[rows] = (made.maps * 127).round().to(torch.int8).cpu().numpy()
            norms[rows] = made.log_norms.cpu().numpy().astype(np.float16)
            maps.flush()
            norms.flush()
    return CachedMaps(folder)
