"""The tables of the report: what stands in which cell, and which columns there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gandefense.evaluation import plots, report_tables, threat_tables
from gandefense.evaluation.wording import Table
from tests.helpers import results as made

RESULTS = Path(__file__).parent.parent.parent / "results"


def by_name(results: dict[str, Any]) -> dict[str, Table]:
    return {table.name: table for table in report_tables.all_tables(results)}


def column(table: Table, name: str) -> list[str]:
    return [row[table.header.index(name)] for row in table.rows]


def test_every_table_is_as_wide_as_its_header() -> None:
    tables = report_tables.all_tables(made.complete())
    assert len({table.name for table in tables}) == len(tables)
    for table in tables:
        assert table.rows and all(len(row) == len(table.header) for row in table.rows)
        assert all(len(shares) == len(table.rows) for shares in table.shares.values())


def test_headline_says_what_is_gained() -> None:
    table = threat_tables.headline(made.complete())
    assert table.header == [
        "restorer",
        "clean",
        "worst gray_box",
        "worst black_box",
        "worst white_box",
        "white_box gain",
        "images/s",
    ]
    assert table.rows[0][0] == "none (classifier alone)"
    assert column(table, "white_box gain") == ["–", "+0.2 points, p = 0.50", "0.0 points, p = 1.00", "+8.8 points, p < 0.001"]
    assert column(table, "worst black_box")[1] == "39.8 % [36.8, 42.9]"
    assert table.shares[1] == [0.919, 0.917, 0.905, 0.884] and table.shares[4] == [0, 0.002, 0, 0.088]
    assert "McNemar" in table.note and "right each time" in table.note


def test_headline_of_older_results_has_neither_black_box_nor_gain() -> None:
    results = made.complete()
    results["rows"] = [row for row in results["rows"] if row["threat"] != "black_box"]
    for threats in results["worst_case"].values():
        del threats["black_box"]
        threats["white_box"].pop("mcnemar", None)
    del results["randomised"]
    table = threat_tables.headline(results)
    assert table.header == ["restorer", "clean", "worst gray_box", "worst white_box", "images/s"]
    assert "McNemar" not in table.note and "each time" not in table.note


def test_a_threat_that_was_not_asked_for_is_a_dash() -> None:
    results = made.complete()
    for threats in results["worst_case"].values():
        del threats["white_box"]
    assert set(column(threat_tables.headline(results), "worst white_box")) == {"–"}


def test_threats_have_the_columns_that_say_something() -> None:
    gray, black, white = threat_tables.threat_tables(made.complete())
    shared = ["attack", "eps", "steps × restarts", "accuracy", "right each time", "classifier alone", "gain"]
    assert gray.header == ["restorer", *shared]
    assert black.header == white.header == ["restorer", "view", *shared]
    assert column(gray, "right each time")[:6] == ["–"] * 6 and column(gray, "right each time")[13] == "28.1 %"
    assert column(black, "view")[:2] == ["transfer: cifar10/surrogate", "query"]
    assert column(black, "steps × restarts")[:2] == ["20 × 1", "5,000 queries"]
    assert column(white, "attack")[4] == "autoattack (on survivors)" and column(white, "attack")[11] == "pgd-50 eot-10"
    assert column(white, "gain")[1] == "+0.3, p = 0.25" and column(gray, "gain")[2] == "+82.5, p < 0.001"
    accuracies = [row["accuracy"] for row in made.complete()["rows"] if row["threat"] == "white_box"]
    assert white.shares == {white.header.index("accuracy"): accuracies}


def test_a_column_is_explained_once_and_words_where_they_stand() -> None:
    gray, black, white = (table.note for table in threat_tables.threat_tables(made.complete()))
    assert "over 10 submissions" in gray and "submissions" not in black + white
    assert "McNemar" in gray and "McNemar" not in black + white
    assert "cumulative" in white and "cumulative" not in gray + black
    assert all(word in white for word in ("Margin:", "Joint:", "eot-N:", "exact: full double backward"))
    assert "smooth" not in white, "no view that nobody looked at"
    assert all("Every figure is of 1000 images." in note for note in (gray, black, white))


def test_n_is_a_column_where_it_differs() -> None:
    results = made.complete()
    results["rows"][0]["n"] = 900
    gray, black, _ = threat_tables.threat_tables(results)
    assert column(gray, "n")[:2] == ["900", "1000"] and "Every figure" not in gray.note
    assert "n" not in black.header


def test_older_rows_have_the_old_columns() -> None:
    results = made.complete()
    for row in results["rows"]:
        for key in ("loss", "eot_samples", "queries", "survivors", "resubmissions", "resubmitted_accuracy", "mcnemar"):
            del row[key]
    gray, _, _ = threat_tables.threat_tables(results)
    assert gray.header == ["restorer", "attack", "eps", "steps × restarts", "accuracy", "classifier alone"]


def test_curves_are_tables_of_points() -> None:
    tables = by_name(made.complete())
    eps, eot = tables["curve_eps"], tables["curve_eot"]
    assert eps.header == ["eps", "none (classifier alone)", made.TRN, made.GAN, made.RANDOM]
    assert column(eps, "eps") == [f"{value}/255" for value in (0, 1, 2, 4, 8, 16, 32, 64, 128)]
    assert column(eps, made.TRN)[1] == "75.0 % [68.6, 80.5]"
    assert eps.note.startswith("none (classifier alone): pgd-20, 200 images; cifar10/trn, cifar10/gan, ")
    assert eot.header == ["samples", made.RANDOM] and column(eot, "samples")[-1] == "50"


def test_a_point_that_one_curve_lacks_is_a_dash() -> None:
    results = made.complete()
    del results["curves"][made.TRN]["steps"]["points"][2]
    assert column(by_name(results)["curve_steps"], made.TRN)[1:4] == ["30.0 % [24.1, 36.7]", "–", "1.5 % [0.5, 4.3]"]


@pytest.mark.parametrize("installed", [True, False])
def test_how_to_get_plots_is_said_once(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: installed)
    results = made.complete()
    notes = {name: table.note for name, table in by_name(results).items()}
    assert [name for name, note in notes.items() if plots.NOT_DRAWN in note] == ([] if installed else ["curve_eps"])
    del results["curves"]
    notes = {name: table.note for name, table in by_name(results).items()}
    assert [name for name, note in notes.items() if plots.NOT_DRAWN in note] == ([] if installed else ["detection"])


def test_detection_says_whether_the_detector_was_attacked() -> None:
    results = made.complete()
    assert "Attacks with joint loss aimed at classifier and detector" in report_tables.detection_table(results).note
    for found in results["detection"].values():
        found["attacks"] = [entry for entry in found["attacks"] if entry["loss"] != "joint"]
    assert "No attack here aimed at the detector" in report_tables.detection_table(results).note


@pytest.mark.parametrize(("memory", "shown"), [(None, None), (3 * 2**20, "3 MiB")])
def test_memory_is_shown_where_it_is_known(memory: int | None, shown: str | None) -> None:
    results = made.complete()
    for entry in results["cost"].values():
        entry["peak_memory_bytes"] = memory
    table = report_tables.cost_table(results)
    assert ("peak memory" in table.header) == (shown is not None)
    assert shown is None or column(table, "peak memory") == [shown] * 4


README = """\
|  | classifier alone | `cifar10/trn` | `cifar10/gan` | `runs/00007-random_resize` |
|---|---:|---:|---:|---:|
| clean | 91.9 [90.0, 93.4] | 91.7 [89.8, 93.3] | 90.5 [88.5, 92.2] | 88.4 [86.3, 90.2] |
| gray_box fgsm, 8/255 | 6.6 [5.2, 8.3] | 75.1 [72.3, 77.7] | 61.2 [58.1, 64.2] | 40.1 [37.1, 43.2] |"""


def test_readme_table() -> None:
    lines = report_tables.readme_table(made.complete()).splitlines()
    assert lines[:4] == README.splitlines()
    labels = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert labels[6:] == [
        "black_box pgd-20, 8/255, transfer: cifar10/surrogate",
        "black_box square-5000, 8/255, query",
        "white_box pgd-50, 8/255, view straight_through, eot-10 where random",
        "white_box pgd-50, 8/255, view detached, eot-10 where random",
        "white_box pgd-50 margin, 8/255, view detached, eot-10 where random",
        "white_box pgd-100 joint, 8/255, view detached, eot-10 where random",
        "white_box autoattack (on survivors), 8/255, view exact, eot-10 where random",
        "**worst case, gray_box**",
        "**worst case, black_box**",
        "**worst case, white_box**",
        "images/s, 2 CPU threads",
    ]
    assert lines[-1].endswith("| 1,812 | 114 | 558 | 1,790 |")
    assert all(line.count("|") == 6 for line in lines)


def test_readme_table_where_restorers_met_different_attacks() -> None:
    results = made.complete()
    results["rows"] = [row for row in results["rows"] if not (row["restorer"] == made.TRN and row["attack"] == "fgsm")]
    lines = report_tables.readme_table(results).splitlines()
    (line,) = [line for line in lines if "gray_box fgsm" in line]
    assert line == "| gray_box fgsm, 8/255 | 6.6 [5.2, 8.3] | – | 61.2 [58.1, 64.2] | 40.1 [37.1, 43.2] |"
    threats = [line.split()[1] for line in lines[3:-4]]
    assert threats == sorted(threats, key=["gray_box", "black_box", "white_box"].index)


@pytest.mark.parametrize("with_defences", [True, False])
def test_readme_table_with_the_classifier_as_a_restorer(with_defences: bool) -> None:
    results = made.complete()
    alone = [{**row, "restorer": "none", "view": "oblivious"} for row in results["rows"][:6]]
    table = report_tables.readme_table(results)
    results["rows"] = [*alone, *results["rows"]] if with_defences else alone
    if with_defences:
        assert report_tables.readme_table(results) == table, "every line has the classifier alone already"
    else:
        assert report_tables.readme_table(results).splitlines()[0] == "|  | classifier alone |"
        assert "gray_box mim-10" in report_tables.readme_table(results)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_tables_of_the_results_that_are_kept(path: Path) -> None:
    results = json.loads(path.read_text(encoding="utf-8"))
    if results.get("schema") != 1 or "worst_case" not in results:
        pytest.skip("no evaluation")
    names = [table.name for table in report_tables.all_tables(results)]
    assert names[:2] == ["headline", "gray_box"] and "cost" in names
    lines = report_tables.readme_table(results).splitlines()
    assert lines[2].startswith("| clean | ") and lines[-1].startswith("| images/s")
