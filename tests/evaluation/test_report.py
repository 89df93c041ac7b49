"""The report in text: terminal and Markdown, and what is written to a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gandefense.evaluation import figures, report
from gandefense.evaluation.figures import Panel, Strip
from tests.helpers import results as made

PNG = figures.png(torch.zeros(3, 2, 4))
PANEL = Panel("00_trn_pgd", "trn — pgd", ["clean", "attacked"], PNG, [Strip(b"strip", ["cat", "dog"], [True, False])], [])


def test_text_table_is_aligned() -> None:
    assert report.text_table(["a", "long"], [["wide cell", "x"]]).splitlines() == [
        "a          long",
        "---------  ----",
        "wide cell  x",
    ]
    assert report.text_table(["a", "accuracy"], [["x", "9.0 %"], ["y", "10.0 %"]]).splitlines() == [
        "a  accuracy",
        "-  --------",
        "x     9.0 %",
        "y    10.0 %",
    ]


def test_terminal_begins_with_the_headline_and_ends_with_what_fired() -> None:
    results = made.complete()
    text = report.terminal(results)
    blocks = text.split("\n\n")
    assert [block.splitlines()[0] for block in (blocks[0], *blocks[2:5])] == [
        "Do they hold?",
        "gray_box",
        "black_box",
        "white_box",
    ]
    assert blocks[0].splitlines()[-1] == "1000 images; 95 % intervals in brackets"
    static = blocks[1].splitlines()
    assert [line[:2] for line in static] == ["! ", "! ", "  "] and "(+0.2 points, p = 0.50): no gain" in static[0]
    fired = [finding["text"] for finding in results["checks"] if finding["fired"] and finding["name"] != "static_rule"]
    assert blocks[5].splitlines() == [f"! {text}" for text in fired]
    assert "steps × restarts" not in text and "right each time" in text


def test_markdown_has_every_part_in_its_order() -> None:
    results = made.complete()
    text = report.markdown(results, [PANEL], made.drawn())
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Do they hold?",
        "gray_box",
        "black_box",
        "white_box",
        "Accuracy against the budget",
        "Accuracy against the attack's steps",
        "Accuracy against EOT samples",
        "Detection",
        "Detector, restorer, both",
        "Restoration",
        "Cost",
        "Images",
        "Checks",
        "How it was made",
    ]
    first = text.split("## gray_box")[0]
    assert "- **!** cifar10/trn keeps 0.2 % under white_box" in first and "- runs/00007-random_resize keeps" in first
    assert all(finding["text"] in text for finding in results["checks"])
    assert "![Accuracy against the budget](pictures/curve_eps.png)" in text
    assert "![trn — pgd](pictures/00_trn_pgd.png)" in text
    assert "| – → 76.08 | – → 0.980 | – → 0.009 |" in text


def test_markdown_escapes_pipes_and_aligns_figures() -> None:
    table = report.markdown_table(["a|b", "c"], [["x|y", "1"]])
    assert table.splitlines() == ["| a\\|b | c |", "|---|---:|", "| x\\|y | 1 |"]


def test_write_leaves_everything_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "draw", lambda results: made.drawn())
    results = made.complete()
    report.write(tmp_path, results, [PANEL])
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if "tensorboard" not in path.parts}
    drawn = {f"pictures/{plot.name}.png" for plot in made.drawn()}
    assert found == {"report.md", "report.html", "pictures/00_trn_pgd.png", *drawn}
    assert (tmp_path / "pictures" / "00_trn_pgd.png").read_bytes() == PNG
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(name in text for name in found if name.startswith("pictures"))
    assert list((tmp_path / "tensorboard").rglob("events.*"))
    json.dumps(results)  # nothing was put into the results that JSON cannot hold
