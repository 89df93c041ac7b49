"""The kill test in short; `python -m tests.endurance.kill` is the whole of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_runs_end_like_undisturbed_ones(python: Callable, tmp_path: Path) -> None:
    done = python("-m", "tests.endurance.kill", "kills=2", "what=[train_trn]", "seed=2", f"folder={tmp_path / 'work'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "2 of 2 killed runs ended like the undisturbed one"
    assert done.stdout.count("→ same in") == 2


def test_a_difference_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.endurance import kill

    outcomes = iter([{"weights": 1}, {"weights": 1}, {"weights": 2}])  # undisturbed, first, second killed run
    monkeypatch.setattr(kill, "references", lambda *_: ({"train_classifier": tmp_path}, {"train_classifier": {}}))
    monkeypatch.setattr(kill, "kill_at", lambda *_: True)
    monkeypatch.setattr(kill, "finish", lambda *_: {})
    monkeypatch.setattr(kill, "outcome", lambda *_: next(outcomes))
    assert kill.endure(2, ["train_classifier"], 0, tmp_path) == 1
    assert "DIFFERENT" in capsys.readouterr().out and (tmp_path / "01").is_dir()


@pytest.mark.parametrize("word", ["what=[train]", "what=[]", "kills=0", "a.yaml", "kill=3"])
def test_bad_words_are_told(word: str) -> None:
    from gandefense.errors import UserError
    from tests.endurance import kill

    with pytest.raises(UserError):
        kill.main([word])
