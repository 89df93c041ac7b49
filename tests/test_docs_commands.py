"""Every command and every Python block of the documentation runs, on a small CIFAR-10 and with small settings.

Commands in `sh` blocks, and in text and tables between backquotes, are taken in their order, page by page. What is added
to keep them short stands in SHORTER, what cannot be run here in NOT_RUN with the reason. A command of a new tool needs a
line in one of them.
"""

from __future__ import annotations

import dataclasses
import re
import runpy
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from gandefense import zoo
from gandefense.data import datasets
from gandefense.evaluation import cost, metrics
from gandefense.restorers.baselines import READY
from gandefense.restorers.gan import GANNetworks
from gandefense.restorers.trn import TwoStreamRestorationNetwork
from gandefense.weights_io import save_weights
from tests.evaluation.conftest import _trained as trained

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = "tiny.safetensors"  # a small classifier, in the folder that the commands are run in

TINY_TRAINING = "data.limit=24 attacked.rows=12 attacked.steps=1 validation_rows=6 train.steps=2 train.batch_size=4"
FEW_ATTACKS = (
    "\"gray_box=[{attack: fgsm}, {attack: 'gaussian[-1,1]', eps: 0.2}]\" "
    "'white_box.attacks=[{attack: pgd, steps: 1}, {attack: pgd, steps: 1, survivors: true, loss: margin}]' "
    "'white_box.views=[detached]' 'black_box.transfer=[{attack: fgsm}]' 'black_box.queries=[]' "
    "'curves.eps=[]' 'curves.steps=[]' 'curves.eot=[]'"
)
CHEAP_EVALUATION = (
    "gray_box=[], white_box={'views': ['detached'], 'attacks': [{'attack': 'pgd', 'steps': 1}]}, validation_images=2"
)
# tool → words that are added to its command; a later word for the same key wins
SHORTER: dict[str, str] = {
    "tools/train_classifier.py": "architecture=tiny data.limit=24 train.epochs=1 train.batch_size=12 "
    "train.adversarial.validation_images=2",
    "tools/average_weights.py": f"networks=[{TINY},{TINY},{TINY}] data.limit=24 batches=1 batch_size=12",
    "tools/train_trn.py": f"{TINY_TRAINING} network.width=8 network.blocks=1 network.halvings=0",
    "tools/train_gan.py": f"{TINY_TRAINING} distil.steps=1 distil.batch_size=4 network.width=8 network.discriminator_width=8 "
    "adapt.steps=1 adapt.batch_size=4",
    "tools/train_joint.py": f"classifier={TINY} data.limit=24 train.steps=1 train.batch_size=4 train.adversarial.steps=1 "
    "train.adversarial.validation_images=2 trn.width=8 trn.blocks=1 gan.width=8",
    "tools/evaluate.py": f"data.limit=2 batch_size=2 validation_images=2 images=1 cost_batch_size=1 overwrite=true {FEW_ATTACKS}",
    "tools/calibrate.py": "limit=1",
    "docs/examples/imagenet_cost.py": "",
    "tools/example_pictures.py": "images=1 folder=runs/pictures",
    "tools/restore_images.py": "--overwrite",
    "tools/calibrate_detector.py": "limit=2",
    "tools/publish.py": "classifier=cifar10/classifier",  # the same weights as those that it was trained for
    "tools/report.py": "",
    "tools/fetch_data.py": "",
}
SLOW = ("tools/calibrate.py", "tools/example_pictures.py")
# beginning of a command → why it is not run here
NOT_RUN: dict[str, str] = {
    "git clone": "needs a network",
    "make": "makes an environment of its own; continuous integration runs make lint and make test, make demo takes ten minutes",
    "source": "changes the shell that it is typed in",
    "tensorboard": "a server that does not end",
    ".venv/bin/tensorboard": "a server that does not end",
    "torchrun": "starts processes that listen on ports; tests/evaluation and tests/training start two of them",
    "python -m pytest": "this is pytest",
    "python -m ruff": "make lint",
    "python tools/api_pages.py": "writes into docs/; tests/test_docs.py looks whether there is something to write",
    "python tools/demo.py": "ten minutes",
    "python tools/reproduce.py": "hours; tests/reproduce runs its parts",
    "python tools/benchmark.py": "minutes; tests/benchmark runs its parts",
    "python tools/export.py": "tests/test_export.py",
    "python tools/clean_cache.py": "looks at the own cache of whoever runs the tests; tests/tools/test_clean_cache.py",
    "python tools/train_baseline.py": "tests/training/baselines",
    "python tools/evaluate.py configs/evaluate/fashion_mnist": "needs Fashion-MNIST; see tests/test_one_channel.py",
    "pip": "needs a network",
    **dict.fromkeys(
        (
            "python tools/train_classifier.py configs/classifier/celeba",
            "python tools/train_gan.py configs/gan/celeba",
            "python tools/evaluate.py configs/evaluate/celeba",
            "python tools/restore_images.py --restorer RUN_FOLDER --input FACES",
        ),
        "needs CelebA, which nobody may pass on; tests/tools/test_celeba.py runs them on drawn faces",
    ),
}
MAKERS = tuple(f"tools/{name}.py" for name in ("evaluate", "train_classifier", "train_trn", "train_gan", "train_joint"))
RUN_ALREADY: set[tuple[str, ...]] = set()  # what MAKERS were asked for on any page, but for where they put it
BEGINNINGS = r"(?:python tools/|python -m |torchrun |tensorboard |\.venv/bin/tensorboard |make |pip )"  # of those within text


