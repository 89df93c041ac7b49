"""Records: round trip, damage, other origins; and the output folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gandefense.errors import UserError
from gandefense.evaluation import records
from gandefense.evaluation.records import Records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records.prepare_folder(tmp_path / "out", overwrite=False)
    return tmp_path / "out"


def test_round_trip(folder: Path) -> None:
    kept = Records(folder, {"seed": 0})
    shared = torch.arange(6.0).view(2, 3)
    kept.write("a/b", 0, {"x": shared[0], "y": shared[:, 1], "flags": torch.tensor([True]), "panel/z": torch.ones(1)})
    kept.write("a/b", 1, {"x": torch.ones(1), "y": torch.ones(1), "flags": torch.tensor([False])})
    again = Records(folder, {"seed": 0})
    assert again.columns("a/b", 2)["x"].tolist() == [0, 1, 2, 1]
    assert again.columns("a/b", 2)["flags"].tolist() == [True, False]
    assert set(again.columns("a/b", 2)) == {"x", "y", "flags"} and set(again.pictures("a/b")) == {"z"}
    assert again.read("a/b", 2) is None and not again.has("a_b", 0), "keys that read alike are not the same"


def test_a_damaged_record_is_made_again(folder: Path) -> None:
    kept = Records(folder, {"seed": 0})
    kept.write("a", 0, {"x": torch.ones(100)})
    path = next(folder.glob("records/*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-10])
    assert kept.read("a", 0) is None


def test_another_origin_is_named(folder: Path) -> None:
    Records(folder, {"seed": 0, "weights": "a", "eps": 8 / 255})
    Records(folder, {"seed": 0, "weights": "a", "eps": 8 / 255})
    with pytest.raises(UserError, match=r"different: weights\)"):
        Records(folder, {"seed": 0, "weights": "b", "eps": 8 / 255})


def test_overwrite_takes_only_what_is_an_evaluations(folder: Path) -> None:
    (folder / "results.json").write_text("{}")
    (folder / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="finished"):
        records.prepare_folder(folder, overwrite=False)
    Records(folder, {"seed": 0})
    records.prepare_folder(folder, overwrite=True)
    Records(folder, {"seed": 1})
    assert sorted(path.name for path in folder.iterdir()) == ["mine.txt", "pictures", "records"]


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        records.prepare_folder(tmp_path / "file", overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_elses_is_left_as_it_is(tmp_path: Path, overwrite: bool) -> None:
    files = [".env.template", "sub/.env.defaults", "tensorboard/events", "report.md"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="was not made by an evaluation"):
        records.prepare_folder(tmp_path, overwrite=overwrite)
    (tmp_path / "report.md").unlink()
    (tmp_path / "tensorboard/events").unlink()
    (tmp_path / "tensorboard").rmdir()
    (tmp_path / ".report.md.abcdefgh").write_text("half", encoding="utf-8")
    records.prepare_folder(tmp_path, overwrite=overwrite)
    assert all((tmp_path / name).is_file() for name in files[:2])
    assert not (tmp_path / ".report.md.abcdefgh").exists()
    records.prepare_folder(tmp_path, overwrite=overwrite)  # as after a kill before the first record
