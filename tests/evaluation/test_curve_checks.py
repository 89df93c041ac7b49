"""Checks of curves, firing and not firing."""

from __future__ import annotations

from typing import Any

import pytest

from gandefense.evaluation import curve_checks
from gandefense.evaluation.metrics import wilson_interval


def curve(key: str, right: dict[float, int], count: int = 500) -> dict[str, Any]:
    points = [{key: at, "accuracy": n / count, "ci95": list(wilson_interval(n, count))} for at, n in right.items()]
    return {"title": "pgd-20", "view": "exact", "n": count, "points": points}


def budgets(*right: int, last: int = 128) -> dict[str, Any]:
    """Images right of 500 at 0, 2, 4 … and, for the last one, `last`/255."""
    places = [*(2 * i for i in range(len(right) - 1)), last]
    return curve("eps", {place / 255: n for place, n in zip(places, right, strict=True)})


FOUND = [
    (curve_checks.larger_eps("trn", budgets(450, 200, 10, 0)), False, "never does less harm"),
    (curve_checks.larger_eps("trn", budgets(450, 200, 210, 0)), False, "never does less harm"),  # within noise
    (curve_checks.larger_eps("trn", budgets(450, 100, 200, 0)), True, "rises from 20.0 % at 2/255 to 40.0 % at 4/255"),
    # slowly, so that only the lowest point before tells
    (curve_checks.larger_eps("trn", budgets(450, 100, 120, 140, 160)), True, "rises from 20.0 % at 2/255"),
    (curve_checks.larger_eps("trn", {**budgets(450, 0), "points": budgets(450, 200, 10, 0)["points"][::-1]}), False, "never"),
    (curve_checks.huge_eps("trn", budgets(450, 0), 10), False, "0.0 % at 128/255, chance is 10.0 %: the attack gets there"),
    (curve_checks.huge_eps("trn", budgets(450, 80), 10), True, "16.0 % at 128/255"),
    (curve_checks.huge_eps("trn", budgets(450, 70), 10), False, "gets there"),  # 14 %: chance, give or take
    (curve_checks.huge_eps("trn", budgets(450, 120), 10), True, "24.0 % at 128/255"),
    (curve_checks.huge_eps("trn", budgets(450, 120), 4), False, "chance is 25.0 %"),
    (curve_checks.huge_eps("trn", budgets(450, 120, last=64), 10), True, "24.0 % at 64/255"),
    (curve_checks.huge_eps("trn", budgets(450, 120, last=63), 10), False, "ends at 63/255"),
    (curve_checks.still_falling("trn", curve("steps", {1: 400, 10: 300, 100: 200}), "steps"), True, "60.0 % become 40.0 %"),
    (curve_checks.still_falling("trn", curve("steps", {1: 400, 10: 205, 100: 200}), "steps"), False, "from 10 to 100 steps"),
    (curve_checks.still_falling("trn", curve("samples", {10: 100, 1: 400}), "samples"), True, "from 1 to 10 samples"),
]


@pytest.mark.parametrize(("finding", "fired", "said"), FOUND)
def test_each_check_fires_when_it_should(finding: dict[str, Any], fired: bool, said: str) -> None:
    assert set(finding) == {"name", "fired", "text"}
    assert finding["fired"] is fired
    assert said in finding["text"] and finding["text"].endswith(".") and "\n" not in finding["text"]


def test_128_is_taken_even_where_the_curve_goes_on() -> None:
    longer = curve("eps", {0: 450, 128 / 255: 200, 1.0: 0})
    assert curve_checks.huge_eps("trn", longer, 10)["fired"]


@pytest.mark.parametrize(
    ("curves", "classes", "names"),
    [
        ({}, 10, []),
        ({"trn": {}}, 10, []),
        ({"trn": {"eps": budgets(450, 0)}}, 10, ["larger_eps", "huge_eps"]),
        ({"trn": {"eps": budgets(450, 0)}}, None, ["larger_eps"]),
        ({"trn": {"steps": curve("steps", {1: 400})}}, 10, []),  # one point says nothing
        ({"trn": {"steps": curve("steps", {1: 9, 2: 8}), "eot": curve("samples", {1: 9, 2: 8})}}, 10, ["still_falling"] * 2),
    ],
)
def test_only_curves_that_are_there_are_checked(curves: dict[str, Any], classes: int | None, names: list[str]) -> None:
    assert [finding["name"] for finding in curve_checks.run(curves, classes)] == names


def test_the_classifier_alone_is_named_as_such() -> None:
    assert "the classifier alone" in curve_checks.run({"none": {"eps": budgets(450, 0)}}, None)[0]["text"]
