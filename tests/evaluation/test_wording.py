"""Figures as text."""

from __future__ import annotations

from typing import Any

import pytest

from gandefense.evaluation import wording


@pytest.mark.parametrize(
    ("difference", "shown"),
    [(0.003, "+0.3"), (-0.12, "−12.0"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0001, "0.0"), (1.0, "+100.0")],
)
def test_points(difference: float, shown: str) -> None:
    assert wording.points(difference) == shown


@pytest.mark.parametrize(
    ("p", "shown"), [(1.0, "p = 1.00"), (0.612, "p = 0.61"), (0.0123, "p = 0.012"), (0.001, "p = 0.001"), (1e-9, "p < 0.001")]
)
def test_p_value(p: float, shown: str) -> None:
    assert wording.p_value(p) == shown


def test_gain_needs_a_test() -> None:
    figure = {"accuracy": 0.053, "mcnemar": {"p": 0.61}}
    assert wording.gain(figure, 0.05) == "+0.3 points, p = 0.61"
    assert wording.gain(figure, 0.05, unit="") == "+0.3, p = 0.61"
    assert wording.gain({**figure, "resubmissions": 10}, 0.05) == "+0.3 points", "a mean that no test of single answers fits"
    for missing in (None, {"accuracy": 0.053}, {"accuracy": 0.053, "mcnemar": None}, {"accuracy": None, "mcnemar": {"p": 1}}):
        assert wording.gain(missing, 0.05) == "–"
    assert wording.gain(figure, None) == "–"


@pytest.mark.parametrize(
    ("figure", "shown"),
    [
        ({"accuracy": 0.612, "ci95": [0.581, 0.642]}, "61.2 % [58.1, 64.2]"),
        ({"accuracy": None, "ci95": [0, 1]}, "–"),
        (None, "–"),
    ],
)
def test_interval(figure: dict[str, Any] | None, shown: str) -> None:
    assert wording.interval(figure) == shown


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"attack": "none", "norm": "linf", "eps": 0.0}, "–"),
        ({"attack": "pgd", "norm": "linf", "eps": 8 / 255}, "8/255"),
        ({"attack": "pgd", "norm": "linf", "eps": 0.5 / 255}, "0.5/255"),
        ({"attack": "gaussian[-1,1]", "norm": "noise", "eps": 0.3}, "0.3"),
        ({"attack": "cw", "norm": "l2", "eps": 0.5}, "0.5"),
    ],
)
def test_budget(row: dict[str, Any], shown: str) -> None:
    assert wording.budget(row) == shown


def test_view_is_named_where_there_is_a_choice() -> None:
    assert wording.view({"threat": "gray_box", "view": "oblivious"}) == "–"
    assert wording.view({"threat": "black_box", "view": "query"}) == "query"
    assert wording.view({"threat": "white_box", "view": "exact"}) == "exact"


def test_number_passes_text_on() -> None:
    assert [wording.number(value, 2) for value in (1.234, None, "missing")] == ["1.23", "–", "missing"]


def test_columns_of_figures_are_aligned_right() -> None:
    header = ["name", "eps", "gain", "view", "unknown", "lpips"]
    rows = [["a", "8/255", "+0.3", "exact", "–", "missing"], ["2b", "–", "−0.1", "–", "–", "0.1"]]
    assert wording.aligned_right(header, rows) == [False, True, True, False, False, True]
