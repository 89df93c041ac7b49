"""The README: its tables are printed by the commands beside them, and what it names is there.

That its commands and Python run is looked at in test_docs_commands.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gandefense import __version__, zoo
from gandefense.evaluation import readme_tables, report_tables

ROOT = Path(__file__).parent.parent
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
