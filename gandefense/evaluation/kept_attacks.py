"""Attacked images that no restorer had a part in, kept on disk: the next restorer's evaluation finds them ready."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from gandefense.attacks.cache import code_digest
from gandefense.attacks.spec import ONE_STEP, UNIVERSAL, AttackSpec
from gandefense.attacks.suite import EPS_TOLERANCE
from gandefense.data.batches import tensor_hash
from gandefense.data.sources import data_root
from gandefense.errors import UserError
from gandefense.evaluation.records import PACKAGE
from gandefense.files import write_text
from gandefense.weights_io import load_weights, save_weights

FOLDER = "evaluated"  # sub-folder of the data root
ABOUT = "about.json"  # in a set's folder: what it was made from
LIBRARIES = ("torch", "foolbox", "eagerpy", "pyautoattack", "kornia")
GB = 1e9


def _digest() -> str:
    """Of all code between clean images and attacked ones, without comments and docstrings."""
    attacks, classifiers = (sorted((PACKAGE / name).rglob("*.py")) for name in ("attacks", "classifiers"))
    others = ("data/batches.py", "data/datasets.py", "evaluation/work.py", "restorers/base.py", "memory.py")
    return code_digest([*attacks, *classifiers, *(PACKAGE / name for name in others)])


_CODE = _digest()  # when this is imported: what is edited while a process runs is not what it runs


class KeptAttacks:
    """The attacked images of one evaluation's data set, by attacked network and attack.

    One set is one folder, named after everything its images depend on: the network's file, the clean images and how they are
    cut into batches, the attack, the seed, the code and the libraries. So nothing that is out of date is ever found.

    Args:
        images: of the whole data set.
        contents: of the clean images and labels, as a digest.
        batch_size: images a batch.
        seed: of the evaluation.
        device: the kind of device that attacks, such as "cpu".
        largest: gigabytes that a set may take; one that would take more is not kept.
        root: the data root; None for the usual one.
    """

    def __init__(
        self,
        images: Tensor,
        contents: str,
        *,
        batch_size: int,
        seed: int,
        device: str,
        largest: float,
        root: str | None = None,
    ) -> None:
        self.size = 4 * images.numel() / GB  # float32
        self.largest = largest
        self.root = root
        made_with = {"code": _CODE, **{name: importlib.metadata.version(name) for name in LIBRARIES}}
        self.about = {"images": contents, "batch_size": batch_size, "seed": seed, "device": device, "made_with": made_with}

    def wanted(self, spec: AttackSpec) -> bool:
        """Whether the images of an attack are worth their place: it took more than a step, and they are not too large."""
        quick = spec.attack in (*ONE_STEP, UNIVERSAL) or spec.norm == "noise"
        return not quick and self.size <= self.largest

    def _of(self, network: str, key: str) -> dict[str, Any]:
        return {**self.about, "network": network, "attack": key}

    def _place(self, about: dict[str, Any], spec: AttackSpec) -> Path:
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return data_root(self.root) / FOLDER / f"{spec.attack}-{digest[:12]}"

    def read(self, network: str, key: str, spec: AttackSpec, number: int, clean: Tensor) -> Tensor | None:
        """The attacked images of a batch, or None where they are missing, damaged, or leave the attack's budget.

        Args:
            network: a digest of the attacked network's file, description and tensors.
            key: whose images, attacked how.
            spec: the attack.
            number: of the batch.
            clean: its clean images (B, C, H, W) in [0, 1].

        Returns:
            (B, C, H, W) in [0, 1], channels last.
        """
        about = self._of(network, key)
        path = self._place(about, spec) / f"{number:05d}.safetensors"
        try:
            tensors, description = load_weights(path)
        except UserError:
            return None
        images = tensors.get("images")
        if description.get("about") != about or images is None or images.shape != clean.shape:
            return None
        if description.get("contents") != tensor_hash(images):  # a flipped bit: safetensors keeps no checksum
            return None
        with suppress(OSError):  # on a read-only disk nobody asks when a set was last used
            os.utime(path.parent)
        images = images.to(clean.device).contiguous(memory_format=torch.channels_last)
        change = (images - clean).flatten(1)
        length = change.norm(dim=1).max() if spec.norm == "l2" else change.abs().max()
        inside = length <= spec.eps * (1 + EPS_TOLERANCE) + EPS_TOLERANCE and images.min() >= 0 and images.max() <= 1
        return images if inside else None

    def write(self, network: str, key: str, spec: AttackSpec, number: int, images: Tensor) -> None:
        """Keep the attacked images (B, C, H, W) of a batch; where that cannot be, nothing is kept and nothing is lost.

        The other arguments are those of `read`.
        """
        about = self._of(network, key)
        place = self._place(about, spec)
        ready = images.detach().cpu().contiguous()
        with suppress(OSError, UserError, SafetensorError):  # read-only, full, or being cleaned up at this moment
            place.mkdir(parents=True, exist_ok=True)
            if not (place / ABOUT).is_file():
                write_text(place / ABOUT, json.dumps(about, indent=1) + "\n")
            save_weights(place / f"{number:05d}.safetensors", {"images": ready}, {"about": about, "contents": tensor_hash(ready)})
