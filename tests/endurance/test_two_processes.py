"""Two at work in one place: refused where both would write, waiting where one can use what the other makes."""

from __future__ import annotations

import errno
import fcntl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gandefense.attacks import cache
from gandefense.attacks.cache import AttackedSetConfig, attacked_set
from gandefense.data.batches import Images
from gandefense.errors import UserError
from gandefense.files import LOCK, locked
from tests.helpers.networks import small_cnn

LONG = 120  # seconds that one waits for the other on the slowest machine


@pytest.mark.parametrize("tool_name", ["train_classifier", "evaluate"])
def test_a_second_one_is_refused(tool_name: str, tool: Callable, recipe: Callable[[str], Path], tmp_path: Path) -> None:
    if tool_name == "evaluate":
        folder, words = tmp_path / "out", [recipe("evaluate")]
        folder.mkdir()
    else:
        assert tool(tool_name, recipe(tool_name), "train.epochs=1")[0] == 0
        folder = tmp_path / "runs" / "00000-run"
        words = [f"resume={folder}"]
        (folder / "model.safetensors").unlink()
    before = sorted(path.name for path in folder.rglob("*"))
    with locked(folder, wait=False):
        status, _, err = tool(tool_name, *words)
    assert (status, err.splitlines()[-1]) == (2, f"error: {folder} is in use by another process")
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert tool(tool_name, *words)[0] == 0, "and taken once it is free"


def test_a_cache_is_built_once_by_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "CHUNK", 4)
    images = Images((torch.rand(10, 3, 6, 6) * 255).byte(), torch.arange(10) % 4, torch.arange(10))
    config = AttackedSetConfig(rows=24, attacks=["fgsm"], budgets=[8 / 255], precision="float32")
    made, begun, met = [], threading.Event(), threading.Event()
    real_attack, real_lock = cache.attack, fcntl.flock

    def slow(*words: object, **options: object) -> object:
        made.append(threading.current_thread().name)
        begun.set()
        if made[-1] == "second":
            met.set()  # it should not be here: let the first go on, and fail below
        assert met.wait(LONG), "the second never came to the lock"
        return real_attack(*words, **options)

    def watched(handle: int, how: int) -> None:
        try:
            real_lock(handle, how)
        except BlockingIOError:
            met.set()
            raise

    monkeypatch.setattr(cache, "attack", slow)
    monkeypatch.setattr(fcntl, "flock", watched)

    def make() -> None:
        sets.append(attacked_set(small_cnn(nn.ReLU), images, config, device=torch.device("cpu"), root=str(tmp_path)))

    sets: list[cache.AttackedSet] = []
    threads = [threading.Thread(target=make, name=name, daemon=True) for name in ("first", "second")]
    threads[0].start()
    assert begun.wait(LONG)
    threads[1].start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert made == ["first"] * 6
    assert len(sets) == 2 and torch.equal(sets[0].rows(torch.arange(24)), sets[1].rows(torch.arange(24)))
    assert "waiting for another process that is at work in" in capsys.readouterr().err


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path, wait=False):
        raise ZeroDivisionError
    with locked(tmp_path, wait=False), pytest.raises(UserError, match="in use by another process"), locked(tmp_path, wait=False):
        pass


def test_where_folders_cannot_be_locked_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def files_only(handle: int, how: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().is_dir():
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", files_only)
    with locked(tmp_path, wait=False):
        assert (tmp_path / LOCK).is_file()
        with pytest.raises(UserError, match="in use by another process"), locked(tmp_path, wait=False):
            pass
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    with pytest.raises(UserError, match=r"cannot lock .*: No locks available"), locked(tmp_path, wait=False):
        pass
