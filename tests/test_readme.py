"""The README: its tables are printed by the commands beside them, and what it names is there.

That its commands and Python run is looked at in test_docs_commands.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gandefense import __version__, zoo
from gandefense.evaluation import readme_tables, report_tables
from tests.helpers.figures import ROOT, USUAL, in_a_table, results, spanned, text_of

README, MEASURED = ROOT / "README.md", ROOT / "docs" / "measured.md"
SHIPPED = {"cifar10/classifier", "cifar10/trn", "cifar10/gan", "cifar10/surrogate", "cifar10/adversarial-small"}


def test_what_the_readme_names_is_shipped() -> None:
    assert set(zoo.names()) >= SHIPPED
    for name in SHIPPED:
        assert (zoo.WEIGHTS / f"{name}.json").is_file(), "every network has a card"


@pytest.mark.parametrize(
    ("page", "command", "table"),
    [
        (README, "results/cifar10_quick.json", report_tables.readme_table),
        (MEASURED, "results/cifar10_joint.json table=detection", readme_tables.detection),
        (README, "results/calibration.json table=calibration", readme_tables.calibration),
    ],
)
def test_tables_are_what_the_commands_beside_them_print(page: Path, command: str, table: object) -> None:
    text = page.read_text(encoding="utf-8")
    printed = table(json.loads((ROOT / command.split()[0]).read_text(encoding="utf-8")))
    assert f"`python tools/report.py {command}`" in text
    assert f"\n\n{printed}\n\n" in text, f"paste what python tools/report.py {command} prints"


def test_the_readme_has_no_interval_that_stands_nowhere_else() -> None:
    """Outside its tables, which other tests compare with the results, the README repeats what the page of figures has."""
    readme, page = text_of("README.md"), text_of("docs/measured.md")
    prose = " ".join(line for line in README.read_text(encoding="utf-8").splitlines() if not line.strip().startswith("|"))
    spans = re.findall(r"\S+ (?:%|points) \[[^\]]+\]", " ".join(prose.split()))
    assert len(spans) > 5 and not [span for span in spans if span not in page]
    levels = results("gan-levels")["levels"]
    noisy = [row["accuracy"] for row in levels if row["reading"] == "gaussian[-1,1]"]
    kept, behind = (
        "{:.1f}, {:.1f} and {:.1f} %".format(*(100 * row[column]["accuracy"] for row in noisy))
        for column in ("cifar10/gan", "GAN + distilled classifier")
    )
    assert f"`cifar10/gan` keeps {kept}, and with a distilled classifier behind it {behind}" in readme
    widest = max((end[1] - end[0]) / 2 for row in noisy for end in (row["cifar10/gan"]["ci95"],))
    assert f"(± {100 * widest:.1f} points at most, n = 1,000" in readme
    parts = {row["part"]: row["accuracy"] for row in results("gan-levels")["parts"]}
    plain, student = (parts[f"ISMN + generator, all rounds{more}"] for more in ("", " + distilled classifier"))
    clean, pgd = ([f"{100 * part[key]['accuracy']:.1f}" for part in (student, plain)] for key in ("clean", "pgd 8/255"))
    assert "costs clean images ({} in place of {} %) and".format(*clean) in readme
    assert "PGD ({} in place of {} %).".format(*pgd) in readme
    hidden = [
        f"{100 * entry['tpr']['0.05']:.1f}"
        for name in ("cifar10/trn", "cifar10/gan")
        for entry in results("cifar10_joint")["detection"][name]["attacks"]
        if entry["threat"] == "white_box"
    ]
    assert f"and {' and '.join(hidden)} % of those that aim at classifier and detector together" in readme
    usual = [
        entry["tpr"]["0.05"]
        for name in ("cifar10/trn", "cifar10/gan")
        for entry in results("cifar10_quick")["detection"][name]["attacks"]
        if entry["threat"] == "gray_box" and entry["title"] in USUAL
    ]
    assert len(usual) == 10 and f"flag at least {100 * min(usual):.1f} % of the 8/255 attacks that they were trained on" in readme


def test_the_readmes_table_of_unseen_attacks_is_that_of_the_results() -> None:
    readme, later = text_of("README.md"), "cifar10/trn-balanced"
    named = {
        "AutoAttack on the classifier": "autoattack",
        "Square, 1,000 queries": "square-1000",
        "PGD-20 of another classifier (black_box)": "pgd-20",
        "DeepFool, cut to the budget": "deepfool-50",
        "C&W, cut to the budget": "cw-30",
    }
    first, then = results("cifar10_unseen"), results("cifar10_unseen_balanced")

    def rows_of(made: dict[str, Any], restorer: str) -> dict[str, dict[str, Any]]:
        return {row["title"]: row for row in made["rows"] if row["restorer"] == restorer and row["threat"] != "white_box"}

    def alone(row: dict[str, Any]) -> dict[str, Any]:
        return {"accuracy": row["undefended_accuracy"], "ci95": row["undefended_ci95"]}

    def line(said: str, *figures: dict[str, Any]) -> str:
        return f"| {said} | {' | '.join(in_a_table(figure) for figure in figures)} |"

    before, after = rows_of(first, "cifar10/trn"), rows_of(then, later)
    for said, title in named.items():
        assert line(said, alone(before[title]), before[title], after[title]) in readme
        assert abs(before[title]["undefended_accuracy"] - after[title]["undefended_accuracy"]) < 0.005, "the same attacked images"
    worst = (first["worst_case"][name]["gray_box"] for name in ("none", "cifar10/trn"))
    said = "worst case, gray_box: AutoAttack, Square, DeepFool, C&W and six controls"
    asked = set(then["worst_case"][later]["gray_box"]["attacks"])
    assert len(asked) == 10 and {"autoattack", "square-1000", "deepfool-50", "cw-30"} < {name.split(",")[0] for name in asked}
    assert line(said, *worst, then["worst_case"][later]["gray_box"]) in readme
    quick = results("cifar10_quick")
    before, after = rows_of(quick, "cifar10/trn"), rows_of(results("cifar10_quick_balanced"), later)
    assert line("clean images", quick["classifier"], before["clean"], after["clean"]) in readme
    lowest = [min((row[title] for title in USUAL), key=lambda row: row["accuracy"]) for row in (before, after)]
    bare = min((alone(before[title]) for title in USUAL), key=lambda figure: figure["accuracy"])
    assert line("the lowest of FGSM, FFGSM, BIM-10, PGD-20, MIM-10", bare, *lowest) in readme
    known = []
    for file, name in (("cifar10_quick", "cifar10/trn"), ("cifar10_white_balanced", later)):
        (row,) = [row for row in results(file)["rows"] if row["view"] == "detached" and row["restorer"] == name]
        known.append(f"{spanned(row)} (n = {row['n']:,}")
    assert f"Through `detached` PGD-20 leaves neither anything: {known[0]}) and {known[1]};" in readme


def test_figures_of_the_adversarial_network_are_those_of_its_card() -> None:
    card = json.loads((zoo.WEIGHTS / "cifar10/adversarial-small.json").read_text(encoding="utf-8"))
    measured, text = card["validation"], " ".join(MEASURED.read_text(encoding="utf-8").split())
    assert f"{100 * measured['validation_accuracy']:.2f} % on {measured['validation_n']:,} validation images" in text
    count = card["recipe"]["train"]["adversarial"]["validation_images"]
    assert f"{100 * measured['validation_robust_accuracy']:.1f} % of {count} under PGD-10" in text


def test_files_that_the_readme_names_exist() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:tools|configs|gandefense|docs|results)/[\w/.-]+\w", text))
    assert len(named) > 10
    missing = [name for name in named if not (README.parent / name).exists()]
    assert not missing


def test_pictures_are_small_and_come_from_the_command() -> None:
    pictures = sorted((ROOT / "docs" / "images").glob("*.png"))
    assert [picture.name for picture in pictures] == ["cifar10_gan.png", "cifar10_trn.png", "growth.png"]
    for picture in pictures:
        assert picture.stat().st_size <= 200 * 1024
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_version_and_citation_agree() -> None:
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    assert str(citation["version"]) == __version__
    assert {"message", "title", "authors"} <= set(citation)
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}] - {citation['date-released']}" in log
