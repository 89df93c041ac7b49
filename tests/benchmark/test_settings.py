"""What a benchmark is asked, its rows and its table."""

from __future__ import annotations

import pytest

from gandefense import config
from gandefense.benchmark.report import as_json, table
from gandefense.benchmark.settings import BenchmarkConfig, Row, check
from gandefense.errors import UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["parts=[]"], "parts is empty"),
        (["parts=[map]"], "unknown part 'map'; known: maps, restorers"),
        (["repeats=0"], "repeats must be at least 1"),
        (["seconds=0"], "seconds must be positive"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["growth.blocks=[]"], "growth.blocks is empty"),
        (["growth.labels=[1]"], "at least 2 classes"),
        (["growth.resolutions=[32,48]"], "powers of two"),
    ],
)
def test_mistakes_are_found_before_any_work(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(config.load(BenchmarkConfig, None, words))


@pytest.mark.parametrize(
    ("ratio", "target", "met", "shown"),
    [
        (0.5, ("at most", 0.6), True, "≤ 0.6 met"),
        (0.7, ("at most", 0.6), False, "≤ 0.6 missed"),
        (150.0, ("at least", 100.0), True, "≥ 100 met"),
        (50.0, ("at least", 100.0), False, "≥ 100 missed"),
        (0.5, None, None, "0.5"),
    ],
)
def test_a_row_says_whether_its_target_is_met(ratio: float, target: tuple[str, float], met: bool | None, shown: str) -> None:
    row = Row("maps", "ours", 0.5, 32, ratio, "theirs", target)
    assert row.met is met
    assert row.images_per_second == 64
    assert shown in table([row])
    assert as_json([row])[0]["met"] is met


def test_a_table_has_a_part_each_and_no_empty_columns() -> None:
    text = table([Row("maps", "a", 0.5), Row("growth", "b", None, 1, 2.0, "c")])
    assert text.index("## maps") < text.index("## growth")
    assert "| what | images/s |\n" in text
    assert "memory" not in text and "note" not in text
