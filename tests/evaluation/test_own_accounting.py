"""MagNet's own accounting is the evaluator's column "both"."""

from __future__ import annotations

import pytest
import torch

from gandefense.attacks.suite import AttackSpec
from gandefense.errors import UserError
from gandefense.evaluation import tables
from gandefense.evaluation.own_accounting import accuracy_with_rejection, own_accounting
from gandefense.evaluation.tables import Cell, Outcome

PGD = AttackSpec("pgd")
CLEAN_SCORE = torch.tensor([0.2, 0.9, 1.2, 0.4, 1.0])
ATTACKED_SCORE = torch.tensor([1.5, 0.8, 1.1, 0.7, 1.0])


def _outcome(right: str, score: torch.Tensor) -> Outcome:
    flags = torch.tensor([letter == "1" for letter in right])
    wrong = torch.zeros(5, dtype=torch.bool)
    return Outcome(flags, wrong, wrong, ~wrong, score=score)


@pytest.fixture
def results() -> dict:
    """Scores in units of thresholds: at a rate of 0.2 the threshold comes to exactly 1, MagNet's own."""
    outcomes = {
        Cell("magnet", "gray_box", "oblivious", None): _outcome("11101", CLEAN_SCORE),
        Cell("magnet", "gray_box", "oblivious", PGD): _outcome("00110", ATTACKED_SCORE),
    }
    return {"detection": tables.detection(outcomes, {"magnet": torch.tensor([0.1, 0.3, 0.5, 1.0, 1.3])}, [0.2, 0.4])}


def test_the_column_both_is_the_authors_definition(results: dict) -> None:
    assert results["detection"]["magnet"]["thresholds"]["0.2"] == 1.0
    clean, attacked = own_accounting(results, "magnet", 0.2)
    assert (clean["title"], attacked["title"]) == ("clean", "pgd-20")
    assert clean["ours"] == 4 / 5 and clean["own"] == 3 / 5, "the third is rejected though it would have been right"
    assert attacked["ours"] == 2 / 5 and attacked["own"] == 3 / 5, "the first is rejected, the third right and rejected"
    right, wrong = torch.tensor([1, 1, 1, 0, 1]).bool(), torch.tensor([0, 0, 1, 1, 0]).bool()
    assert clean["own"] == accuracy_with_rejection(right, CLEAN_SCORE > 1, attacked=False)
    assert attacked["own"] == accuracy_with_rejection(wrong, ATTACKED_SCORE > 1, attacked=True)


def test_the_largest_rate_is_the_default(results: dict) -> None:
    assert own_accounting(results, "magnet") == own_accounting(results, "magnet", 0.4) != own_accounting(results, "magnet", 0.2)


@pytest.mark.parametrize(
    ("right", "rejected", "attacked", "expected"),
    [
        ([0, 0], [1, 1], True, 1.0),
        ([1, 1], [1, 1], False, 0.0),
        ([1, 0], [0, 0], True, 0.5),
        ([1, 0], [0, 0], False, 0.5),
        ([0, 1, 0, 1], [0, 0, 1, 1], True, 0.75),
        ([0, 1, 0, 1], [0, 0, 1, 1], False, 0.25),
    ],
)
def test_known_values(right: list[int], rejected: list[int], attacked: bool, expected: float) -> None:
    flags = torch.tensor(right).bool(), torch.tensor(rejected).bool()
    assert accuracy_with_rejection(*flags, attacked=attacked) == expected


def test_what_is_not_there_is_told(results: dict) -> None:
    with pytest.raises(UserError, match="nothing of a detector of 'trn'"):
        own_accounting(results, "trn")
    with pytest.raises(UserError, match=r"rate of 0.1; they have 0.2, 0.4"):
        own_accounting(results, "magnet", 0.1)
