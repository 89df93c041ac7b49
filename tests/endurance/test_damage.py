"""Files that a crash, a bad disk or a careless copy has damaged: told in one line, or made again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gandefense.errors import UserError
from gandefense.evaluation import records
from gandefense.files import LEFTOVER, remove_leftovers
from gandefense.weights_io import load_weights


def flip_a_bit(path: Path, place: int) -> None:
    """Change one bit of the byte at a place of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.fixture
def stopped(tool: Callable, recipe: Callable[[str], Path], tmp_path: Path) -> Path:
    """A run of 7 steps, with checkpoints after 5 and 7, whose weights are lost."""
    words = recipe("train_classifier"), "run.checkpoint_every=5", "train.epochs=1"
    status, _, err = tool("train_classifier", *words)
    assert status == 0, err
    folder = tmp_path / "runs" / "00000-run"
    (folder / "model.safetensors").rename(tmp_path / "whole.safetensors")
    return folder


@pytest.mark.parametrize("place", [0.01, 0.5, 0.99])
def test_a_flipped_bit_in_a_checkpoint_is_noticed(place: float, stopped: Path, tool: Callable) -> None:
    path = stopped / "checkpoint.pt"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    start = largest.header_offset + 128  # torch fills up the header to the next multiple of 64 bytes
    flip_a_bit(path, start + int(place * (largest.file_size - 256)))
    status, _, err = tool("train_classifier", f"resume={stopped}")
    assert status == 2
    assert err.startswith(f"error: {path} is damaged") and err.count("\n") == 1
    assert "move it away" in err
    path.rename(stopped / "damaged.pt")
    status, _, err = tool("train_classifier", f"resume={stopped}")
    assert status == 0, err
    first, second = load_weights(stopped.parent.parent / "whole.safetensors")[0], load_weights(stopped / "model.safetensors")[0]
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b'{"step": 3, "lo', b"[1, 2]\n", b'{"step": "x"}\n', b"\n\n"])
def test_a_damaged_log_is_cut_and_goes_on(damage: bytes, stopped: Path, tool: Callable) -> None:
    log = stopped / "stats.jsonl"
    before = log.read_bytes()
    log.write_bytes(before + damage)
    status, _, err = tool("train_classifier", f"resume={stopped}")
    assert status == 0, err
    assert log.read_bytes() == before
    assert all(json.loads(line) for line in log.read_text().splitlines())


@pytest.mark.parametrize("content", ["kind: [", "kind: classifier\nmade_from: 3\n", ""])
def test_a_damaged_config_is_told(content: str, stopped: Path, tool: Callable) -> None:
    (stopped / "config.yaml").write_text(content, encoding="utf-8")
    status, _, err = tool("train_classifier", f"resume={stopped}")
    assert (status, err) == (2, f"error: resume={stopped}: its config.yaml is damaged\n")


def test_a_record_with_a_flipped_bit_is_made_again(tmp_path: Path) -> None:
    records.prepare_folder(tmp_path / "out", overwrite=False)
    kept = records.Records(tmp_path / "out", {"seed": 0})
    kept.write("a", 0, {"x": torch.arange(100), "y": torch.ones(3)})
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    assert kept.has("a", 0)
    for place in (-800, -400, -1):
        flip_a_bit(path, place)
        assert not kept.has("a", 0)
        path.write_bytes(whole)
    assert kept.has("a", 0)


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '{"seed": 0'])
def test_a_damaged_origin_is_told(content: str, tmp_path: Path) -> None:
    records.prepare_folder(tmp_path / "out", overwrite=False)
    records.Records(tmp_path / "out", {"seed": 0})
    (tmp_path / "out" / "records" / "origin.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"origin.json is damaged"):
        records.Records(tmp_path / "out", {"seed": 0})


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    mine = [".gitignore", ".notes.txt", "model.safetensors", ".lock", ".nfs000000000123"]
    left = [".checkpoint.pt.k3_x9qab", "records/a/.00001.safetensors.abcdefgh"]
    for name in (*mine, *left):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    remove_leftovers(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)


def test_leftovers_are_named_as_the_library_names_them(tmp_path: Path) -> None:
    from gandefense.files import write_atomically

    names = []
    write_atomically(tmp_path / "checkpoint.pt", lambda temporary: names.append(temporary.name))
    assert LEFTOVER.fullmatch(names[0]) and (tmp_path / "checkpoint.pt").is_file()
