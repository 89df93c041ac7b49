"""What an evaluation keeps while it runs: killed, it goes on to the same table, and never with another's records."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import gandefense
from gandefense.errors import UserError
from gandefense.evaluation import work
from tests.evaluation.conftest import Networks
from tests.helpers.evaluations import GRAY, without_timings


def test_resumed_equals_uninterrupted(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gandefense.evaluate(**settings)
    folder = Path(settings["output"])
    records = sorted(folder.glob("records/*/*.safetensors"))
    for path in records[::2]:
        path.unlink()
    damaged = records[1]
    damaged.write_bytes(damaged.read_bytes()[:40])
    (folder / "results.json").unlink()
    assert without_timings(gandefense.evaluate(**settings)) == without_timings(whole)

    (folder / "results.json").unlink()
    # With every record there, no attack is run again.
    monkeypatch.setattr(work, "attack", None)
    assert without_timings(gandefense.evaluate(**settings)) == without_timings(whole)


def test_killed_in_the_middle_goes_on(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = gandefense.evaluate(**{**settings, "output": str(tmp_path / "whole")})
    real, calls = work.attack, []

    def dies(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(work, "attack", dies)
    with pytest.raises(KeyboardInterrupt):
        gandefense.evaluate(**settings)
    assert not (Path(settings["output"]) / "results.json").exists()
    assert without_timings(gandefense.evaluate(**settings)) == without_timings(whole)


def test_a_finished_folder_is_refused_unless_overwritten(settings: dict[str, Any]) -> None:
    settings |= {"limit": 4, "white_box": {"views": [], "attacks": []}, "images": 0, "gray_box": []}
    gandefense.evaluate(**settings)
    with pytest.raises(UserError, match="finished evaluation"):
        gandefense.evaluate(**settings)
    mine = Path(settings["output"]) / "notes.txt"
    mine.write_text("kept")
    assert gandefense.evaluate(**settings, overwrite=True, seed=5)["made"]["seed"] == 5
    assert mine.read_text() == "kept"


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 9}, "seed"), ({"gray_box": GRAY[:1]}, "gray_box"), ({"limit": 5}, "data"), ({"batch_size": 2}, "batch_size")],
)
def test_stale_records_are_refused(change: dict[str, Any], named: str, settings: dict[str, Any]) -> None:
    settings |= {"limit": 4, "white_box": {"views": [], "attacks": []}, "images": 0, "gray_box": []}
    gandefense.evaluate(**settings)
    (Path(settings["output"]) / "results.json").unlink()
    with pytest.raises(UserError, match=f"records of another evaluation.*{named}"):
        gandefense.evaluate(**settings | change)


def test_records_of_other_weights_are_refused(settings: dict[str, Any], networks: Networks) -> None:
    from gandefense.weights_io import load_weights, save_weights

    settings |= {"limit": 4, "white_box": {"views": [], "attacks": []}, "images": 0, "gray_box": []}
    gandefense.evaluate(**settings)
    (Path(settings["output"]) / "results.json").unlink()
    tensors, description = load_weights(networks.trn)
    save_weights(Path(networks.trn), {name: tensor + 0.01 for name, tensor in tensors.items()}, description)
    with pytest.raises(UserError, match="weights"):
        gandefense.evaluate(**settings)


def test_a_record_from_elsewhere_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"limit": 4, "white_box": {"views": [], "attacks": []}, "images": 0, "gray_box": []}
    gandefense.evaluate(**settings)
    gandefense.evaluate(**settings | {"output": str(tmp_path / "other"), "seed": 3})
    one, other = (next(folder.glob("records/none_clean*/*")) for folder in (Path(settings["output"]), tmp_path / "other"))
    shutil.copy(other, one)
    (Path(settings["output"]) / "results.json").unlink()
    with pytest.raises(UserError, match="belongs to another evaluation"):
        gandefense.evaluate(**settings)
