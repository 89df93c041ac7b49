"""The evaluator's column "both" is the accounting of MagNet's authors (Meng & Chen 2017); its column "restorer" is ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gandefense.attacks.suite import AttackSpec
from gandefense.evaluation import tables
from gandefense.evaluation.tables import Cell, Outcome

PGD = AttackSpec("pgd")
CLEAN_SCORE = torch.tensor([0.2, 0.9, 1.2, 0.4, 1.0])
ATTACKED_SCORE = torch.tensor([1.5, 0.8, 1.1, 0.7, 1.0])
RIGHT, STANDING = torch.tensor([1, 1, 1, 0, 1]).bool(), torch.tensor([0, 0, 1, 1, 0]).bool()


def _authors(right: Tensor, rejected: Tensor, *, attacked: bool) -> float:
    """1 − (passed and wrong)/N on attacked images, (passed and right)/N on clean ones."""
    passed = ~rejected
    return 1 - (passed & ~right).double().mean().item() if attacked else (passed & right).double().mean().item()


def _outcome(right: Tensor, score: Tensor) -> Outcome:
    wrong = torch.zeros(5, dtype=torch.bool)
    return Outcome(right, wrong, wrong, ~wrong, score=score)


@pytest.fixture
def found() -> dict[str, Any]:
    """Detection at two rates; at 0.2 the threshold comes to exactly 1."""
    outcomes = {
        Cell("magnet", "gray_box", "oblivious", None): _outcome(RIGHT, CLEAN_SCORE),
        Cell("magnet", "gray_box", "oblivious", PGD): _outcome(STANDING, ATTACKED_SCORE),
    }
    return tables.detection(outcomes, {"magnet": torch.tensor([0.1, 0.3, 0.5, 1.0, 1.3])}, [0.2, 0.4])["magnet"]


@pytest.mark.parametrize("rate", ["0.2", "0.4"])
def test_the_column_both_is_the_authors_definition(found: dict[str, Any], rate: str) -> None:
    threshold = found["thresholds"][rate]
    clean, (attacked,) = found["clean_accuracy"][rate], found["attacks"]
    assert clean["both"] == pytest.approx(_authors(RIGHT, threshold < CLEAN_SCORE, attacked=False))
    assert attacked["accuracy"][rate]["both"] == pytest.approx(_authors(STANDING, threshold < ATTACKED_SCORE, attacked=True))
    assert clean["restorer"] == 4 / 5, "a rejection is never to a restorer's credit, nor against it"
    assert attacked["accuracy"][rate]["restorer"] == 2 / 5


def test_a_rejection_counts_for_attacked_images_and_against_clean_ones(found: dict[str, Any]) -> None:
    assert found["thresholds"]["0.2"] == 1.0
    assert found["clean_accuracy"]["0.2"]["both"] == 3 / 5, "the third is rejected though it would have been right"
    assert found["attacks"][0]["accuracy"]["0.2"]["both"] == 3 / 5, "the first is rejected, the third right and rejected"
