"""A short evaluation, against the attacks and restorations that it consists of."""

from __future__ import annotations

import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from gandefense import zoo
from gandefense.attacks.suite import AttackSpec, attack
from gandefense.benchmark.settings import BenchmarkConfig, Row
from gandefense.benchmark.subjects import Subjects
from gandefense.benchmark.timing import timed
from gandefense.config import DataConfig
from gandefense.evaluation.evaluator import AttackEntry, EvaluateConfig, WhiteBoxConfig, evaluate

PART = "evaluation"


def _flags_of_evaluate() -> AbstractContextManager[None]:
    """The settings of cuDNN that `evaluate` works under, which change the speed of convolutions."""
    # Word for word as there, down to what is not named: torch then takes enabled=False.
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True, benchmark=False)


def measure(subjects: Subjects, config: BenchmarkConfig) -> list[Row]:
    """One evaluation under fgsm and pgd, gray_box, and the same attacks, restorations and classifications by hand.

    It needs the data set on disk: thresholds are read from real validation images.
    """
    if not subjects.real:
        return [Row(PART, "left out", note=f"it needs {config.data.name}'s files; see tools/fetch_data.py")]
    count, steps = len(subjects.images), 3 if config.quick else 20
    validation = 4 if config.quick else 2 * count
    specs = [AttackSpec("fgsm"), AttackSpec("pgd", steps=steps)]
    labels = subjects.labels  # all right at first: every image is attacked

    def by_hand() -> None:
        held_out = subjects.images.repeat(-(-validation // count), 1, 1, 1)[:validation]
        attacked = [attack(subjects.classifier, subjects.images, labels, spec).images for spec in specs]
        for defended in (subjects.trn, subjects.gan):
            with torch.no_grad():
                defended.restorer(held_out)
            for images in (subjects.images, *attacked):
                defended.classifier(defended.restore(images).images)

    with tempfile.TemporaryDirectory() as folder:
        asked = EvaluateConfig(
            data=DataConfig(config.data.name, config.data.root, limit=count, download=False),
            classifier=zoo.classifier_of(config.trn),
            restorers=[config.trn, config.gan],
            output=str(Path(folder) / "evaluation"),
            device=str(subjects.device),
            batch_size=count,
            gray_box=[AttackEntry("fgsm"), AttackEntry("pgd", steps=steps)],
            white_box=WhiteBoxConfig(views=[], attacks=[]),
            validation_images=validation,
            cost_batch_size=count,
            keep_attacked=0,  # every run is to take the same time
            resubmissions=1,
            seed=config.seed,
        )
        with _flags_of_evaluate():
            by_hand()  # warms up
            before = timed(by_hand, subjects.device)
        start = time.perf_counter()
        results = evaluate(asked)
        whole = time.perf_counter() - start
        with _flags_of_evaluate():
            after = timed(by_hand, subjects.device)
        least = (before + after) / 2  # before and after: a machine's drift hits both sides
    cells = sum(1 for _ in results["rows"])
    return [
        Row(
            *(PART, f"evaluation of {count} images: fgsm, pgd-{steps} × TRN, GAN", whole, count * cells, whole / least),
            ratio_to="the same attacks and restorations by hand",
            note=f"{cells} cells of {count} images; its share also measures cost, draws pictures and writes the report",
        )
    ]
