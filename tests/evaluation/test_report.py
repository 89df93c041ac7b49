"""The report: numbers as text, and nothing of a name that could break the page."""

from __future__ import annotations

from typing import Any

import pytest

from gandefense.evaluation import report, report_tables
from gandefense.evaluation.figures import Panel, Strip
from gandefense.evaluation.page import page

NAME = "runs/<b>|mine"
ROW = {
    "restorer": NAME,
    "threat": "gray_box",
    "view": "oblivious",
    "title": "clean",
    "attack": "none",
    "norm": "linf",
    "eps": 0.0,
}
ROW |= {"steps": 0, "restarts": 1, "n": 4, "accuracy": 0.75, "ci95": [0.3, 0.95], "undefended_accuracy": 1.0}
COST = {
    "images_per_second": 1234.5,
    "batch_size": 4,
    "device": "cpu",
    "threads": 2,
    "parameters": 1000,
    "classifier_parameters": 2000,
}
COST |= {"forward_passes": 2.0, "backward_passes": 10.0, "peak_memory_bytes": None}
RESULTS: dict[str, Any] = {
    "data": {"name": "cifar10", "file": None, "n": 4},
    "classifier": {"name": "c", "parameters": 2000, "accuracy": 1.0, "ci95": [0.5, 1.0]},
    "rows": [ROW, {**ROW, "title": "pgd-20", "attack": "pgd", "eps": 8 / 255, "steps": 20, "accuracy": 0.5}],
    "worst_case": {NAME: {"gray_box": {"accuracy": 0.5, "ci95": [0.15, 0.85]}}},
    "detection": {},
    "restoration": {NAME: [{**ROW, "attacked": None, "restored": {"psnr": 31.234, "ssim": 0.98, "lpips": "missing"}}]},
    "cost": {"none": COST, NAME: COST},
    "checks": [{"name": "static_rule", "fired": True, "text": "x < y."}, {"name": "few_images", "fired": False, "text": "Fine."}],
    "made": {"command": "evaluate", "seed": 0, "date": "2030-01-01", "seconds": 3, "versions": {"torch": "9"}},
}


def test_headline_has_a_row_for_the_classifier_alone() -> None:
    table = report_tables.headline(RESULTS)
    assert table.rows == [
        ["none (classifier alone)", "100.0 % [50.0, 100.0]", "–", "–", "1,234"],
        [NAME, "75.0 % [30.0, 95.0]", "50.0 % [15.0, 85.0]", "–", "1,234"],
    ]


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"attack": "none", "norm": "linf", "eps": 0.0}, "–"),
        ({"attack": "pgd", "norm": "linf", "eps": 8 / 255}, "8/255"),
        ({"attack": "pgd", "norm": "linf", "eps": 0.5 / 255}, "0.5/255"),
        ({"attack": "gaussian[-1,1]", "norm": "noise", "eps": 0.3}, "0.3"),
    ],
)
def test_budget(row: dict[str, Any], shown: str) -> None:
    assert report_tables.budget(row) == shown


def test_text_table_is_aligned() -> None:
    assert report.text_table(["a", "long"], [["wide cell", "x"]]).splitlines() == [
        "a          long",
        "---------  ----",
        "wide cell  x",
    ]


def test_markdown_escapes_pipes_and_marks_what_fired() -> None:
    text = report.markdown(RESULTS, [])
    assert "runs/<b>\\|mine" in text
    assert "- **!** x < y." in text and "- Fine." in text
    assert "| – → 31.23 | – → 0.980 | missing |" in text
    assert all(line.count("|") - line.count("\\|") == 6 for line in text.splitlines() if line.startswith("| none"))


def test_page_escapes_names_and_is_whole() -> None:
    panel = Panel("p", f"{NAME} — x", ["clean"], b"png", [Strip(b"png", ["<cat>"], [True])], [])
    text = page(RESULTS, [panel])
    assert "<b>" not in text and "&lt;b&gt;" in text and "&lt;cat&gt;" in text
    assert "x &lt; y." in text and text.rstrip().endswith("</html>")
    assert "src=" in text and text.count("src=") == text.count('src="data:')
    assert "prefers-color-scheme: dark" in text


def test_terminal_prints_what_fired() -> None:
    text = report.terminal(RESULTS)
    assert "! x < y." in text and "Fine." not in text
    assert "pgd-20" in text and "Do they hold?" in text
