"""Evaluations from end to end on a small CIFAR-10, and every mistake that is refused before any work."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gandefense
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.evaluation import metrics, work
from gandefense.evaluation.evaluator import EvaluateConfig
from tests.evaluation.conftest import Networks

ROOT = Path(__file__).parents[2]
LIMIT = 24
GRAY = [  # wide budgets, because the small data set's classes lie far apart
    {"attack": "fgsm", "eps": "48/255"},
    {"attack": "pgd", "eps": "48/255", "steps": 3},
    {"attack": "gaussian[-1,1]", "eps": 0.2},
]
WHITE = {"views": ["straight_through", "detached"], "attacks": [{"attack": "pgd", "eps": "48/255", "steps": 2}]}


@pytest.fixture
def settings(networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A quick evaluation; LPIPS is missing, as on most machines, and speed is not dwelt upon."""
    monkeypatch.setattr(metrics, "_lpips_backbone", lambda: None)
    monkeypatch.setattr("gandefense.evaluation.cost.LEAST_SECONDS", 0.0)
    return {
        "classifier": networks.classifier,
        "restorers": ["none", networks.trn],
        "output": str(tmp_path / "out"),
        "limit": LIMIT,
        "batch_size": 10,
        "cost_batch_size": 8,
        "images": 2,
        "device": "cpu",
        "gray_box": GRAY,
        "white_box": WHITE,
    }


