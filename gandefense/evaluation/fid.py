"""FID between two sets of images, by torch-fidelity: optional, because it needs its Inception weights and many images."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gandefense.errors import UserError
from gandefense.evaluation.tables import MISSING, Outcomes

EXTRACTOR = "inception-v3-compat"  # the network and the weights that published figures are made with


class _Pictures(Dataset):
    """Images as torch-fidelity wants them: (3, H, W) uint8, one by one."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def check_installed() -> None:
    """Raise UserError unless torch-fidelity can be imported."""
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        raise UserError("fid=true needs torch-fidelity; install it with: pip install 'gandefense[fid]'") from None


def add(table: dict[str, list[dict[str, Any]]], outcomes: Outcomes, clean: Tensor, *, cuda: bool) -> None:
    """Write "fid" beside the other figures of `tables.restoration`, against the clean images (N, C, H, W) at 8 bits.

    Where Inception's weights cannot be had, the figure is "missing".
    """

    def figure(images: Tensor) -> float | str:
        try:
            return fid(images, clean, cuda=cuda)
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
            return MISSING

    for restorer, entries in table.items():
        cells = [cell for cell in outcomes if cell.restorer == restorer and not cell.survivors]
        for cell, entry in zip(cells, entries, strict=True):
            entry["restored"]["fid"] = figure(outcomes[cell].restored["images"])
            if entry["attacked"] is not None:
                entry["attacked"]["fid"] = figure(outcomes[cell].attacked["images"])


def fid(images: Tensor, reference: Tensor, *, cuda: bool = False, extractor: str = EXTRACTOR) -> float:
    """Fréchet inception distance (Heusel et al. 2017) between two sets of images; it is biased upwards for small sets.

    Args:
        images: (N, C, H, W) uint8.
        reference: (M, C, H, W) uint8.
        cuda: compute on the CUDA device.
        extractor: a feature extractor that torch-fidelity knows.

    Raises:
        UserError: its weights are neither on this machine nor can be downloaded.
    """
    import torch_fidelity

    try:
        with torch.random.fork_rng(devices=[]):
            found = torch_fidelity.calculate_metrics(
                input1=_Pictures(images),
                input2=_Pictures(reference),
                fid=True,
                cuda=cuda,
                feature_extractor=extractor,
                save_cpu_ram=True,
                verbose=False,
            )
    except OSError as error:  # urllib's errors among them
        raise UserError(f"fid=true: torch-fidelity's Inception weights could not be downloaded ({error})") from None
    return found["frechet_inception_distance"]
