"""gandefense.reproduce.trainings: what is trained anew, gone on with, or used again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gandefense import zoo
from gandefense.config import DataConfig
from gandefense.errors import UserError
from gandefense.reproduce import trainings
from gandefense.training import trn as trn_training
from tests.reproduce.conftest import Recipes

DATA = DataConfig()


def _train(recipes: Recipes, parent: Path, **changes: Any) -> Path:
    wanted = {"classifier": recipes.network, **changes}
    return Path(trainings.trained(recipes.trn, DATA, parent, device="cpu", changes=wanted))


def test_a_finished_training_is_used_again_and_only_the_same_one(
    recipes: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _train(recipes, tmp_path / "t")
    description = zoo.describe(first)
    assert (description["kind"], description["config"]["train"]["steps"]) == ("trn", 2)
    assert "trained before" not in capsys.readouterr().out
    assert _train(recipes, tmp_path / "t") == first
    assert "trained before" in capsys.readouterr().out
    other = _train(recipes, tmp_path / "t", network={"streams": "image"})
    assert zoo.describe(other)["network"]["streams"] == "image"
    assert other.parent != first.parent
    config = trainings.prepared(recipes.trn, DATA, {"classifier": recipes.network})
    same = trainings.folder_of(config, recipes.trn, tmp_path / "t")
    assert same == first.parent
    monkeypatch.setattr(trainings, "code_hash", lambda: "other code")
    assert trainings.folder_of(config, recipes.trn, tmp_path / "t") != same


def test_a_killed_training_goes_on_in_its_run_folder(
    recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trn_training, "validate", die)  # at the last step, before its checkpoint
        with pytest.raises(RuntimeError):
            _train(recipes, tmp_path / "t", train={"steps": 3}, run={"checkpoint_every": 2, "image_every": 3})
    folder = _train(recipes, tmp_path / "t", train={"steps": 3}, run={"checkpoint_every": 2, "image_every": 3})
    assert f"resuming {folder}" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (folder / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps[-1] == 3 and len(list(folder.parent.iterdir())) == 1


def test_where_the_classifier_lies_does_not_matter_but_what_it_is(recipes: Recipes, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.safetensors"
    copy.write_bytes(Path(recipes.network).read_bytes())
    folders = {
        trainings.folder_of(trainings.prepared(recipes.trn, DATA, {"classifier": str(name)}), recipes.trn, tmp_path)
        for name in (copy, recipes.network, "cifar10/classifier")
    }
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("trn/nothing.yaml", {}, "config file not found"),
        ("elsewhere/tiny.yaml", {}, "its folder must say what it trains: classifier, trn, gan, baselines"),
        (
            "trn/tiny.yaml",
            {"network": {"stream": "image"}},
            r"unknown key network.stream; the nearest known one is network.streams",
        ),
        ("trn/tiny.yaml", {"data": {"name": "svhn"}}, "is for 'svhn', but data.name is 'cifar10'"),
        ("baselines/tiny.yaml", {}, "needs a line 'baseline: NAME'"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(recipes: Recipes, name: str, changes: dict[str, Any], message: str) -> None:
    folder = Path(recipes.trn).parents[1]
    for other in ("elsewhere", "baselines"):
        (folder / other).mkdir()
        (folder / other / "tiny.yaml").write_text("data:\n  name: cifar10\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        trainings.check(str(folder / name), DATA, changes)


def test_merged_keeps_what_is_not_changed() -> None:
    values = {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}
    assert trainings.merged(values, {"a": {"c": {"d": 3}}, "e": [2]}) == {"a": {"b": 1, "c": {"d": 3}}, "e": [2]}
    assert values["a"]["c"]["d"] == 2