def without_timings(results: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on when or how fast it was made."""
    kept = copy.deepcopy(results)
    for part in ("cost", "made"):
        del kept[part]
    return kept


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

    from gandefense import zoo
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


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"restorers": ["cifar10/nonesuch"]}, "unknown network 'cifar10/nonesuch'"),
    ({"restorers": []}, "restorers is empty"),
    ({"restorers": ["none", "none"]}, "twice"),
    ({"classifier": "cifar10/nonesuch"}, "unknown network"),
    ({"gray_box": [{"attack": "pgd", "stepz": 3}]}, "stepz"),
    ({"white_box": {"views": ["exact"], "attacks": [{"attack": "pgd", "epsilon": 0.1}]}}, "epsilon"),
    ({"gray_box": [{"eps": 0.1}]}, "attack"),
    ({"gray_box": [{"attack": "cv"}]}, "unknown attack 'cv'"),
    ({"gray_box": [{"attack": "pgd", "loss": "joint"}]}, "list it under white_box.attacks"),
    ({"gray_box": [{"attack": "pgd", "views": ["exact"]}]}, "views are for white_box.attacks"),
    ({"black_box": {"queries": [{"attack": "pgd"}]}}, "pgd needs gradients; known: square, hopskipjump"),
    ({"black_box": {"sources": ["cifar10/nonesuch"]}}, "unknown network"),
    ({"curves": {"steps": [1, 2], "attack": {"attack": "fgsm"}}}, "fgsm takes one step"),
    ({"curves": {"eot": [1, 2], "attack": {"attack": "fab"}}}, "curves.eot: fab"),
    ({"black_box": {"transfer": [{"attack": "pgd", "survivors": True}]}}, "survivors is for"),
    ({"white_box": {"attacks": [{"attack": "pgd", "views": ["sideways"]}]}}, "no view of a defence"),
    ({"curves": {"eps": [2]}}, r"curves.eps: values must be in \[0, 1\]"),
    ({"curves": {"eps": [0.1], "attack": {"attack": "pgd-l2", "eps": 0.5}}}, "pgd-l2 has an L2 budget; take pgd"),
    ({"gray_box": [{"attack": "pgd-l2"}]}, "pgd-l2: give eps, the L2 length"),
    ({"curves": {"steps": [3, 3]}}, "curves.steps lists a value twice"),
    ({"curves": {"attack": {"attack": "square"}}}, "follows no gradient"),
    ({"resubmissions": 0}, "resubmissions must be at least 1"),
    ({"gray_box": [{"attack": "pgd", "eps": 8}]}, "8/255"),
    ({"gray_box": [{"attack": "pgd"}, {"attack": "pgd"}]}, "twice"),
    ({"white_box": {"views": ["oblivious"]}}, "no view of a defence"),
    ({"white_box": {"attacks": [{"attack": "gaussian[0,1]", "eps": 0.1}]}}, "list it under gray_box"),
    ({"false_positive_rates": [0]}, "between 0 and 1"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"limit": 0}, "data.limit must be at least 1"),
    ({"restorer": ["none"]}, "unknown key restorer"),
    ({"data": {"name": "mnist"}}, "unknown data set 'mnist'"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED)
def test_mistakes_are_refused_before_any_work(
    change: dict[str, Any], said: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gandefense.data.datasets.load", None)
    with pytest.raises(UserError, match=said) as caught:
        gandefense.evaluate(**{**settings, **change})
    assert "\n" not in str(caught.value)
    assert not Path(settings["output"]).exists()


def test_a_restorer_cannot_stand_in_for_a_classifier(settings: dict[str, Any], networks: Networks) -> None:
    with pytest.raises(UserError, match="not a classifier"):
        gandefense.evaluate(**settings | {"classifier": networks.trn})
    with pytest.raises(UserError, match="not a restorer"):
        gandefense.evaluate(**settings | {"restorers": [networks.classifier]})


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


FULL = {
    "gray_box": [{"attack": "fgsm", "eps": "48/255"}, {"attack": "apgd-ce", "eps": "48/255", "steps": 3, "survivors": True}],
    "white_box": {
        "views": ["straight_through", "detached", "exact", "smooth"],
        "attacks": [
            {"attack": "pgd", "eps": "24/255", "steps": 2, "views": ["detached"]},
            {"attack": "pgd", "eps": "24/255", "steps": 2, "loss": "joint", "views": ["straight_through", "detached"]},
            {"attack": "apgd-dlr", "eps": "24/255", "steps": 3, "survivors": True},
        ],
    },
    "curves": {"eps": [0, "24/255"], "steps": [1, 3], "eot": [1, 2], "images": 7, "attack": {"attack": "pgd", "steps": 2}},
}


@pytest.fixture
def full(settings: dict[str, Any], networks: Networks) -> dict[str, Any]:
    """Every threat and every curve."""
    same = Path(networks.classifier).with_name("other.safetensors")
    shutil.copy(networks.classifier, same)
    black = {"sources": [str(same)], "transfer": [{"attack": "fgsm", "eps": "48/255"}]}
    black["queries"] = [{"attack": "square", "eps": "48/255", "queries": 5, "survivors": True}]
    return {**settings, **FULL, "black_box": black, "restorers": [networks.trn]}


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


def two_classes() -> torch.nn.Module:
    """A classifier of two classes, bright against dark, for attributes such as a face's."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    with torch.no_grad():
        network[1].weight[0], network[1].weight[1] = -0.01, 0.01
        network[1].bias.copy_(torch.tensor([15.36, -15.36]))
    return network


def test_a_binary_attribute_gets_attacks_that_two_classes_allow(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    description = datasets.describe("cifar10")
    monkeypatch.setitem(datasets.DATASETS, "cifar10", replace(description, classes=("dark", "bright")))
    real = datasets.load

    def load(config: DataConfig, split: str, *, seed: int = 0) -> Any:
        data = real(config, split, seed=seed)
        return data._replace(labels=(data.images.float().mean((1, 2, 3)) > 127.5).long())

    monkeypatch.setattr(datasets, "load", load)
    attacks: list[dict[str, Any]] = [
        {"attack": "apgd-ce", "eps": "8/255", "steps": 3},
        {"attack": "fab", "eps": "8/255", "steps": 3},
    ]
    attacks += [{"attack": "autoattack", "eps": "8/255", "steps": 3, "queries": 20}]
    attacks += [{"attack": "pgd", "eps": "8/255", "steps": 3, "loss": "margin"}]
    black = {"queries": [{"attack": "square", "eps": "8/255", "queries": 20}]}
    settings |= {"classifier": f"{__name__}.two_classes", "restorers": [f"{__name__}.Noisy"], "gray_box": [], "images": 0}
    results = gandefense.evaluate(**settings | {"black_box": black, "white_box": {"views": ["exact"], "attacks": attacks}})
    assert results["data"]["classes"] == 2
    assert [row["attack"] for row in results["rows"]] == ["none", "square", "apgd-ce", "fab", "autoattack", "pgd"]
    assert results["classifier"]["accuracy"] == 1
    monkeypatch.setattr(work, "attack", None)
    with pytest.raises(UserError, match="apgd-t: needs at least 4 classes, the network has 2"):
        attacks = [{"attack": "apgd-t", "eps": "8/255", "steps": 3}]
        gandefense.evaluate(**settings | {"overwrite": True, "white_box": {"views": ["exact"], "attacks": attacks}})


class Cut(gandefense.Restorer):
    """Leaves images as they are, and no gradient."""

    def forward(self, images: torch.Tensor) -> gandefense.Restoration:
        nothing = torch.zeros(len(images))
        return gandefense.Restoration(images.detach(), nothing, nothing.bool(), nothing, {})


def test_a_view_without_a_gradient_is_refused_before_any_attack(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "attack", None)
    with pytest.raises(UserError, match=r"Cut has no gradient in the view exact.*take the view straight_through"):
        gandefense.evaluate(**settings | {"restorers": [f"{__name__}.Cut"], "white_box": {**WHITE, "views": ["exact"]}})
    assert not Path(settings["output"]).exists()


class Overshooting(gandefense.Restorer):
    """Leaves the range by a rounding error, as filters do."""

    def forward(self, images: torch.Tensor) -> gandefense.Restoration:
        nothing = torch.zeros(len(images))
        return gandefense.Restoration(torch.ones_like(images) * (1 + 2e-7), nothing, nothing.bool(), nothing, {})


def test_a_restorers_rounding_is_forgiven(settings: dict[str, Any]) -> None:
    name = f"{__name__}.Overshooting"
    settings |= {"restorers": [name], "limit": 4, "gray_box": [], "white_box": {"views": [], "attacks": []}, "images": 0}
    assert gandefense.evaluate(**settings)["restoration"][name][0]["n"] == 4


class Branches(gandefense.Restorer):
    """Takes one of two ways, chosen once a batch: most pairs of passes agree."""

    def forward(self, images: torch.Tensor) -> gandefense.Restoration:
        nothing = torch.zeros(len(images))
        chosen = images if torch.rand(()) < 0.5 else images.flip(-1)
        return gandefense.Restoration(chosen, nothing, nothing.bool(), nothing, {})


def test_seldom_randomness_is_noticed(settings: dict[str, Any]) -> None:
    name = f"{__name__}.Branches"
    settings |= {"restorers": [name], "limit": 4, "gray_box": [], "white_box": {"views": [], "attacks": []}, "images": 0}
    assert gandefense.evaluate(**settings)["randomised"][name]


class Noisy(gandefense.Restorer):
    """Adds noise: two passes over the same images differ."""

    def forward(self, images: torch.Tensor) -> gandefense.Restoration:
        nothing = torch.zeros(len(images))
        noisy = (images + 0.4 * torch.randn_like(images)).clamp(0, 1)
        return gandefense.Restoration(noisy, nothing, nothing.bool(), nothing, {})


def test_a_randomised_defence_is_resubmitted(settings: dict[str, Any]) -> None:
    name = f"{__name__}.Noisy"
    white = {"views": ["exact"], "attacks": [{"attack": "pgd", "eps": "24/255", "steps": 2, "eot": 2}]}
    curves = {"eot": [1, 2], "attack": {"attack": "pgd", "steps": 1}, "view": "exact", "images": 5}
    results = gandefense.evaluate(**{**settings, "restorers": [name], "white_box": white, "curves": curves, "resubmissions": 4})
    assert results["randomised"] == {"none": False, name: True}
    white_row = results["rows"][-1]
    assert (white_row["eot_samples"], white_row["resubmissions"]) == (2, 4)
    assert all(row["resubmitted_accuracy"] <= row["accuracy"] for row in results["rows"])
    assert any(row["resubmitted_accuracy"] < row["accuracy"] for row in results["rows"]), "noise this strong changes its mind"
    assert results["worst_case"][name]["white_box"]["accuracy"] <= white_row["resubmitted_accuracy"]
    assert [point["samples"] for point in results["curves"][name]["eot"]["points"]] == [1, 2]


@pytest.fixture
def on_disk(full: dict[str, Any], tmp_path: Path, _small_root: Path) -> Path:
    """The whole evaluation as a config file."""
    from omegaconf import OmegaConf

    limit = full.pop("limit")
    config = tmp_path / "evaluate.yaml"
    OmegaConf.save(OmegaConf.create({**full, "output": None, "data": {"limit": limit, "root": str(_small_root)}}), config)
    return config


TOOL = ["-m", "tests.helpers.with_small_cifar10", "tools/evaluate.py"]


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_two_processes_end_with_the_table_of_one(
    on_disk: Path, tmp_path: Path, python: Callable[..., Any], _small_root: Path
) -> None:
    tables = []
    for count in (1, 2):
        folder = tmp_path / f"by{count}"
        words = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", str(29600 + count)]
        done = python(*words, *TOOL, str(on_disk), f"output={folder}", GANDEFENSE_DATA=str(_small_root))
        assert done.returncode == 0, done.stderr
        assert results_of(folder)["made"]["processes"] == count
        tables.append(without_timings(results_of(folder)))
    assert tables[0]["rows"] == tables[1]["rows"] and tables[0]["worst_case"] == tables[1]["worst_case"]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_killed_and_started_again_ends_with_the_same_table(
    on_disk: Path, tmp_path: Path, python: Callable[..., Any], _small_root: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = {"GANDEFENSE_DATA": str(_small_root), "OMP_NUM_THREADS": "1"}
    done = python(*TOOL, str(on_disk), f"output={whole}", **environment)
    assert done.returncode == 0, done.stderr
    records = len(list(whole.glob("records/*/*.safetensors")))

    command = [sys.executable, *TOOL, str(on_disk), f"output={killed}"]
    for share in (0.2, 0.6):  # killed twice, in different places
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(list(killed.glob("records/*/*.safetensors"))) < share * records and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
        assert not (killed / "results.json").exists()
    done = python(*command[1:], **environment)
    assert done.returncode == 0, done.stderr
    assert without_timings(results_of(killed)) == without_timings(results_of(whole))
