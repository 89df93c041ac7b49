"""Evaluations from end to end of restorers without training, and of the universal attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gandefense
from gandefense.attacks.suite import Attacked, AttackSpec
from gandefense.evaluation import work
from gandefense.evaluation.cells import Cell, universal_key
from gandefense.evaluation.records import Records
from gandefense.weights_io import load_weights

EPS = "32/255"
RANDOM = "random_resize:low=24,passes=2"
NOTHING: dict[str, Any] = {"views": [], "attacks": []}


@pytest.fixture
def settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The usual quick evaluation with fewer images; each test names its restorers and views."""
    usual = {name: value for name, value in settings.items() if name not in ("restorers", "white_box")}
    fewer = {"limit": 20, "validation_images": 20, "cost_batch_size": 4, "images": 1}
    return {**usual, **fewer, "gray_box": [{"attack": "fgsm", "eps": EPS}]}


def rows_of(results: dict[str, Any], restorer: str, threat: str) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if (row["restorer"], row["threat"]) == (restorer, threat)]


def test_jpeg_and_random_resize(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In one table; what is random is noticed, averaged over and tried again, and the rest is not."""
    seen: list[tuple[str, int]] = []
    real = work.attack

    def watched(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, **more: Any) -> Attacked:
        seen.append((getattr(getattr(network, "defended", None), "name", "classifier"), spec.eot))
        return real(network, images, labels, spec, **more)

    monkeypatch.setattr(work, "attack", watched)
    white = {"views": ["straight_through", "exact"], "attacks": [{"attack": "pgd", "eps": EPS, "steps": 2, "eot": 3}]}
    results = gandefense.evaluate(**settings, restorers=["jpeg", RANDOM], white_box=white, resubmissions=4)
    assert results["randomised"] == {"none": False, "jpeg": False, RANDOM: True}
    assert {(name, eot) for name, eot in seen} == {("classifier", 1), ("jpeg", 1), (RANDOM, 3)}
    for restorer, eot, tries in (("jpeg", 1, 1), (RANDOM, 3, 4)):
        found = rows_of(results, restorer, "white_box")
        assert [row["view"] for row in found] == ["straight_through", "exact"]
        assert {(row["eot_samples"], row["resubmissions"]) for row in found} == {(eot, tries)}
        assert results["cost"][restorer]["parameters"] == 0
        assert set(results["detection"][restorer]["thresholds"].values()) == {0.0}
        assert all(row["zero_gradient"] < 0.5 for row in found)
    assert [results["cost"][name]["forward_passes"] for name in ("jpeg", RANDOM)] == [1, 2]
    clean = rows_of(results, RANDOM, "gray_box")[0]
    assert clean["accuracy"] >= clean["resubmitted_accuracy"] and clean["resubmissions"] == 4
    (finding,) = [check for check in results["checks"] if check["name"] == "randomised" and check["fired"]]
    assert RANDOM in finding["text"] and "up to 3 draws" in finding["text"]
    folder = Path(settings["output"])
    assert (folder / "report.html").is_file()
    assert not [path for path in folder.rglob("*") if set(path.name) & set(":=,")], "names are safe in every file system"


def test_a_prediction_averages_the_passes(settings: dict[str, Any]) -> None:
    """The class on record is that of the averaged logits, not that of the one restoration in the picture."""
    gandefense.evaluate(**settings, restorers=[RANDOM], white_box=NOTHING, resubmissions=3)
    records = Path(settings["output"]) / "records"
    (folder,) = records.glob("random_resize_low_24_passes_2_gray_box_oblivious_clean-*")
    record, _ = load_weights(folder / "00000.safetensors")
    assert torch.equal(record["prediction"], record["predictions"][:, 0]) and record["predictions"].shape == (10, 3)


def test_the_universal_attack_is_one_perturbation_for_all_test_images(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    added: dict[str, list[Tensor]] = {}
    fit, add = work.universal_perturbation, work.attack

    def watched_fit(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, **more: Any) -> Tensor:
        fitted.append(len(images))
        return fit(network, images, labels, spec, **more)

    def watched_attack(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, **more: Any) -> Attacked:
        attacked = add(network, images, labels, spec, **more)
        assert torch.equal(attacked.images, (images + more["perturbation"]).clamp(0, 1))
        added.setdefault(getattr(network, "name", "classifier"), []).append(more["perturbation"])
        return attacked

    monkeypatch.setattr(work, "universal_perturbation", watched_fit)
    monkeypatch.setattr(work, "attack", watched_attack)
    entry = {"attack": "universal", "eps": EPS, "steps": 5}
    asked = {**settings, "gray_box": [entry], "white_box": {"views": ["exact"], "attacks": [entry]}, "restorers": ["mean"]}
    results = gandefense.evaluate(**asked)
    assert fitted == [20, 20], "for the classifier alone and for the view, from all validation images"
    assert {name: len(deltas) for name, deltas in added.items()} == {"classifier": 2, "exact": 2}, "two batches of each"
    assert all(torch.equal(*deltas) and deltas[0].abs().max() > 0 for deltas in added.values())
    assert not torch.equal(added["classifier"][0], added["exact"][0])
    rows = [row for row in results["rows"] if row["attack"] == "universal"]
    assert [(row["threat"], row["title"], row["steps"], row["norm"]) for row in rows] == [
        ("gray_box", "universal-5", 5, "linf"),
        ("white_box", "universal-5", 5, "linf"),
    ]
    again = gandefense.evaluate(**asked, overwrite=True)
    assert again["rows"] == results["rows"], "the same seed makes the same perturbation"


def test_the_perturbations_of_a_resumed_evaluation_are_those_on_record(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"attack": "universal", "eps": EPS, "steps": 3}
    asked = {**settings, "gray_box": [entry], "restorers": ["mean"], "white_box": NOTHING}
    whole = gandefense.evaluate(**asked)
    (Path(settings["output"]) / "results.json").unlink()
    monkeypatch.setattr(work, "universal_perturbation", None)  # calling it would fail
    assert gandefense.evaluate(**asked)["rows"] == whole["rows"]


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        (Cell("jpeg", "white_box", "exact", AttackSpec("universal")), "jpeg/exact/"),
        (Cell("jpeg", "curve", "exact", AttackSpec("universal")), "jpeg/exact/"),
        (Cell("jpeg", "gray_box", "oblivious", AttackSpec("universal")), "none/"),
        (Cell("none", "gray_box", "oblivious", AttackSpec("universal"), survivors=True), "none/"),
        (Cell("jpeg", "black_box", "transfer: cifar10/surrogate", AttackSpec("universal")), "cifar10/surrogate/"),
    ],
)
def test_who_attacks_the_same_network_shares_a_perturbation(cell: Cell, key: str) -> None:
    assert universal_key(cell).startswith(f"{key}perturbation/universal_eps")


def test_records_keep_names_with_options_apart(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    records = Records(tmp_path, {})
    for number, name in enumerate(("random_resize:low=28,passes=10/x", "random_resize:low=28/passes=10/x")):
        records.write(name, 0, {"value": torch.tensor([number])})
    assert records.read("random_resize:low=28,passes=10/x", 0)["value"].item() == 0
