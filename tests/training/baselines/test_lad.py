"""LAD's amounts, and settings of its own. The training itself is in test_every_baseline.py."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from gandefense.errors import UserError
from gandefense.training.baselines.lad import SCHEDULES, LADTrainConfig, amounts

ROOT = Path(__file__).parent.parent.parent.parent


def test_annealed_amounts_rise_to_the_magnitude() -> None:
    options, labels = LADTrainConfig(steps=4, schedule="annealed", magnitude=2.0), torch.zeros(3, dtype=torch.long)
    assert [amounts(options, step, labels).unique().tolist() for step in range(4)] == [[0.5], [1.0], [1.5], [2.0]]
    assert amounts(options, 0, labels).shape == (3,)


def test_random_amounts_are_uniform_up_to_the_magnitude() -> None:
    options, labels = LADTrainConfig(steps=4, schedule="random", magnitude=2.0), torch.zeros(4000, dtype=torch.long)
    drawn = amounts(options, 0, labels)
    assert drawn.min() >= 0 and drawn.max() <= 2
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.05)
    assert drawn.std().item() == pytest.approx(2 / 12**0.5, abs=0.05)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.schedule=other", f"unknown train.schedule 'other'; known: {', '.join(SCHEDULES)}"),
        ("train.decoded_share=0", "train.decoded_share must be above 0 and at most 1"),
        ("train.decoded_share=1.5", "train.decoded_share must be above 0 and at most 1"),
        ("train.decoded_weight=1", "train.decoded_weight must lie between 0 and 1"),
        ("train.magnitude=0", "train.magnitude must be positive"),
        ("architecture=other", "unknown classifier 'other'"),
        ("boundary.images=0", "boundary.images must be at least 1"),
        ("autoencoder.steps=0", "autoencoder.steps must be at least 1"),
    ],
)
def test_bad_settings_are_refused(classifier: Path, tmp_path: Path, word: str, message: str) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "train_baseline.py"))["main"]
    with pytest.raises(UserError, match=message):
        tool([str(ROOT / "configs" / "baselines" / "cifar10_lad.yaml"), f"run.folder={tmp_path / 'runs'}", word])
    assert not (tmp_path / "runs").exists()
