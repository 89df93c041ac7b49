"""Removing attacked sets that nobody uses any more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from gandefense.attacks.cache import AttackedSetConfig, attacked_set
from gandefense.attacks.spec import AttackSpec
from gandefense.data.batches import Images
from gandefense.data.decoded import decoded
from gandefense.evaluation.kept_attacks import KeptAttacks
from gandefense.files import locked
from tests.helpers.networks import small_cnn


def make(root: Path, seed: int) -> Path:
    """An attacked set in a data root."""
    images = Images(torch.zeros(8, 3, 6, 6, dtype=torch.uint8), torch.arange(8) % 4, torch.arange(8))
    config = AttackedSetConfig(rows=8, attacks=["none"], budgets=[8 / 255], seed=seed)
    return attacked_set(small_cnn(nn.ReLU), images, config, device=torch.device("cpu"), root=str(root)).folder


def age(folder: Path, days: float) -> None:
    """Let a set look as if it had last been used some days ago."""
    moment = time.time() - days * 24 * 3600
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (moment, moment))


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """An attacked set that was used today, and one that was used ten days ago."""
    new, old = make(tmp_path, 0), make(tmp_path, 1)
    age(old, 10)
    return new, old


def test_listing_removes_nothing(sets: tuple[Path, Path], tmp_path: Path, tool: Callable) -> None:
    status, out, _ = tool("clean_cache", f"root={tmp_path}", "older_than=5")
    assert status == 0
    assert all(str(folder) in out and folder.is_dir() for folder in sets)
    assert "10.0 days unused" in out and "0.0 MB removed (remove=true removes)" in out


def test_decoded_images_are_sets_too(tmp_path: Path, tool: Callable) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.jpg")
    decoded([tmp_path / "a.jpg"], size=32, folder=tmp_path / "decoded", name="faces")
    (folder,) = (tmp_path / "decoded").iterdir()
    assert str(folder) in tool("clean_cache", f"root={tmp_path}")[1] and folder.is_dir()
    status, out, _ = tool("clean_cache", f"root={tmp_path}", "remove=true")
    assert (status, folder.exists()) == (0, False) and "removed" in out


def test_attacked_images_that_evaluations_keep_are_sets_too(tmp_path: Path, tool: Callable) -> None:
    images = torch.rand(2, 3, 6, 6)
    kept = KeptAttacks(images, "abc", batch_size=2, seed=0, device="cpu", largest=1, root=str(tmp_path))
    kept.write("abc", "none/pgd", AttackSpec("pgd"), 0, images)
    (folder,) = (tmp_path / "evaluated").iterdir()
    assert str(folder) in tool("clean_cache", f"root={tmp_path}")[1] and folder.is_dir()
    (folder / "thesis.safetensors").write_text("mine", encoding="utf-8")
    assert "left alone" in tool("clean_cache", f"root={tmp_path}", "remove=true")[1] and folder.is_dir()
    (folder / "thesis.safetensors").unlink()
    status, out, _ = tool("clean_cache", f"root={tmp_path}", "remove=true")
    assert (status, folder.exists()) == (0, False) and "removed" in out


def test_old_sets_are_removed_and_made_again(sets: tuple[Path, Path], tmp_path: Path, tool: Callable) -> None:
    new, old = sets
    assert tool("clean_cache", f"root={tmp_path}", "older_than=5", "remove=true")[0] == 0
    assert new.is_dir() and not old.exists()
    assert make(tmp_path, 1) == old and old.is_dir()


def test_a_set_that_was_opened_again_counts_as_used(sets: tuple[Path, Path], tmp_path: Path, tool: Callable) -> None:
    make(tmp_path, 1)
    tool("clean_cache", f"root={tmp_path}", "older_than=5", "remove=true")
    assert all(folder.is_dir() for folder in sets)


def test_what_is_in_use_or_not_ours_is_left_alone(sets: tuple[Path, Path], tmp_path: Path, tool: Callable) -> None:
    new, old = sets
    (new / "thesis.tex").write_text("mine", encoding="utf-8")
    (tmp_path / "attacked" / "notes").mkdir()
    with locked(old, wait=False):
        status, out, _ = tool("clean_cache", f"root={tmp_path}", "remove=true")
    assert status == 0 and out.count("left alone") == 3
    assert new.is_dir() and old.is_dir() and (tmp_path / "attacked" / "notes").is_dir()


def test_no_cache_at_all(tmp_path: Path, tool: Callable) -> None:
    assert tool("clean_cache", f"root={tmp_path}", "remove=true")[0] == 0
    status, _, err = tool("clean_cache", f"root={tmp_path}", "older=3")
    assert status == 2 and "older_than" in err
