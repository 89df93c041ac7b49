"""Calibration of the evaluator: defences that are known not to hold, each hiding it in its own way, and what it says of them.

An evaluator that is any good leaves nothing of any of them and says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense import zoo
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.restorers.base import Restoration, Restorer

EPS = 8 / 255
IMAGES = 256


def _restoration(images: Tensor) -> Restoration:
    nothing = torch.zeros(len(images), device=images.device)
    return Restoration(images, nothing, nothing.bool(), torch.full_like(nothing, torch.nan), {})


class ThreeBit(Restorer):
    """Quantises to eight grey levels a channel: its true gradient is zero everywhere."""

    def forward(self, images: Tensor) -> Restoration:
        """Restore images (B, C, H, W) in [0, 1]."""
        return _restoration((images * 7).round() / 7)


class RandomResize(Restorer):
    """Resizes to a random size and pads at a random place (Xie et al. 2018), anew for every batch."""

    def forward(self, images: Tensor) -> Restoration:
        """Restore images (B, C, H, W) in [0, 1]."""
        full = images.shape[-1]
        size = int(torch.randint(full - 6, full + 1, ()))
        top, left = (int(torch.randint(0, full - size + 1, ())) for _ in range(2))
        small = F.interpolate(images, size=(size, size), mode="nearest")
        return _restoration(F.pad(small, (left, full - size - left, top, full - size - top), value=0.5))


class Confident(nn.Module):
    """The shipped classifier with its logits times 1,000, as a distilled network's: cross-entropy has no gradient left."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = zoo.load_classifier("cifar10/classifier")

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → logits (B, K)."""
        return 1000 * self.classifier(images)


@dataclass(frozen=True)
class Case:
    """One defence that does not hold, and the attacks that it meets: naive ones first, then better ones on what stands.

    Attributes:
        title: the defence in words.
        settings: of `gandefense.evaluate`.
        naive: title of the attack that it was built to stop.
        view: the view that this attack differentiates.
    """

    title: str
    settings: dict[str, Any] = field(hash=False)
    naive: str = "pgd-5"
    view: str = "exact"

    @property
    def restorer(self) -> str:
        """The restorer's name in the results."""
        return self.settings["restorers"][0]


def _attacks(views: list[str], *attacks: dict[str, Any]) -> dict[str, Any]:
    return {"gray_box": [], "white_box": {"views": views, "attacks": list(attacks)}}


NAIVE = {"attack": "pgd", "steps": 5}
CASES: dict[str, Case] = {
    "quantiser": Case(
        "quantiser to 3 bits",
        {
            "restorers": [f"{__name__}.ThreeBit"],
            **_attacks(
                ["straight_through", "exact"],
                {**NAIVE, "views": ["exact"]},
                {"attack": "pgd", "steps": 20, "survivors": True, "views": ["straight_through"]},
                {"attack": "pgd", "steps": 40, "loss": "margin", "restarts": 2, "survivors": True, "views": ["straight_through"]},
            ),
        },
    ),
    "confident": Case(
        "logits × 1,000, as after distillation",
        {
            "restorers": [NO_RESTORER],
            "classifier": f"{__name__}.Confident",
            **_attacks(
                ["detached"],
                NAIVE,
                {"attack": "pgd", "steps": 20, "loss": "margin", "survivors": True},
                {"attack": "apgd-dlr", "steps": 40, "survivors": True},
            ),
        },
        view="oblivious",  # without a restorer every view is the classifier
    ),
    "random": Case(
        "random resize and pad",
        {
            "restorers": [f"{__name__}.RandomResize"],
            "resubmissions": 10,
            **_attacks(
                ["exact"],
                NAIVE,
                {"attack": "pgd", "steps": 10, "eot": 5},
                {"attack": "pgd", "steps": 20, "eot": 10, "loss": "margin", "survivors": True},
            ),
        },
    ),
}


def measure(case: Case, folder: Path, images: int = IMAGES, **settings: Any) -> dict[str, Any]:
    """Evaluate one case on real test images at 8/255.

    Args:
        case: of CASES.
        folder: of the evaluation.
        images: how many of CIFAR-10's test images, after the shuffle of seed 0.
        settings: of `gandefense.evaluate` that differ, such as `device`.

    Returns:
        What results.json holds.

    Raises:
        UserError: the data are missing, or the folder holds another evaluation.
    """
    from gandefense.evaluation.evaluator import evaluate

    fixed = {"limit": images, "batch_size": 128, "images": 0, "validation_images": 64, "cost_batch_size": 16, "keep_attacked": 0}
    return evaluate(**{**fixed, **case.settings, **settings}, output=str(folder))


def summary(case: Case, results: dict[str, Any]) -> dict[str, Any]:
    """What a table of the calibration says of one evaluated case: its attacks in order, worst case, checks that fired."""
    rows = [row for row in results["rows"] if row["restorer"] == case.restorer and row["attack"] != "none"]
    kept = ("title", "view", "steps", "restarts", "eot_samples", "loss", "survivors", "accuracy", "ci95", "resubmitted_accuracy")
    return {
        "title": case.title,
        "naive": {"title": case.naive, "view": case.view},
        "n": results["data"]["n"],
        "clean": next(row["accuracy"] for row in results["rows"] if row["attack"] == "none"),
        "attacks": [{key: row.get(key) for key in kept} for row in rows],
        "worst_case": {key: results["worst_case"][case.restorer]["white_box"][key] for key in ("accuracy", "ci95")},
        "fired": {found["name"]: found["text"] for found in results["checks"] if found["fired"]},
        "weights": results["made"]["weights"],
        "seconds": results["made"]["seconds"],
    }


def run(folder: Path, images: int = IMAGES, said: Callable[[str], object] = print, **settings: Any) -> dict[str, Any]:
    """Evaluate every case into a sub-folder of its own; the results of `tools/calibrate.py`.

    Args:
        folder: where the evaluations go.
        images: see `measure`.
        said: told each case's title before its evaluation.
        settings: see `measure`.

    Raises:
        UserError: see `measure`.
    """
    cases = {}
    for name, case in CASES.items():
        said(case.title)
        cases[name] = summary(case, measure(case, folder / name, images, **settings))
    return {"schema": 1, "kind": "calibration", "data": "cifar10", "n": images, "eps": EPS, "seed": 0, "cases": cases}
