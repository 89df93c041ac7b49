"""gandefense.reproduce: the rivals' tables from real, small evaluations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from gandefense import classifiers, zoo
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.evaluation import cost, metrics, plots
from gandefense.evaluation.settings import resolve
from gandefense.reproduce import evaluations, rival_pictures, rival_tables, rivals
from gandefense.reproduce.rivals import RivalsConfig
from tests.evaluation.conftest import Networks, networks  # noqa: F401  (a fixture)


def _figure(accuracy: float, count: int = 100) -> dict[str, Any]:
    return {"accuracy": accuracy, "ci95": [accuracy, accuracy], "n": count}


def _seed(name: str, clean: float, pgd: float, apgd: float) -> dict[str, Any]:
    return {"name": name, "clean": _figure(clean), "pgd": _figure(pgd), "apgd": _figure(apgd)}


def test_the_gain_of_the_blocks_is_a_paired_mean_with_students_interval() -> None:
    pairs = [
        (_seed("a0", 0.7, 0.30, 0.25), _seed("b0", 0.7, 0.32, 0.25)),
        (_seed("a1", 0.6, 0.40, 0.35), _seed("b1", 0.7, 0.44, 0.35)),
        (_seed("a2", 0.5, 0.20, 0.15), _seed("b2", 0.7, 0.23, 0.15)),
    ]
    gains = rivals.blocks(pairs)["gains"]
    assert gains["pgd"]["each"] == pytest.approx([0.02, 0.04, 0.03])
    expected = stats.t.interval(0.95, 2, loc=0.03, scale=stats.sem([0.02, 0.04, 0.03]))
    assert gains["pgd"]["ci95"] == pytest.approx(expected)
    assert gains["clean"]["mean"] == pytest.approx(0.1)
    assert gains["apgd"] == {"mean": 0.0, "ci95": [0.0, 0.0], "each": [0.0, 0.0, 0.0]}
    assert rivals.blocks(pairs[:1])["gains"]["pgd"]["ci95"] is None
    assert rival_tables.blocks_table(rivals.blocks(pairs)).rows[-1][2].startswith("+3.0 points [")


@pytest.mark.parametrize(
    ("name", "worst", "came_out"),
    [
        ("cifar10/gan", 0.02, True),
        ("cifar10/gan", 0.11, False),
        ("cifar10/classifier", 0.0, True),
        ("cifar10/adversarial-small", 0.0, None),  # trained with one step of FGSM, of which nothing is expected
        ("cifar10/adversarial-small", 0.5, None),
    ],
)
def test_facts_know_who_was_trained_on_attacked_images(name: str, worst: float, came_out: bool | None) -> None:
    is_restorer = name == "cifar10/gan"
    restorers = [{"name": name, "white_box_worst": _figure(worst)}] if is_restorer else []
    classifiers = [] if is_restorer else [{"name": name, "autoattack": _figure(worst)}]
    (fact,) = rivals.facts(restorers, classifiers, "cifar10/classifier")
    assert (fact["worst_case"], fact["came_out"]) == (worst, came_out)
    assert fact["expected"] == ("none" if came_out is None else "at most 10 %")
    assert rival_tables.facts_table([fact]).rows[0][-1] == {True: "yes", False: "NO", None: "–"}[came_out]


@pytest.mark.parametrize("training", ["pgd", "trades", "alp"])
@pytest.mark.parametrize(("worst", "came_out"), [(0.25, True), (0.24, False)])
def test_robust_trainings_keep_something(monkeypatch: pytest.MonkeyPatch, training: str, worst: float, came_out: bool) -> None:
    monkeypatch.setattr(zoo, "describe", lambda _: {"kind": "classifier", "adversarial": training})
    (fact,) = rivals.facts([], [{"name": "cifar10/x", "autoattack": _figure(worst)}], "cifar10/classifier")
    assert (fact["expected"], fact["came_out"]) == ("at least 25 %", came_out)
    restorers = [{"name": "none", "white_box_worst": _figure(worst)}, {"name": "jpeg", "white_box_worst": _figure(worst)}]
    before = {"jpeg": {"kind": "ready"}, "cifar10/x": {"kind": "classifier", "adversarial": training}}
    monkeypatch.setattr(zoo, "describe", lambda name: before[name])
    found = rivals.facts(restorers, [], "cifar10/x")
    assert [fact["came_out"] for fact in found] == [came_out, came_out], "they stand before a robust classifier"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks_without": ["cifar10/classifier"]}, "pairs, seed by seed"),
        ({"restorers": ["cifar10/gan", "cifar10/nothing"]}, "cifar10/nothing"),
        ({"classifiers": ["cifar10/nobody"]}, "cifar10/nobody"),
    ],
)
def test_a_mistake_is_found_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rivals.check(RivalsConfig(**changes))


@pytest.mark.parametrize("which", ["results", "folder"])
def test_a_folder_that_is_a_file_is_found_before_any_work(which: str, tmp_path: Path) -> None:
    folders = {"results": str(tmp_path / "results"), "folder": str(tmp_path / "runs")}
    Path(folders[which]).write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write to the folder"):
        rivals.check(RivalsConfig(**folders))


@pytest.mark.parametrize(
    ("name", "value"),
    [("code_hash", "other code"), ("all_versions", {"torch": "0"}), ("choose_device", torch.device("cuda"))],
)
def test_what_other_code_libraries_or_devices_measured_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: Any
) -> None:
    config = resolve(None, rivals.classifier_settings(RivalsConfig(device="cpu"), "cifar10/classifier"))
    before = evaluations.folder_of(config, tmp_path)
    assert evaluations.folder_of(config, tmp_path) == before
    monkeypatch.setattr(evaluations, name, lambda *_: value)
    assert evaluations.folder_of(config, tmp_path) != before


@pytest.mark.parametrize("change", ["LPIPS", "validation images"])
def test_what_was_measured_without_lpips_or_with_other_thresholds_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    config = resolve(None, rivals.classifier_settings(RivalsConfig(device="cpu"), "cifar10/classifier"))
    monkeypatch.setattr(metrics, "has_lpips", lambda: False)
    before = evaluations.folder_of(config, tmp_path)
    if change == "LPIPS":
        monkeypatch.setattr(metrics, "has_lpips", lambda: True)
    else:
        config.validation_images -= 1
    assert evaluations.folder_of(config, tmp_path) != before


def shortened(settings: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The same attacks in fewer steps and queries."""

    def short(*words: Any) -> dict[str, Any]:
        made = settings(*words)
        few = {name: {"steps": 2} for name in ("universal", "apgd-ce")} | {"autoattack": {"steps": 2, "queries": 5}}
        return {**made, "gray_box": [dataclasses.replace(entry, **few.get(entry.attack, {})) for entry in made["gray_box"]]}

    return short


