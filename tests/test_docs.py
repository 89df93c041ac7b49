"""The pages in docs/: their Python runs, their commands are understood, and what they name is there."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

from gandefense import config, restoring
from gandefense.attacks.noise import NOISES
from gandefense.attacks.suite import NAMES
from gandefense.attacks.threats import THREATS, VIEWS
from gandefense.command_line import split_arguments
from gandefense.data import sources
from gandefense.evaluation import checks, curve_checks, settings
from gandefense.evaluation.settings import EvaluateConfig
from gandefense.restorers.base import Restoration
from gandefense.training.classifier import ClassifierConfig
from gandefense.training.gan import GANConfig
from gandefense.training.trn import TRNConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
OWN_PARTS, THREATS_PAGE = ROOT / "docs" / "your-own-parts.md", ROOT / "docs" / "threats-and-checks.md"
SCHEMAS = {
    "evaluate": EvaluateConfig,
    "train_classifier": ClassifierConfig,
    "train_trn": TRNConfig,
    "train_gan": GANConfig,
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def commands(page: Path) -> list[str]:
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


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


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (sources.data_root() / "cifar10" / "test_batch.bin").is_file():
        pytest.skip("CIFAR-10 is not on this machine")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as for a Python that is started in the repository root
    scope: dict = {}
    for block in blocks(page, "python"):
        cheap = re.sub(r"limit=\d+", "limit=2", block).replace("suite.apgd.n_restarts = 1", "suite.apgd.n_iter = 10")
        exec(compile(cheap, page.name, "exec"), scope)
    if page == OWN_PARTS:
        assert scope["restorer"](torch.rand(1, 3, 32, 32)).score.shape == (1,)
        assert scope["logits"].shape == (2, 10)
        assert sorted(path.name for path in Path("runs/my_images").iterdir()) == ["00.png", "01.png"]
        assert not torch.equal(scope["attacked"], scope["images"])
        assert (scope["attacked"] - scope["images"]).abs().max() <= 8 / 255 + 1e-6


@pytest.mark.parametrize(("page", "command"), [(page, line) for page in PAGES for line in commands(page)])
def test_commands_are_understood(page: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    python, tool, *arguments = shlex.split(command)
    assert python == "python" and (ROOT / tool).is_file()
    name = Path(tool).stem
    if name == "restore_images":
        asked = runpy.run_path(str(ROOT / tool))["parser"]().parse_args(arguments)
        restoring.load(asked.restorer, asked.classifier)
        return
    path, overrides = split_arguments(arguments, "usage: python tools/x.py CONFIG\n")
    assert path is not None
    built = config.load(SCHEMAS[name], path, overrides)  # which refuses unknown keys and values of a wrong type
    if name == "evaluate":
        settings.check(built)


def test_every_kind_of_command_is_met() -> None:
    assert {shlex.split(line)[1] for page in PAGES for line in commands(page)} >= {
        "tools/evaluate.py",
        "tools/train_trn.py",
        "tools/restore_images.py",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:tools|configs|gandefense)/[\w/.-]+[\w/]", text))
    assert not [name for name in named if not (ROOT / name).exists()]
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


def test_schemas_on_the_map_exist() -> None:
    found = rows(ROOT / "docs" / "index.md", "config")
    assert len(found) == len(SCHEMAS)
    for _, schema in found:
        name, path = re.findall(r"`([^`]+)`", schema)
        module = path.removesuffix(".py").replace("/", ".")
        assert getattr(importlib.import_module(module), name) in SCHEMAS.values()


def test_tables_name_what_the_package_knows() -> None:
    assert words([row[0] for row in rows(THREATS_PAGE, "threat")]) == set(THREATS)
    assert words([row[0] for row in rows(THREATS_PAGE, "view")]) == set(VIEWS) - {"oblivious"}
    assert words([row[0] for row in rows(THREATS_PAGE, "name")]) == {*NAMES, *NOISES}
    assert words([row[0] for row in rows(OWN_PARTS, "field")]) == set(Restoration._fields)
    assert [row[0].strip("`") for row in rows(OWN_PARTS, "column")] == list(restoring.COLUMNS)


def test_every_check_is_explained() -> None:
    source = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (checks, curve_checks))
    known = set(re.findall(r'name = "(\w+)"', source)) | set(re.findall(r'finding\(\s*"(\w+)"', source))
    assert len(known) > 10
    assert words([row[0] for row in rows(THREATS_PAGE, "check")]) == known
