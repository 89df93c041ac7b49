"""The pages in docs/: their commands are understood as they stand, what they name is there, generated pages are up to date.

That commands and Python blocks run is looked at in test_docs_commands.py.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

from gandefense import config, restoring
from gandefense.attacks.noise import NOISES
from gandefense.attacks.suite import NAMES
from gandefense.attacks.threats import THREATS, VIEWS
from gandefense.command_line import split_arguments
from gandefense.evaluation import checks, curve_checks, settings
from gandefense.evaluation.settings import EvaluateConfig
from gandefense.restorers.base import Restoration
from gandefense.training.averaging import AverageConfig
from gandefense.training.classifier import ClassifierConfig
from gandefense.training.gan_config import GANConfig
from gandefense.training.joint import JointConfig
from gandefense.training.trn import TRNConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
OWN_PARTS, THREATS_PAGE = ROOT / "docs" / "your-own-parts.md", ROOT / "docs" / "threats-and-checks.md"
REPORT_PAGE = ROOT / "docs" / "reading-the-report.md"
API = runpy.run_path(str(ROOT / "tools" / "api_pages.py"))
SCHEMAS = {
    "evaluate": EvaluateConfig,
    "train_classifier": ClassifierConfig,
    "average_weights": AverageConfig,
    "train_trn": TRNConfig,
    "train_gan": GANConfig,
    "train_joint": JointConfig,
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def commands(page: Path) -> list[str]:
    """Commands in `sh` blocks whose words can be checked without running them."""
    lines = [line.strip() for block in blocks(page, "sh") for line in block.splitlines()]
    known = [f"python tools/{name}.py " for name in (*SCHEMAS, "restore_images")]
    return [line for line in lines if line.startswith(tuple(known)) and "resume=" not in line and "my_package" not in line]


def rows(page: Path, first: str) -> list[list[str]]:
    """The rows of the table whose header begins with a word, as cells."""
    text = page.read_text(encoding="utf-8")
    table = text[text.index(f"\n| {first} |") :].split("\n\n")[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


def words(cells: list[str]) -> set[str]:
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def test_every_page_is_on_the_map() -> None:
    linked = set(re.findall(r"\]\(([\w./-]+)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert {str(page.relative_to(ROOT / "docs")) for page in PAGES} - {"index.md"} <= linked


@pytest.mark.parametrize(("page", "command"), [(page, line) for page in TEXTS for line in commands(page)])
def test_commands_are_understood(page: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    python, tool, *arguments = shlex.split(command)
    assert python == "python" and (ROOT / tool).is_file()
    name = Path(tool).stem
    if name == "restore_images":
        asked = runpy.run_path(str(ROOT / tool))["parser"]().parse_args(arguments)
        if "RUN_FOLDER" not in command:
            restoring.load(asked.restorer, asked.classifier)
        return
    path, overrides = split_arguments(arguments, "usage: python tools/x.py CONFIG\n")
    assert path is not None
    built = config.load(SCHEMAS[name], path, overrides)  # which refuses unknown keys and values of a wrong type
    if name == "evaluate" and "RUN_FOLDER" not in command:
        settings.check(built)


def test_every_kind_of_command_is_met() -> None:
    assert {shlex.split(line)[1] for page in PAGES for line in commands(page)} >= {
        "tools/evaluate.py",
        "tools/train_trn.py",
        "tools/restore_images.py",
    }


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:tools|configs|gandefense)/[\w/.-]+[\w/]", text))
    assert not [name for name in named if not (ROOT / name).exists()]
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        if file.startswith("https://"):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


def test_generated_pages_are_up_to_date() -> None:
    late = [str(path.relative_to(ROOT)) for path in API["out_of_date"]()]
    assert not late, f"the source has changed; refresh these pages with: {API['COMMAND']}"
    assert {path.name for path in (ROOT / "docs" / "api").iterdir()} == {f"{title}.md" for title in API["PAGES"]}


def test_every_config_and_every_key_is_explained() -> None:
    assert set(API["CONFIGS"]) == {schema.__name__ for schema in SCHEMAS.values()}
    source = API["Source"]()
    for name in API["CONFIGS"]:
        found = source.keys(name)
        unexplained = [key for key, _, _, about in found if not about]
        assert not unexplained, f"give each of these keys of {name} a comment in its class, then {API['COMMAND']}"
    built = config.to_dict(config.build(GANConfig, {}))
    assert [key for key, *_ in source.keys("GANConfig")] == flat(built), "as OmegaConf sees them"


def flat(values: dict, prefix: str = "") -> list[str]:
    """Nested keys with dots, in their order."""
    keys = []
    for key, value in values.items():
        keys += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return keys


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page, "yaml")], ids=lambda page: page.name)
def test_configs_in_the_text_are_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        settings.check(config.build(EvaluateConfig, yaml.safe_load(block)))


def test_fields_of_the_results_are_explained() -> None:
    results = json.loads((ROOT / "results" / "cifar10_joint.json").read_text(encoding="utf-8"))
    text = REPORT_PAGE.read_text(encoding="utf-8").split("## results.json", 1)[1]

    def explained(first: str) -> set[str]:
        table = text.split(f"{first}:\n\n", 1)[1].split("\n\n", 1)[0]
        return words([line.strip("|").split(" | ")[0] for line in table.splitlines()[2:]])

    # these results are older than "levels" and "trained_for"
    assert words([row[0] for row in rows(REPORT_PAGE, "field")]) == {*results, "levels", "trained_for"}
    assert explained("An entry of `rows`") == set(results["rows"][0])
    assert explained("An entry of `worst_case`") == set(results["worst_case"]["cifar10/gan"]["white_box"])
    assert explained("An entry of `detection`") == set(results["detection"]["cifar10/gan"])


def test_tables_name_what_the_package_knows() -> None:
    assert words([row[0] for row in rows(THREATS_PAGE, "threat")]) == set(THREATS)
    assert words([row[0] for row in rows(THREATS_PAGE, "view")]) == set(VIEWS)
    assert words([row[0] for row in rows(THREATS_PAGE, "name")]) == {*NAMES, *NOISES}
    assert words([row[0] for row in rows(OWN_PARTS, "field")]) == set(Restoration._fields)
    assert [row[0].strip("`") for row in rows(OWN_PARTS, "column")] == list(restoring.COLUMNS)


def test_every_check_is_explained() -> None:
    source = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (checks, curve_checks))
    known = set(re.findall(r'name = "(\w+)"', source)) | set(re.findall(r'finding\(\s*"(\w+)"', source))
    assert len(known) > 10
    assert words([row[0] for row in rows(THREATS_PAGE, "check")]) == known


RIVALS = ROOT / "results" / "rivals.md"


def test_the_defences_page_shows_the_tables_that_the_command_wrote() -> None:
    page = (ROOT / "docs" / "defences.md").read_text(encoding="utf-8")
    shown = 0
    for section in RIVALS.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, *lines = section.splitlines()
        if title in ("Pictures", "As the literature says?", "How it was made"):
            continue
        table = "\n".join(line for line in lines if line.startswith("|"))
        assert table.count("\n") >= 2 and table in page, title
        shown += 1
    assert shown >= 2
