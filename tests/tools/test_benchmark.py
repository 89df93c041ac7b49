"""tools/benchmark.py from end to end, with figures that mean nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

TOOL = "tools/benchmark.py"


def test_maps_and_growth_in_one_table(python: Callable, tmp_path: Path) -> None:
    done = python(TOOL, "parts=[maps,growth]", "quick=true", f"output={tmp_path}", "growth.resolutions=[32,64]")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert {row["part"] for row in results["rows"]} == {"maps", "growth"}
    targets = [row for row in results["rows"] if row["target"]]
    assert [row["target"] for row in targets] == [["at most", 0.6], ["at most", 1.3], ["at most", 1e-5]]
    assert targets[-1]["met"], "float32 maps agree with the naive loop"
    operations = next(row for row in results["rows"] if row["ratio_to"].endswith("in operations"))
    assert operations["ratio"] == pytest.approx(1.0, abs=0.01)
    assert all(seconds > 0 for curve in results["growth"] for seconds in curve["seconds"])
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"
    assert done.stdout.startswith("## maps") and str(tmp_path) in done.stdout


@pytest.mark.slow
def test_every_part_runs(python: Callable, tmp_path: Path) -> None:
    done = python(TOOL, "quick=true", f"output={tmp_path}", "growth.resolutions=[32]")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    parts = list(dict.fromkeys(row["part"] for row in results["rows"]))
    assert parts == ["maps", "restorers", "attacks", "training", "evaluation", "growth"]
    shares = [row["ratio"] for row in results["rows"] if row["ratio_to"] == "the TRN step"]
    assert 0.5 < sum(shares) < 2, "the stages make up the step, as far as single quick measurements tell"
    rivals = [row for row in results["rows"] if row["part"] == "restorers" and row["target"]]
    assert [row["target"] for row in rivals] == [["at least", 100.0]] * 2
    assert all(row["ratio_to"] == "images/s of the diffusion purifier" for row in rivals)
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 for row in rivals)  # how fast depends on the machine
    assert all(row["met"] == (row["ratio"] >= 100) for row in rivals)


def test_a_mistake_is_one_line(python: Callable) -> None:
    done = python(TOOL, "parts=[speed]")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown part 'speed'")