def test_the_tool_measures_writes_and_uses_again(
    tool: Callable,
    networks: Networks,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(cost, "LEAST_REPEATS", 1)
    monkeypatch.setattr(metrics, "lpips_network", lambda *_: None)
    monkeypatch.setattr(rival_pictures, "IMAGES", 8)
    monkeypatch.setattr(rivals, "classifier_settings", shortened(rivals.classifier_settings))
    monkeypatch.setattr(rivals, "restorer_settings", shortened(rivals.restorer_settings))
    words = [
        "rivals",
        "data.limit=6",
        "batch_size=6",
        "device=cpu",
        f"classifier={networks.classifier}",
        f"restorers=[{networks.trn}]",
        f"classifiers=[{networks.classifier}]",
        "blocks_without=[]",
        "blocks_with=[]",
        f"folder={tmp_path / 'runs'}",
        f"results={tmp_path / 'results'}",
    ]
    status, out, err = tool("reproduce", *words)
    assert status == 0, err
    made = json.loads((tmp_path / "results" / "rivals.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in made["restorers"]] == ["none", networks.trn]
    restored = made["restorers"][1]
    assert restored["white_box_worst"]["accuracy"] <= min(
        restored[key]["accuracy"] for key in ("clean", "pgd", "straight_through")
    )
    (alone,) = made["classifiers"]
    assert alone["autoattack"]["accuracy"] <= alone["apgd"]["accuracy"] <= alone["pgd"]["accuracy"] <= alone["clean"]["accuracy"]
    assert alone["clean"]["n"] == 6
    assert {"universal", "fgsm"} <= restored.keys() and 0 <= alone["universal"]["accuracy"] <= 1
    assert plots.available() == ("pictures" in made) == (tmp_path / "results" / "rivals_universal.png").is_file()
    assert len(made["evaluations"]) == 2 and not any("config" in each for each in made["evaluations"])
    assert networks.trn in made["evaluations"][0]["weights"] and made["evaluations"][1]["versions"]
    page = (tmp_path / "results" / "rivals.md").read_text(encoding="utf-8")
    assert "## Restorers" in page and "| none (classifier alone) |" in page and made["made"]["command"] in page
    again = tool("reproduce", *words)
    assert again[0] == 0 and again[1].count("measured before") == 2
    assert out.count("measured before") == 0


def test_pictures_of_a_network_with_denoising_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_cifar10: Path
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(rival_pictures, "IMAGES", 6)
    network = classifiers.build("resnet9_narrow_denoise_mean", datasets.describe("cifar10"))
    monkeypatch.setattr(zoo, "load_classifier", lambda _: network.eval())
    data = DataConfig()
    found = rival_pictures.pictures(data, "a", "b", tmp_path, eps=8 / 255, seed=0)
    assert {figure["file"] for figure in found.values()} == {path.name for path in tmp_path.iterdir()}
    assert found["denoising"]["classifier"] == "b" and len(found["denoising"]["blocks"]) == 4
    table = rival_pictures.pictures_table(found)
    assert len(table.rows) == 5 and all(name in table.note for name in ("rivals_denoising.png", "rivals_universal.png"))
    monkeypatch.setattr(plots, "available", lambda: False)
    assert rival_pictures.pictures(data, "a", "b", tmp_path, eps=8 / 255, seed=0) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no table named; known: adaptive, adaptive-autoattack, rivals"),
        (["fancy"], "unknown table 'fancy'; known: adaptive, adaptive-autoattack, rivals"),
        (["rivals", "data.limits=3"], "data.limit"),
    ],
)
def test_the_tools_mistakes_are_one_line_and_status_2(tool: Callable, words: list[str], message: str) -> None:
    status, out, err = tool("reproduce", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
