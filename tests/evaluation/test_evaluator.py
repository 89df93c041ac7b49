"""Evaluations from end to end on a small CIFAR-10."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gandefense
from gandefense import zoo
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.evaluation import metrics, work
from gandefense.evaluation.evaluator import EvaluateConfig
from tests.evaluation.conftest import Networks
from tests.helpers.evaluations import GRAY, LIMIT, WHITE, without_timings


def test_results_are_whole_and_consistent(settings: dict[str, Any], networks: Networks) -> None:
    results = gandefense.evaluate(**settings)
    folder = Path(settings["output"])
    assert json.loads((folder / "results.json").read_text()) == results
    assert "NaN" not in (folder / "results.json").read_text()
    assert results["schema"] == 1
    held_out = len(datasets.load(DataConfig(), "validation").labels)
    wanted = {"name": "cifar10", "split": "test", "file": None, "n": LIMIT, "seed": 0, "validation_n": held_out, "classes": 10}
    assert results["data"] == wanted
    rows = {(row["restorer"], row["threat"], row["view"], row["title"]): row for row in results["rows"]}
    assert len(rows) == len(results["rows"]) == (1 + len(GRAY) + 1) + (1 + len(GRAY) + 2)

    trn = networks.trn
    for row in results["rows"]:
        assert row["n"] == LIMIT and row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        same = rows["none", row["threat"], "oblivious", row["title"]]
        assert row["undefended_accuracy"] == same["accuracy"] == same["undefended_accuracy"]
    clean = rows["none", "gray_box", "oblivious", "clean"]
    assert clean["accuracy"] == results["classifier"]["accuracy"] > 0.5, "the small classifier learnt nothing"
    assert rows["none", "gray_box", "oblivious", "pgd-3"]["accuracy"] < clean["accuracy"], "the attack did nothing"
    assert rows[trn, "white_box", "detached", "pgd-2"]["zero_gradient"] is not None
    assert rows[trn, "gray_box", "oblivious", "pgd-3"]["zero_gradient"] is None

    for threat in ("gray_box", "white_box"):
        hostile = [row for key, row in rows.items() if key[0] == trn and key[1] == threat and row["norm"] == "linf"]
        assert results["worst_case"][trn][threat]["accuracy"] <= min(row["accuracy"] for row in hostile)
    assert set(results["worst_case"]) == {"none", trn}
    assert results["trained_for"] == {trn: None}
    assert results["cost"][trn]["forward_passes"] == 2 and results["cost"][trn]["backward_passes"] == 10
    assert results["cost"]["none"] | {"forward_passes": 1, "backward_passes": 0, "parameters": 0} == results["cost"]["none"]
    assert {entry["restored"]["lpips"] for entry in results["restoration"][trn]} == {"missing"}
    assert all(entry["n"] <= LIMIT for entry in results["detection"][trn]["attacks"])
    assert "none" not in results["detection"] and "none" not in results["restoration"]

    page = (folder / "report.html").read_text()
    assert page.count('class="strip"') == 2 * 2 * (1 + len(GRAY) + 2)  # pictures and gradient maps of two images
    assert "http://" not in page and "https://" not in page, "the page must ask for no other file"
    report = (folder / "report.md").read_text()
    assert all(finding["text"] in report for finding in results["checks"])
    pictures = {path.name for path in (folder / "pictures").iterdir()}
    pictures = {name for name in pictures if not name.startswith(("roc_", "curve_"))}
    assert len(pictures) == 1 + len(GRAY) + 2 and all(f"pictures/{name}" in report for name in pictures)


def test_accuracies_are_those_of_the_plain_modules(settings: dict[str, Any], networks: Networks) -> None:
    from dataclasses import replace

    from gandefense.attacks.suite import AttackSpec, attack
    from gandefense.data import batches, datasets

    settings |= {"batch_size": LIMIT, "gray_box": [GRAY[0]], "white_box": {"views": [], "attacks": []}, "images": 0}
    results = gandefense.evaluate(**settings)
    config = EvaluateConfig()
    data = datasets.load(replace(config.data, limit=LIMIT), "test", seed=0)
    images, labels = next(batches.batches(data, LIMIT))
    defended = zoo.load(networks.trn)
    attacked = attack(defended.classifier, images, labels, AttackSpec("fgsm", eps=48 / 255))
    row = next(row for row in results["rows"] if row["restorer"] == networks.trn and row["attack"] == "fgsm")
    assert row["accuracy"] == pytest.approx((defended(attacked.images).argmax(1) == labels).float().mean().item())
    assert row["undefended_accuracy"] == pytest.approx(1 - attacked.success.float().mean().item())
    assert set(results["worst_case"][networks.trn]) == {"gray_box"}


def test_attacks_on_the_classifier_are_made_once(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = work.attack, []

    def counted(network: Any, images: Any, labels: Any, spec: Any, **options: Any) -> Any:
        made.append((type(network).__name__, spec.title()))
        return real(network, images, labels, spec, **options)

    monkeypatch.setattr(work, "attack", counted)
    gray = [*GRAY, WHITE["attacks"][0]]  # listed under both threats
    gandefense.evaluate(**{**settings, "gray_box": gray, "limit": 5})
    alone = [title for kind, title in made if kind != "View"]
    assert sorted(alone) == ["fgsm", "gaussian[-1,1]", "pgd-2", "pgd-3"]
    assert len(made) - len(alone) == 2  # one a view


def test_config_file_object_and_keywords_agree(settings: dict[str, Any], tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from gandefense import config
    from gandefense.evaluation.settings import resolve

    limit = settings.pop("limit")
    values = {**settings, "data": {"limit": limit}}
    OmegaConf.save(OmegaConf.create(values), tmp_path / "evaluate.yaml")
    from_file = resolve(tmp_path / "evaluate.yaml", {})
    assert from_file == resolve(config.build(EvaluateConfig, values), {}) == resolve(None, {**settings, "limit": limit})
    assert resolve(from_file, {"restorers": "none", "data": {"download": False}}).data.limit == limit
    assert from_file.gray_box[0].eps == 48 / 255


def test_output_is_numbered_by_default(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "00003-cifar10_trn").mkdir(parents=True)
    settings |= {"output": None, "limit": 2, "white_box": {"views": [], "attacks": []}, "images": 0, "gray_box": []}
    assert gandefense.evaluate(**settings)["made"]["output"] == "runs/00004-evaluate"


def test_lpips_is_reported_where_its_network_is(
    settings: dict[str, Any], networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "lpips_network", lambda device: lambda one, other: (one - other).abs().mean((1, 2, 3)))
    settings |= {"limit": 4, "white_box": {"views": [], "attacks": []}, "images": 0, "gray_box": [GRAY[0]]}
    clean, fgsm = gandefense.evaluate(**settings)["restoration"][networks.trn]
    assert clean["attacked"] is None and 0 < clean["restored"]["lpips"] < 1
    assert fgsm["attacked"]["lpips"] == pytest.approx(2 * 48 / 255, rel=0.2)  # [-1, 1] doubles the distance


def test_the_global_random_state_is_left_alone(settings: dict[str, Any]) -> None:
    settings |= {"limit": 6, "white_box": {"views": [], "attacks": []}, "images": 0, "gray_box": [GRAY[2]]}
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    gandefense.evaluate(**settings)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["cifar10_quick", "cifar10_demo", "cifar10_full", "cifar10_white_box"])
def test_shipped_configs_fit_the_schema(name: str) -> None:
    from gandefense import config

    path = Path(__file__).parents[2] / "configs" / "evaluate" / f"{name}.yaml"
    loaded = config.load(EvaluateConfig, path)
    assert loaded.data.limit in (200, 1000) and loaded.gray_box[0].eps == 8 / 255
    if name == "cifar10_quick":
        assert loaded == EvaluateConfig(), "the schema's defaults are said to be this file"


def test_the_tool_prints_a_table_and_the_report(
    settings: dict[str, Any], networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], load_tool: Callable[[], Any]
) -> None:
    config = tmp_path / "evaluate.yaml"
    config.write_text("gray_box: [{attack: fgsm, eps: 8/255}]\nwhite_box: {views: [], attacks: []}\nimages: 1\n")
    words = [f"classifier={networks.classifier}", f"restorers=[{networks.trn}]", f"output={tmp_path / 'tool'}", "data.limit=4"]
    load_tool().main([str(config), *words])
    printed = capsys.readouterr().out
    assert "fgsm" in printed and "8/255" in printed and f"report: {tmp_path / 'tool'}/report.html" in printed
    with pytest.raises(UserError, match="no config file"):
        load_tool().main([])


@pytest.fixture
def load_tool() -> Callable[[], Any]:
    """tools/evaluate.py as a module."""
    import importlib.util

    def load() -> Any:
        spec = importlib.util.spec_from_file_location("evaluate_tool", Path(__file__).parents[2] / "tools" / "evaluate.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_every_threat_and_curve(full: dict[str, Any], networks: Networks) -> None:
    results = gandefense.evaluate(**full)
    trn = networks.trn
    rows = {(row["threat"], row["view"], row["title"]): row for row in results["rows"]}
    assert len(rows) == len(results["rows"]) == 3 + 2 + 1 + 2 + 4
    transferred, gray = (
        rows["black_box", f"transfer: {full['black_box']['sources'][0]}", "fgsm"],
        rows["gray_box", "oblivious", "fgsm"],
    )
    assert transferred["accuracy"] == gray["accuracy"], "the other classifier is the same network here"

    chains = {"gray_box": ["gray_box"], "white_box": ["gray_box", "black_box", "white_box"]}
    for threat, allowed in chains.items():
        standing = [row["accuracy"] for row in results["rows"] if row["threat"] in allowed and row["norm"] == "linf"]
        last = [row for row in results["rows"] if row["threat"] == threat][-1]
        assert last["survivors"] and last["accuracy"] <= min(standing), "what fell before does not stand again"
        assert results["worst_case"][trn][threat]["accuracy"] == last["accuracy"], "the last survivors are the worst case"
    assert {"defended_only", "bare_only", "p"} == set(results["worst_case"][trn]["white_box"]["mcnemar"])
    assert all(row["mcnemar"]["p"] <= 1 for row in results["rows"])

    detected = {(entry["threat"], entry["view"], entry["title"]) for entry in results["detection"][trn]["attacks"]}
    assert not any("apgd" in title or "square" in title for *_, title in detected), "survivors' rows have no detection figures"
    assert results["randomised"] == {"none": False, trn: False}
    curve = results["curves"][trn]
    assert set(curve) == set(results["curves"]["none"]) == {"eps", "steps"}, "nothing is random, so there is no EOT curve"
    assert curve["eps"]["n"] == 7 and [point["eps"] for point in curve["eps"]["points"]] == [0, pytest.approx(24 / 255)]
    assert curve["eps"]["points"][0]["accuracy"] >= curve["eps"]["points"][1]["accuracy"]
    assert [point["steps"] for point in curve["steps"]["points"]] == [1, 3]
    assert not results["classifier"]["probabilities"]

    folder = Path(full["output"])
    (folder / "results.json").unlink()
    for path in sorted(folder.glob("records/*/*.safetensors"))[::3]:
        path.unlink()
    assert without_timings(gandefense.evaluate(**full)) == without_timings(results), "a resumed evaluation ends the same"
