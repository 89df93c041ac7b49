"""The evaluator against defences that do not hold, on real images and the shipped classifier; and against other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gandefense
from gandefense import zoo
from gandefense.attacks.suite import AttackSpec, attack
from gandefense.config import DataConfig
from gandefense.data import datasets, sources
from gandefense.data.batches import to_float
from gandefense.evaluation import calibration, metrics
from gandefense.evaluation.metrics import wilson_interval

IMAGES = 64  # a quarter of what tools/calibrate.py measures, to be done in a quarter of the time
EPS = calibration.EPS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(not (sources.data_root() / "cifar10" / name).is_file() for name in sources.CIFAR10_FILES),
        reason="CIFAR-10 is not here",
    ),
]


@pytest.fixture(autouse=True)
def _no_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of its own, with tests of its own."""
    monkeypatch.setattr(metrics, "lpips_network", lambda *_: None)


def measure(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A case of the calibration on real test images: what results.json holds, and the calibration's summary of it."""
    case = calibration.CASES[name]
    results = calibration.measure(case, folder / "out", IMAGES, device="cpu")
    return results, calibration.summary(case, results)


def test_a_quantiser_is_seen_through(tmp_path: Path) -> None:
    """Its true gradient is zero, so that naive PGD stalls; the identity in its place breaks it."""
    _, summary = measure("quantiser", tmp_path)
    assert (summary["attacks"][0]["title"], summary["attacks"][0]["view"]) == ("pgd-5", "exact")
    assert summary["attacks"][0]["accuracy"] > 0.3, "naive PGD was meant to stall"
    assert summary["worst_case"]["accuracy"] <= 0.01
    assert "zero_gradients" in summary["fired"]


def test_confident_logits_are_seen_through(tmp_path: Path) -> None:
    """Logits times 1,000 leave cross-entropy without a gradient; a loss on the logits themselves does not care."""
    _, summary = measure("confident", tmp_path)
    assert summary["attacks"][0]["accuracy"] > 0.3, "cross-entropy was meant to stall"
    assert summary["worst_case"]["accuracy"] <= 0.01


def test_randomness_is_seen_through(tmp_path: Path) -> None:
    """Without EOT an attacker aims at a draw that does not come back; with it the table shows what that was worth."""
    results, summary = measure("random", tmp_path)
    assert results["randomised"] == {"none": False, calibration.CASES["random"].restorer: True}
    attacks = summary["attacks"]
    assert [row["eot_samples"] for row in attacks] == [1, 5, 10], "the table shows both"
    assert attacks[1]["accuracy"] < attacks[0]["accuracy"]
    assert attacks[1]["resubmitted_accuracy"] <= attacks[1]["accuracy"]
    (averaged,) = (row for row in results["rows"] if row["title"] == "pgd-10 eot-5")
    assert averaged["resubmissions"] == 10
    assert summary["worst_case"]["accuracy"] <= 0.05
    assert "randomised" in summary["fired"]


def some(count: int) -> tuple[Tensor, Tensor]:
    """Real test images (count, 3, 32, 32) in [0, 1] and their labels."""
    data = datasets.load(DataConfig(limit=count), "test", seed=0)
    return to_float(data.images), data.labels


@pytest.mark.parametrize(("name", "steps"), [("apgd-ce", 10), ("apgd-t", 4)])
def test_autopgd_is_that_of_the_library_called_directly(name: str, steps: int) -> None:
    """On an adversarially trained network, image by image, to the last bit."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    network = zoo.load_classifier("cifar10/adversarial-small")
    images, labels = some(32)
    ours = attack(network, images, labels, AttackSpec(name, eps=EPS, steps=steps), seed=3)
    kind, own = (APGDAttack, {"loss": "ce"}) if name == "apgd-ce" else (APGDAttack_targeted, {"n_target_classes": 9})
    theirs = kind(network, n_iter=steps, norm="Linf", n_restarts=1, eps=EPS, seed=3, device="cpu", **own)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        adversarial = theirs.perturb(images, labels)
        wrong = network(adversarial).argmax(1) != labels
    assert 0.05 < ours.success.float().mean() < 0.95, "nothing is compared where all or none break"
    assert torch.equal(ours.images, adversarial) and torch.equal(ours.success, wrong)


def test_an_independent_library_agrees_on_trn() -> None:
    """torchattack's PGD on the whole defence as a plain module leaves what ours leaves, within the interval."""
    torchattack = pytest.importorskip("torchattack")
    defended = gandefense.load("cifar10/trn")
    images, labels = some(32)
    steps, eps = 3, 2 / 255
    theirs = torchattack.PGD(defended, eps=eps, steps=steps, alpha=eps / 2, device=torch.device("cpu"))(images, labels)
    ours = attack(defended.view("exact"), images, labels, AttackSpec("pgd", eps=eps, steps=steps, step_size=eps / 2), seed=0)
    with torch.no_grad():
        right = int((defended(theirs).argmax(1) == labels).sum())
    low, high = wilson_interval(right, len(labels))
    assert low <= 1 - ours.success.float().mean().item() <= high
