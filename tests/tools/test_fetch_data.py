"""tools/fetch_data.py"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from gandefense.data import sources


@pytest.fixture
def fetch(tool: Callable) -> Callable[..., tuple[int, str, str]]:
    return partial(tool, "fetch_data")


def test_data_that_are_there_are_checked(fetch: Callable, small_cifar10: Path) -> None:
    expected = f"cifar10: complete and checked, in {small_cifar10 / 'cifar10'}\n"
    assert fetch("cifar10") == (0, expected, "")


@pytest.mark.parametrize("option", ["root", "data.root"])
def test_root_names_the_folder(
    fetch: Callable, small_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def source(folder: Path) -> None:
        for file in (small_cifar10 / "cifar10").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(sources, "SOURCES", {"test": source})
    status, out, err = fetch("cifar10", f"{option}={tmp_path}")
    assert (status, err) == (0, "")
    assert out.endswith(f"in {tmp_path / 'cifar10'}\n")
    assert len(list((tmp_path / "cifar10").iterdir())) == 6


@pytest.mark.parametrize("words", [[], ["cifar10", "cifar10"], ["cifar10", "roots=x"], ["cifar11"]])
def test_a_mistake_is_one_line_and_status_2(fetch: Callable, small_cifar10: Path, words: list[str]) -> None:
    status, _, err = fetch(*words)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert "cifar10" in err


def test_nothing_reachable_is_one_line_and_status_2(fetch: Callable, small_cifar10: Path, tmp_path: Path) -> None:
    status, _, err = fetch("cifar10", f"root={tmp_path}")
    assert (status, err.count("\n")) == (2, 1)
    assert "could not be fetched" in err


def test_a_corrupt_file_is_named(fetch: Callable, small_cifar10: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    for file in (small_cifar10 / "cifar10").iterdir():
        (tmp_path / "cifar10" / file.name).write_bytes(file.read_bytes()[:-1] + b"!")
    status, _, err = fetch("cifar10", f"root={tmp_path}")
    assert (status, err.count("\n")) == (2, 1)
    assert f"corrupt data file: {tmp_path / 'cifar10' / 'data_batch_1.bin'}" in err
