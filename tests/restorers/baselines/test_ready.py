"""Restorers without training, reached by name wherever a restorer is named."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import gandefense
from docs.examples.total_variation import SMOOTH, STEP, TotalVariation
from gandefense import restoring, zoo
from gandefense.command_line import split_arguments
from gandefense.config import load
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.evaluation.settings import EvaluateConfig, resolve
from gandefense.restorers import baselines
from gandefense.restorers.baselines import READY
from gandefense.restorers.baselines.jpeg import JPEG
from gandefense.weights_io import save_weights
from tests.test_docs import ROOT, rows, words

CIFAR10 = datasets.describe("cifar10")
GREY = dataclasses.replace(CIFAR10, name="grey", channels=1, size=28)
NAMED = {
    "jpeg": {"quality": 75},
    "jpeg:quality=40": {"quality": 40},
    "shield:qualities=20+80": {"qualities": (20, 80)},
    "random_resize": {"low": None, "high": None, "passes": 1},
    "random_resize:low=28,passes=10": {"low": 28, "high": None, "passes": 10},
    "random_resize: low = 28, high=30": {"low": 28, "high": 30, "passes": 1},
    "gaussian:sigma=1e-1": {"sigma": 0.1},
}


def linear(data: datasets.Dataset = CIFAR10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(data.channels * data.size**2, 10)).eval()


@pytest.mark.parametrize("name", NAMED)
def test_options_in_a_name(name: str) -> None:
    restorer = gandefense.defend(linear(), name).restorer
    assert type(restorer) is READY[name.split(":")[0]] and not restorer.training
    assert {key: getattr(restorer, key) for key in NAMED[name]} == NAMED[name] == baselines.options(name)
    assert zoo.describe(name) == {"kind": "ready", "name": name, "options": NAMED[name]}
    zoo.try_out(name, restorer, CIFAR10)


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("data", [CIFAR10, GREY], ids=lambda data: data.name)
def test_each_fits_every_data_set(name: str, data: datasets.Dataset) -> None:
    defended = gandefense.defend(linear(data), name)
    images = torch.rand(2, data.channels, data.size, data.size)
    assert defended(images).shape == (2, 10)
    zoo.try_out(name, defended.restorer, data)
    resolve(None, {"restorers": [name]})


MISTAKES = {
    "jpeg:qualty=40": r"jpeg:qualty=40: unknown option 'qualty'; known: quality \(written jpeg:NAME=VALUE",
    "jpeg:": "jpeg:: unknown option ''; known: quality",
    "jpeg:40": "jpeg:40: unknown option '40'; known: quality",
    "jpeg:quality=high": "quality must be a whole number, got 'high'",
    "jpeg:quality=40.5": "quality must be a whole number, got '40.5'",
    "jpeg:quality=": "quality must be a whole number, got ''",
    "jpeg:quality=40,quality=50": "quality is given twice",
    "jpeg:quality=0": "jpeg:quality=0: JPEG's quality lies between 1 and 100, got 0",
    "shield:qualities=20-80": r"qualities must be whole numbers such as 20\+80, got '20-80'",
    "gaussian:sigma=inf": "sigma must be a number, got 'inf'",
    "gaussian:sigma=nan": "sigma must be a number, got 'nan'",
    "random_resize:passes=0": "passes must be at least 1, got 0",
    "passes=10": "'passes=10' is no network but looks like an option; a comma ends an entry of a list",
    "jpg": "unknown network 'jpg'; .* restorers without training: jpeg, shield, random_resize",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_before_any_work(name: str) -> None:
    for use in (
        lambda: gandefense.defend(linear(), name),
        lambda: resolve(None, {"restorers": [name]}),
        lambda: restoring.load(name, None),
    ):
        with pytest.raises(UserError, match=MISTAKES[name]) as error:
            use()
        assert "\n" not in str(error.value)


def test_sizes_that_do_not_fit_the_data_set_are_found_by_the_trial() -> None:
    name = "random_resize:low=40"
    with pytest.raises(UserError, match="random_resize:low=40: images of 32 pixels are resized to at most 32"):
        zoo.try_out(name, zoo.load_restorer(name, linear()), CIFAR10)


def test_alone_they_defend_no_classifier_and_are_none() -> None:
    with pytest.raises(UserError, match=r"jpeg does not say which classifier it defends; use gandefense\.defend\(classifier, 'j"):
        gandefense.load("jpeg")
    for use in (zoo.load_classifier, zoo.find):
        with pytest.raises(UserError, match="jpeg:quality=40 is a restorer that needs no training"):
            use("jpeg:quality=40")
    with pytest.raises(UserError, match="jpeg is a 'ready', not a classifier"):
        resolve(None, {"classifier": "jpeg"})


def test_content_hash_follows_options_and_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = zoo.content_hash("jpeg")
    assert len(first) == 64 and first == zoo.content_hash("jpeg:quality=75", JPEG()), "the default said aloud"
    assert len({first, *map(zoo.content_hash, ("jpeg:quality=76", "shield", "median", "mean"))}) == 5
    other = tmp_path / "jpeg.py"
    source = Path(baselines.jpeg.__file__)
    other.write_bytes(source.read_bytes() + b"# changed\n")
    monkeypatch.setattr(baselines.jpeg, "__file__", str(other))
    assert zoo.content_hash("jpeg") != first


def test_run_folders_and_files_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jpeg").mkdir()
    Path("jpeg/config.yaml").write_text("", encoding="utf-8")
    save_weights(Path("jpeg/model.safetensors"), {"weight": torch.zeros(1)}, {"kind": "trn", "data": "cifar10"})
    assert zoo.describe("jpeg")["kind"] == "trn" and not zoo.is_ready("jpeg") and zoo.is_ready("jpeg:quality=3")


def test_names_on_a_command_line_and_in_a_file(tmp_path: Path) -> None:
    names = ["jpeg", "jpeg:quality=40", "random_resize:low=28,passes=10"]
    path = tmp_path / "config.yaml"
    path.write_text("restorers:\n" + "".join(f"  - {name}\n" for name in names), encoding="utf-8")
    assert load(EvaluateConfig, path).restorers == names
    word = 'restorers=[jpeg,jpeg:quality=40,"random_resize:low=28,passes=10"]'
    _, overrides = split_arguments([str(path), word], "usage: x\n")
    assert load(EvaluateConfig, None, overrides).restorers == names


def test_a_folder_of_images_of_any_size(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.effect_noise((50, 33), 60).convert("RGB").save(source / "a.png")
    restorer, data = restoring.load("jpeg:quality=10", None)
    assert data is None
    jobs = restoring.plan(restoring.find_images(source)[0])
    how: dict[str, Any] = {"channels": 3, "size": None, "batch_size": 4, "device": torch.device("cpu")}
    restoring.restore_folder("jpeg:quality=10", restorer, source, target, jobs, **how)
    assert Image.open(target / "a.png").size == (50, 33)
    with (target / "scores.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["score"], row["flagged"], row["level"]) == ("0", "false", "")


@pytest.fixture
def rival(monkeypatch: pytest.MonkeyPatch) -> str:
    """The worked example of docs/adding-a-rival.md, added by one dictionary line."""
    monkeypatch.setitem(READY, "total_variation", TotalVariation)
    return "total_variation"


def test_the_worked_example(rival: str) -> None:
    defended = gandefense.defend(linear(), f"{rival}:weight=0.1,steps=30")
    assert (defended.restorer.weight, defended.restorer.steps) == (0.1, 30)
    zoo.try_out(rival, defended.restorer, CIFAR10)
    flat = torch.full((1, 3, 32, 32), 0.4)
    assert torch.allclose(defended.restore(flat).images, flat)
    noisy = (flat + 0.05 * torch.randn_like(flat)).clamp(0, 1)
    assert (defended.restore(noisy).images - flat).std() < 0.6 * (noisy - flat).std()
    with pytest.raises(UserError, match="total_variation:weight=0: weight must be positive"):
        zoo.describe(f"{rival}:weight=0")
    with pytest.raises(UserError, match="unknown option 'wait'; known: weight, steps"):
        resolve(None, {"restorers": [f"{rival}:wait=1"]})
    assert len(zoo.content_hash(rival)) == 64


def test_the_worked_examples_config_gives_it_a_row_everywhere(rival: str, small_cifar10: Path, tmp_path: Path) -> None:
    config = ROOT / "docs" / "examples" / "total_variation.yaml"
    settings = {"data": {"name": "cifar10", "limit": 4, "root": str(small_cifar10)}, "validation_images": 4}
    settings |= {"images": 1, "cost_batch_size": 1}
    results = gandefense.evaluate(config, **settings, output=str(tmp_path / "out"))
    for name in (rival, f"{rival}:weight=0.1"):
        mine = [row for row in results["rows"] if row["restorer"] == name]
        assert {(row["threat"], row["attack"], row["view"]) for row in mine} >= {
            ("gray_box", "none", "oblivious"),
            ("gray_box", "fgsm", "oblivious"),
            ("gray_box", "pgd", "oblivious"),
            ("white_box", "pgd", "straight_through"),
            ("white_box", "pgd", "exact"),
        }
        assert all(row["n"] == 4 for row in mine)
        worst = results["worst_case"][name]
        assert worst["white_box"]["accuracy"] <= worst["gray_box"]["accuracy"]
    assert "total_variation:weight=0.1" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_the_worked_examples_step_goes_down_what_it_says() -> None:
    images = torch.rand(1, 1, 5, 6, dtype=torch.float64) * 0.8 + 0.1
    point = images.clone().requires_grad_(True)
    differences = [point.diff(dim=2), point.diff(dim=3)]
    aim = ((point - images) ** 2).sum() / 2 + 0.03 * sum(((d**2 + SMOOTH**2).sqrt()).sum() for d in differences)
    (slope,) = torch.autograd.grad(aim, point)
    assert torch.allclose(TotalVariation(steps=1)(images).images, images - STEP * slope)


def test_the_page_names_every_one_with_all_its_options() -> None:
    page = ROOT / "docs" / "adding-a-rival.md"
    named = {next(iter(words(row[:1]))): words(row[-1:]) for row in rows(page, "name")}
    assert named == {name: set(baselines.options(name)) for name in READY}
