"""Tables for texts: detectors under attack, and the calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gandefense.evaluation import calibration, readme_tables
from tests.helpers import results as made

RESULTS = Path(__file__).parent.parent.parent / "results"


def _attack(title: str, accuracy: float, *, view: str = "exact", survivors: bool = False) -> dict:
    return {"title": title, "view": view, "accuracy": accuracy, "survivors": survivors}


def _case(*attacks: dict, fired: tuple[str, ...] = ()) -> dict:
    worst = {"accuracy": 0.0, "ci95": [0.0, 0.015]}
    found = {"title": "a defence", "naive": {"title": "pgd-5", "view": "exact"}, "attacks": list(attacks)}
    return {"cases": {"x": {**found, "worst_case": worst, "fired": dict.fromkeys(fired, "text")}}}


@pytest.mark.parametrize(
    ("case", "cells"),
    [
        (
            _case(
                _attack("pgd-5", 0.74),
                _attack("pgd-20", 0.0, view="straight_through", survivors=True),
                _attack("pgd-40", 0.0, survivors=True),  # met nothing, so it is not shown
                fired=("static_rule", "zero_gradients", "few_images"),
            ),
            "pgd-5: 74.0 | pgd-20, view straight_through: 0.0 | 0.0 [0.0, 1.5] | `zero_gradients` |",
        ),
        (
            _case(_attack("pgd-5", 0.5), _attack("pgd-10", 0.0), _attack("apgd-ce-9", 0.0), fired=("few_images",)),
            "pgd-5: 50.0 | pgd-10, view exact: 0.0; apgd-ce-9, view exact: 0.0 | 0.0 [0.0, 1.5] | – |",
        ),
    ],
)
def test_a_line_of_the_calibration(case: dict, cells: str) -> None:
    assert readme_tables.calibration(case).splitlines()[2] == f"| a defence | {cells}"


def test_detection_has_a_line_per_attack_and_a_column_per_restorer() -> None:
    results = made.complete()
    header, _, clean, *lines = readme_tables.detection(results).splitlines()
    assert [cell.strip(" `") for cell in header.strip("| ").split("|")] == list(results["detection"])
    assert clean.startswith("| clean images, 5 % threshold |")
    first = next(iter(results["detection"].values()))
    assert len(lines) == len({(entry["threat"], entry["view"], entry["title"], entry["eps"]) for entry in first["attacks"]})
    entry = first["attacks"][0]
    if entry["auroc"] is not None:
        assert f"AUROC {entry['auroc']:.3f}, {100 * entry['tpr']['0.05']:.1f} % flagged, n = {entry['n']}" in lines[0]


def test_attacks_that_differ_in_source_or_restarts_alone_have_lines_of_their_own() -> None:
    results = made.complete()
    name, found = next(iter(results["detection"].items()))
    base = {**found["attacks"][0], "threat": "black_box", "auroc": 0.5, "tpr": {"0.05": 0.1}, "n": 10}
    kinds = [{"view": "cifar10/surrogate"}, {"view": "cifar10/other-0"}, {"view": "cifar10/other-0", "restarts": 5}]
    results["detection"] = {name: {**found, "attacks": [{**base, "restarts": 1, **kind} for kind in kinds]}}
    *_, first, second, third = readme_tables.detection(results).splitlines()
    assert "view cifar10/surrogate |" in first and "view cifar10/other-0 |" in second
    assert "view cifar10/other-0, 5 restarts |" in third


def test_the_committed_calibration_is_of_the_cases_in_the_code() -> None:
    results = json.loads((RESULTS / "calibration.json").read_text(encoding="utf-8"))
    assert {name: case["title"] for name, case in results["cases"].items()} == {
        name: case.title for name, case in calibration.CASES.items()
    }
    for name, case in results["cases"].items():
        wanted = calibration.CASES[name].settings["white_box"]["attacks"]
        assert [(row["steps"], row["survivors"]) for row in case["attacks"]] == [
            (attack["steps"], attack.get("survivors", False)) for attack in wanted
        ]
    assert results["n"] == calibration.IMAGES
