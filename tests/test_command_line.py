"""Exit statuses and one-line messages of the tools."""

from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gandefense.command_line import run_tool, split_arguments, training_config
from gandefense.errors import UserError
from gandefense.training.classifier import ClassifierConfig

TINY_TOOL = """
import os, signal, sys, time
from gandefense.command_line import run_tool
from gandefense.errors import UserError

def main(arguments):
    if arguments == ["mistake"]:
        raise UserError("what, where and what to do")
    if arguments == ["terminated"]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    print("did", *arguments)

run_tool(main, "usage: tiny WORD")
"""
USAGE = "usage: python tools/train_x.py CONFIG [key=value …]\n       python tools/train_x.py resume=RUN_FOLDER\n"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run something that ends in `run_tool` within this process: exit status, standard output, standard error."""
    before = signal.getsignal(signal.SIGTERM)

    def run(start: Callable[[], object], *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, words)])
        status = 0
        try:
            start()
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    yield run
    signal.signal(signal.SIGTERM, before)


def _raise(error: BaseException) -> Callable[[list[str]], None]:
    def main(arguments: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("word", "status", "out", "err"),
    [
        ("work", 0, "did work\n", ""),
        ("mistake", 2, "", "error: what, where and what to do\n"),
        ("terminated", 130, "", "\ninterrupted\n"),
    ],
)
def test_exit_status_of_a_process(tmp_path: Path, python: Callable, word: str, status: int, out: str, err: str) -> None:
    script = tmp_path / "tiny.py"
    script.write_text(TINY_TOOL, encoding="utf-8")
    done = python(script, word)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


@pytest.mark.parametrize(
    ("error", "status", "err"),
    [
        (UserError("a line"), 2, "error: a line\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_exit_status_of_an_exception(tool: Callable, error: BaseException, status: int, err: str) -> None:
    assert tool(lambda: run_tool(_raise(error), "usage")) == (status, "", err)


def test_a_programming_error_keeps_its_traceback(tool: Callable) -> None:
    with pytest.raises(ZeroDivisionError):
        tool(lambda: run_tool(_raise(ZeroDivisionError()), "usage"))


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_prints_the_usage_and_runs_nothing(tool: Callable, word: str) -> None:
    assert tool(lambda: run_tool(_raise(AssertionError("ran")), "\nusage: tiny\n"), word) == (0, "usage: tiny\n", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (None, [])),
        (["a.yaml"], ("a.yaml", [])),
        (["x.y=1", "a.yaml", "z=2"], ("a.yaml", ["x.y=1", "z=2"])),
    ],
)
def test_words_are_split_into_config_and_overrides(words: list[str], expected: tuple) -> None:
    assert split_arguments(words, USAGE) == expected


@pytest.mark.parametrize("words", [["a.yaml", "b.yaml"], ["--lr", "0.1"], ["-v"]])
def test_words_that_are_no_config_show_the_usage(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"python tools/train_x\.py") as caught:
        split_arguments(words, USAGE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["resume=x", "a.yaml"], ["resume=x", "train.epochs=3"]])
def test_resume_stands_alone(words: list[str]) -> None:
    with pytest.raises(UserError, match="resume=RUN_FOLDER stands alone"):
        training_config(ClassifierConfig, "classifier", words, USAGE)


def test_no_config_shows_the_usage() -> None:
    with pytest.raises(UserError, match=r"no config file given; usage: python tools/train_x.py CONFIG"):
        training_config(ClassifierConfig, "classifier", [], USAGE)


def _unknown_key(root: Path, folder: Path) -> list[object]:
    (folder / "c.yaml").write_text("train:\n  epoch: 3\n", encoding="utf-8")
    return [folder / "c.yaml"]


def _missing_config(root: Path, folder: Path) -> list[object]:
    return [folder / "absent.yaml"]


def _no_run(root: Path, folder: Path) -> list[object]:
    return [f"resume={folder}"]


def _corrupt_data(root: Path, folder: Path) -> list[object]:
    (folder / "data" / "cifar10").mkdir(parents=True)
    for file in (root / "cifar10").iterdir():
        content = bytearray(file.read_bytes())
        content[100] ^= 255 if file.name == "data_batch_3.bin" else 0
        (folder / "data" / "cifar10" / file.name).write_bytes(content)
    (folder / "c.yaml").write_text(f"data:\n  root: {folder / 'data'}\nrun:\n  folder: {folder}\n", encoding="utf-8")
    return [folder / "c.yaml"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_unknown_key, "unknown key train.epoch; the nearest known one is train.epochs"),
        (_missing_config, "config file not found: {folder}/absent.yaml"),
        (_no_run, "resume={folder}: no run folder"),
        (_corrupt_data, "corrupt data file: {folder}/data/cifar10/data_batch_3.bin"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(
    tool: Callable, small_cifar10: Path, tmp_path: Path, prepare: Callable[[Path, Path], list[object]], message: str
) -> None:
    path = str(Path(__file__).parent.parent / "tools" / "train_classifier.py")
    words = prepare(small_cifar10, tmp_path)
    status, _, err = tool(lambda: runpy.run_path(path, run_name="__main__"), *words)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert message.format(folder=tmp_path) in err
    assert not list(tmp_path.glob("0*")), "a mistake must leave no run folder behind"