def plain(command: str) -> str:
    """A command without the remark behind it, its spaces as one."""
    return " ".join(re.sub(r"\s#\s.*$", "", command).split())


def steps(page: Path) -> list[tuple[str, str]]:
    """("command" or "python", text) of a page in their order, each once."""
    text = page.read_text(encoding="utf-8")
    found: list[tuple[str, str]] = []
    pattern = rf"^```(\w*)\n(.*?)^```$|`({BEGINNINGS}[^`\n]+)`"
    for match in re.finditer(pattern, text, flags=re.S | re.M):
        language, block, inline = match.groups()
        if language == "python":
            found.append(("python", block))
        elif language in ("sh", "bash", "console", "shell"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [("command", plain(line.removeprefix("$ "))) for line in lines if plain(line)]
        elif inline:
            found.append(("command", plain(inline)))
    return list(dict.fromkeys(found))


def reason(command: str) -> str | None:
    """Why a command is not run here, or None."""
    return next((why for beginning, why in NOT_RUN.items() if command.startswith(beginning)), None)


def words(command: str) -> list[str]:
    """The words of a command, shortened; placeholders in capitals are replaced by what the fixtures made."""
    _, tool, *rest = shlex.split(command)
    if not rest or rest[0] in ("--help", "…"):
        return [tool, "--help"] if tool not in SHORTER or rest else [tool, *shlex.split(SHORTER[tool])]
    if any(word.startswith("resume=") for word in rest):
        return [tool, *(word.replace("RUN_FOLDER", "runs/00000-tiny") for word in rest)]
    starts = {"tools/train_gan.py": "runs/00000-tiny", "tools/train_trn.py": "cifar10/trn"}
    filled, first = [], starts.get(tool, TINY)  # what a second stage starts from
    for word in rest:
        word = word.replace("start=RUN_FOLDER", f"start={first}").replace("RUN_FOLDER", "runs/00000-tiny")
        word = word.replace("RESULTS.json", "results/cifar10_joint.json").replace("output=FOLDER", "output=runs/some")
        word = word.replace("classifier=runs/00000-tiny/classifier.safetensors", f"classifier={TINY}")  # of a jointly trained run
        filled.append({"NAME": "cifar10/gan"}.get(word, word))
    if tool == "tools/publish.py":
        filled[-1] = "cifar10/published"
    if tool == "tools/restore_images.py":
        filled = ["runs/my_images" if word == "FOLDER" and filled[i - 1] == "--input" else word for i, word in enumerate(filled)]
        filled = ["runs/restored" if word == "FOLDER" else word for word in filled]
    if tool in ("tools/train_trn.py", "tools/train_gan.py") and not any(word.startswith("classifier=") for word in filled):
        filled.append(f"classifier={TINY}")
    return [tool, *filled, *shlex.split(SHORTER[tool])]


def tiny_networks(place: Path) -> None:
    """A small classifier, trained for a second, and restorers that have learnt nothing, under the names of the shipped ones."""
    (place / "weights" / "cifar10").mkdir(parents=True)
    tensors = trained()
    card = {"kind": "classifier", "architecture": "tiny", "data": "cifar10"}
    shipped = ("classifier", "surrogate", "adversarial-small", "classifier-at", "classifier-at-one-step", "trn-robust-classifier")
    shipped += ("classifier-noise",)
    for name in (TINY, *(f"weights/cifar10/{name}.safetensors" for name in shipped)):
        save_weights(place / name, tensors, card)
    shape = {"channels": 3, "labels": 10, "width": 8, "blocks": 1, "halvings": 0, "streams": "both"}
    about = {"data": "cifar10", "classifier": "cifar10/classifier"}
    trn = TwoStreamRestorationNetwork(**shape).state_dict()
    card = {**about, "kind": "trn", "network": shape, "threshold": 1.0}
    for name in ("trn", "trn-several", "trn-wide", "trn-coarse", "trn-balanced"):
        save_weights(place / f"weights/cifar10/{name}.safetensors", trn, card)
    save_weights(place / "weights/cifar10/trn-robust.safetensors", trn, {**card, "classifier": "cifar10/trn-robust-classifier"})
    shape = {"channels": 3, "size": 32, "ismn": "full", "width": 8, "norm": "group"}
    loop = {"threshold": 1e9, "rounds": 2, "tolerance": 0.01}
    gan = GANNetworks(**shape).state_dict()
    for name in ("gan", "gan-longer"):
        save_weights(place / f"weights/cifar10/{name}.safetensors", gan, {**about, "kind": "gan", "network": shape, "loop": loop})
    card = {**about, "classifier": "cifar10/classifier-noise", "kind": "gan", "network": shape, "loop": loop}
    save_weights(place / "weights/cifar10/gan-noise.safetensors", gan, card)


@pytest.fixture
def folder(small_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository's root to the tools, and has the networks that placeholders stand for."""
    for name in ("configs", "docs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "results", tmp_path / "results")
    small = dataclasses.replace(datasets.DATASETS["cifar10"], validation=12)
    monkeypatch.setitem(datasets.DATASETS, "cifar10", small)
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")  # tools/publish.py writes there
    monkeypatch.setattr(cost, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(cost, "LEAST_REPEATS", 1)
    monkeypatch.setattr(metrics, "lpips_network", lambda *_: None)  # a figure of its own, with tests of its own
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as for a Python that is started in the repository root
    (tmp_path / "my_package.py").write_text(
        "from docs.examples.my_defence import MedianRestorer as MyRestorer, mirrored as build\n", encoding="utf-8"
    )
    tiny_networks(tmp_path)
    (tmp_path / "runs" / "my_images").mkdir(parents=True)
    Image.new("RGB", (32, 32), "grey").save(tmp_path / "runs" / "my_images" / "grey.png")
    return tmp_path


@pytest.fixture
def tool(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], object]]:
    """Run a tool in this process; gives its exit status."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(line: list[str]) -> object:
        monkeypatch.setattr(sys, "argv", line)
        try:
            runpy.run_path(str(folder / line[0]), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return 0

    rivals = dict(READY)  # a page adds one
    yield run
    READY.clear()
    READY.update(rivals)


def asked_for(line: list[str], page: Path) -> tuple[str, ...] | None:
    """What a command asks one of MAKERS for, wherever it puts it; None where the page itself needs that, or gave it a folder.

    Whoever asked for the same has tested it: on another page, or further up.
    """
    settings = dict(word.split("=", 1) for word in line if "=" in word)
    output = settings.pop("output", None)
    rest = {f"{key}={value}" for key, value in settings.items() if key != "run.name"}
    if line[0] not in MAKERS or any("runs/" in word for word in line[1:] if not word.startswith("output=")):
        return None
    for made, word in ((output, f"output={output}"), (settings.get("run.name"), f"run.name={settings.get('run.name')}")):
        if made and any(made in text for kind, text in steps(page) if kind == "python" or word not in text):
            return None
    asked = (line[0], *(word for word in line[1:] if "=" not in word), *sorted(rest))
    return asked


def play(page: Path, folder: Path, tool: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str], slow: bool) -> int:
    """Run a page's commands that are slow, or all others and its Python; gives how many were run."""
    done = 0
    mine = [(kind, text) for kind, text in steps(page) if kind == "python" or reason(text) is None]
    mine = [(kind, text) for kind, text in mine if slow == (kind == "command" and shlex.split(text)[1] in SLOW)]
    if any("RUN_FOLDER" in text for _, text in mine):
        line = words("python tools/train_gan.py configs/gan/cifar10_demo.yaml run.name=tiny")
        assert tool(line) == 0 and (folder / "runs/00000-tiny/model.safetensors").is_file()
    scope: dict = {"my_classifier": nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval()}
    for kind, text in mine:
        if kind == "python":
            cheap = re.sub(r"\blimit=\d+", "limit=2", text).replace("suite.apgd.n_restarts = 1", "suite.apgd.n_iter = 10")
            cheap = cheap.replace('output="', f'{CHEAP_EVALUATION}, output="')
            exec(compile(cheap, page.name, "exec"), scope)
        else:
            line = words(text)
            asked = asked_for(line, page)
            if asked in RUN_ALREADY:
                continue
            status = tool(line)
            said = capsys.readouterr()
            assert status == 0, f"{page.name}: {text}\nrun as: {shlex.join(line)}\n{said.out[-2000:]}{said.err[-2000:]}"
            if asked:
                RUN_ALREADY.add(asked)
        done += 1
    if "attacked" in scope:  # the attacks of docs/your-own-parts.md did something, within their budget
        assert not torch.equal(scope["attacked"], scope["images"])
        assert (scope["attacked"] - scope["images"]).abs().max() <= 8 / 255 + 1e-6
    return done


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_python_run(page: Path, folder: Path, tool: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    play(page, folder, tool, capsys, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_slow_commands_run(name: str, folder: Path, tool: Callable) -> None:
    assert any(name in text for page in PAGES for _, text in steps(page)), "no page names it any more"
    before = {path: path.stat().st_mtime for path in (ROOT / "docs" / "images").iterdir()}
    assert tool(words(f"python {name}")) == 0
    assert {path: path.stat().st_mtime for path in (ROOT / "docs" / "images").iterdir()} == before


def test_only_what_was_asked_for_elsewhere_and_is_not_needed_here_counts_as_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\npython tools/report.py runs/read\n```\n```python\nprint('00000-loaded')\n```\n", encoding="utf-8")
    command = ["tools/evaluate.py", "configs/a.yaml", "limit=2"]
    assert asked_for([*command, "output=runs/one"], page) == asked_for(["tools/evaluate.py", "limit=2", "configs/a.yaml"], page)
    assert asked_for([*command, "output=runs/one"], page) != asked_for([*command[:2], "limit=3", "output=runs/one"], page)
    mine = ("output=runs/read", "restorers=[runs/00000-tiny]", "resume=runs/00000-tiny", "runs/00000-tiny", "run.name=loaded")
    assert [asked_for([*command, word], page) for word in mine] == [None] * 5
    assert asked_for(["tools/publish.py", "a"], page) is None


def test_every_command_is_run_or_says_why_not() -> None:
    unknown = {
        f"{page.name}: {text}"
        for page in PAGES
        for kind, text in steps(page)
        if kind == "command" and reason(text) is None and (text.split()[0] != "python" or text.split()[1] not in SHORTER)
    }
    assert not unknown, "give each a line in SHORTER or in NOT_RUN"


def test_reasons_and_shortened_tools_are_still_needed() -> None:
    commands = [text for page in PAGES for kind, text in steps(page) if kind == "command"]
    assert all((ROOT / tool).is_file() for tool in SHORTER)
    assert {text.split()[1] for text in commands if reason(text) is None} == set(SHORTER)
    assert len(commands) > 30


def test_commands_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Type `python tools/a.py x=1`, or `not this`:\n\n```sh\nmake demo     # some minutes\n"
        "python tools/b.py \\\n  y=2\n```\n\n```python\nprint(1)\n```\n\n```\nno command\n```\n`python tools/a.py x=1`\n",
        encoding="utf-8",
    )
    commands = ["python tools/a.py x=1", "make demo", "python tools/b.py y=2"]
    assert steps(page) == [*(("command", text) for text in commands), ("python", "print(1)\n")]
