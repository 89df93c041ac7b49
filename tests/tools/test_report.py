"""tools/report.py"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from gandefense.evaluation import readme_tables, report, report_tables
from tests.helpers import results as made

TOOL = str(Path(__file__).parent.parent.parent / "tools" / "report.py")


@pytest.fixture
def tool(tool: Callable) -> Callable[..., tuple[int, str, str]]:
    return partial(tool, "report")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(made.complete()), encoding="utf-8")
    return file


def test_prints_the_table_that_is_asked_for(tool: Callable, path: Path) -> None:
    readme = report_tables.readme_table(made.complete()) + "\n"
    assert tool(path) == tool(path, "table=readme") == (0, readme, "")
    assert tool(path, "table=terminal") == (0, report.terminal(made.complete()) + "\n", "")
    assert tool(path, "table=detection") == (0, readme_tables.detection(made.complete()) + "\n", "")


def test_prints_the_calibration(tool: Callable) -> None:
    status, out, _ = tool(Path(TOOL).parent.parent / "results" / "calibration.json", "table=calibration")
    assert status == 0 and len(out.splitlines()) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no results given; usage: python tools/report.py RESULTS.json"),
        (["{path}", "table=fancy"], "expected table=readme, table=terminal, table=detection, table=calibration, got table=fancy"),
        (["{path}", "tables=readme"], "table=calibration, got tables=readme"),
        (["{path}", "{path}"], "expected one config file"),
        (["absent.json"], "absent.json is not there"),
        ([TOOL], "cannot be read as results"),
        (["{list}"], "is no results.json of an evaluation"),
        (["{other}"], "is no results.json of an evaluation"),
        (["{path}", "table=calibration"], "is no results.json of a calibration, but of an evaluation"),
        (["{calibration}"], "is no results.json of an evaluation, but of a calibration"),
        (["{half}"], "is no whole results.json of an evaluation (KeyError: 'rows')"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tool: Callable, path: Path, words: list[str], message: str) -> None:
    texts = {
        "list": "[1]",
        "other": '{"schema": 2}',
        "half": '{"schema": 1}',
        "calibration": '{"schema": 1, "kind": "calibration"}',
    }
    places = {"path": path, "folder": path.parent, **{name: path.parent / f"{name}.json" for name in texts}}
    for name, text in texts.items():
        places[name].write_text(text, encoding="utf-8")
    status, out, err = tool(*(word.format(**places) for word in words))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_the_folder_of_an_evaluation_will_do(tool: Callable, path: Path) -> None:
    folder = path.with_name("evaluation")
    folder.mkdir()
    path.rename(folder / "results.json")
    status, out, _ = tool(folder)
    assert status == 0 and out.startswith("|")
