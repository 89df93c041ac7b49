"""tools/publish.py"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import gandefense
from gandefense import classifiers, zoo
from gandefense.attacks.cache import fingerprint
from gandefense.data import datasets
from gandefense.evaluation.records import file_hash
from gandefense.restorers.trn import TwoStreamRestorationNetwork
from gandefense.weights_io import load_weights, save_weights

CONFIG = {
    "run": {"seed": 7, "name": "short", "folder": "/somebody/home/runs", "device": "cuda:3"},
    "data": {"name": "cifar10", "root": "/somebody/home/data"},
    "train": {"steps": 3, "distillation": {"teacher": "/somebody/home/runs/00000-teacher"}},
    "others": ["/somebody/home/other.safetensors", "cifar10/surrogate"],
    "resume": "/somebody/home/runs/00001-short",
}
MEBIBYTE = 2**18  # float32 values in one


@pytest.fixture(autouse=True)
def _networks(small_cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifiers of 15 and 17 MiB beside the tiny one."""
    for size in (15, 17):
        monkeypatch.setitem(classifiers.CLASSIFIERS, f"linear{size}", lambda data, size=size, **_: _linear(size))


def _linear(size: int) -> nn.Sequential:
    width = size * MEBIBYTE // 3072
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, width), nn.Linear(width, 10)).eval()


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's weights folder, empty."""
    folder = tmp_path / "weights"
    monkeypatch.setattr(zoo, "WEIGHTS", folder)
    return folder


@pytest.fixture
def publish(shipped: Path, tool: Callable) -> Callable[..., tuple[int, str, str]]:
    return partial(tool, "publish")


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """A finished run of a classifier."""

    def make(architecture: str = "tiny", *, name: str = "model.safetensors", **changes: object) -> Path:
        folder = tmp_path / "00003-short"
        folder.mkdir(exist_ok=True)
        network = classifiers.build(architecture, datasets.describe("cifar10"))
        description = {
            "kind": "classifier",
            "architecture": architecture,
            "data": "cifar10",
            "config": CONFIG,
            "versions": {"torch": "1"},
            "measured": {"validation_accuracy": 0.5},
        }
        save_weights(folder / name, network.state_dict(), {**description, **changes})
        return folder

    return make


@pytest.fixture
def results(tmp_path: Path, shipped: Path) -> Callable[..., Path]:
    """A results.json that measures what is published under a name now."""

    def make(name: str, *, restorer: str = "none", classifier: str | None = None) -> Path:
        row = {"threat": "gray_box", "attack": "pgd", "view": "oblivious", "norm": "linf", "eps": 0.03, "steps": 20, "n": 1000}
        row |= {"loss": "margin", "survivors": True, "queries": None}
        row |= {"accuracy": 0.75, "ci95": [0.7, 0.8], "undefended_accuracy": 0.01}
        weights = {name: file_hash(shipped / f"{name}.safetensors")}
        made = {"command": "evaluate", "versions": {}, "seed": 1, "date": "today", "weights": weights, "seconds": 3}
        rows = [{**row, "restorer": restorer}, {**row, "restorer": "other", "accuracy": 0.5}]
        path = tmp_path / "results.json"
        written = {"classifier": {"name": classifier or name}, "rows": rows, "made": made}
        path.write_text(json.dumps(written), encoding="utf-8")
        return path

    return make


def _card(shipped: Path, name: str) -> dict:
    return json.loads((shipped / f"{name}.json").read_text(encoding="utf-8"))


def test_a_published_network_is_a_zoo_name(publish: Callable, run_folder: Callable, shipped: Path) -> None:
    folder = run_folder()
    status, out, err = publish(folder, "cifar10/mine")
    assert (status, err) == (0, "")
    assert str(shipped / "cifar10" / "mine.safetensors") in out
    assert zoo.names() == ["cifar10/mine"]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(gandefense.load("cifar10/mine")(images), gandefense.load(folder / "model.safetensors")(images))


def test_the_card_says_where_every_figure_comes_from(publish: Callable, run_folder: Callable, shipped: Path) -> None:
    assert publish(run_folder(), "cifar10/mine")[0] == 0
    card = _card(shipped, "cifar10/mine")
    assert (card["name"], card["kind"], card["data"], card["stored_as"]) == ("cifar10/mine", "classifier", "cifar10", "float32")
    network = classifiers.build("tiny", datasets.describe("cifar10"))
    assert card["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert card["versions"] == {"torch": "1"}
    assert card["validation"] == {"validation_accuracy": 0.5}
    assert card["test"] is None


def test_neither_card_nor_weights_tell_of_the_machine(publish: Callable, run_folder: Callable, shipped: Path) -> None:
    assert publish(run_folder(), "cifar10/mine")[0] == 0
    expected = {"run": {"seed": 7, "name": "short"}, "data": {"name": "cifar10"}}
    expected |= {"train": {"steps": 3, "distillation": {"teacher": "00000-teacher"}}}
    expected |= {"others": ["other.safetensors", "cifar10/surrogate"]}
    assert _card(shipped, "cifar10/mine")["recipe"] == expected
    assert load_weights(shipped / "cifar10" / "mine.safetensors")[1]["config"] == expected
    for path in (shipped / "cifar10").iterdir():
        assert b"somebody" not in path.read_bytes()


def test_publishing_again_with_results_puts_them_on_the_card(
    publish: Callable, run_folder: Callable, results: Callable, shipped: Path
) -> None:
    folder = run_folder()
    publish(folder, "cifar10/mine")
    before = (shipped / "cifar10" / "mine.safetensors").read_bytes()
    assert publish(folder, "cifar10/mine", f"results={results('cifar10/mine')}")[0] == 0
    assert (shipped / "cifar10" / "mine.safetensors").read_bytes() == before
    test = _card(shipped, "cifar10/mine")["test"]
    assert test["made"] == {"command": "evaluate", "versions": {}, "seed": 1, "date": "today"}
    (row,) = test["rows"]
    assert (row["accuracy"], row["n"], row["steps"], row["undefended_accuracy"]) == (0.75, 1000, 20, 0.01)


def test_figures_of_other_weights_are_refused(publish: Callable, run_folder: Callable, results: Callable, shipped: Path) -> None:
    publish(run_folder(), "cifar10/mine")
    measured = results("cifar10/mine")
    before = (shipped / "cifar10" / "mine.safetensors").read_bytes()
    status, _, err = publish(run_folder(), "cifar10/mine", f"results={measured}")  # a new run under the old name
    assert (status, err.count("\n")) == (2, 1)
    assert "does not measure the published cifar10/mine" in err
    assert (shipped / "cifar10" / "mine.safetensors").read_bytes() == before


def test_results_without_a_row_of_the_network_are_refused(publish: Callable, run_folder: Callable, results: Callable) -> None:
    folder = run_folder()
    publish(folder, "cifar10/mine")
    status, _, err = publish(folder, "cifar10/mine", f"results={results('cifar10/mine', classifier='cifar10/other')}")
    assert status == 2
    assert "has no row of cifar10/mine" in err


def test_a_restorer_is_bound_to_the_published_classifier(
    publish: Callable, run_folder: Callable, results: Callable, shipped: Path
) -> None:
    folder = run_folder()
    publish(folder, "cifar10/mine")
    shape = {"channels": 3, "labels": 10, "width": 8, "blocks": 1}
    network = TwoStreamRestorationNetwork(**shape)
    description = {"kind": "trn", "data": "cifar10", "network": shape, "classifier": "cifar10/mine", "config": CONFIG}
    save_weights(folder / "model.safetensors", network.state_dict(), description)
    assert publish(folder, "cifar10/trn")[0] == 0
    assert gandefense.load("cifar10/trn")(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert _card(shipped, "cifar10/trn")["parameters"] == parameters, "the classifier's are its own"
    measured = results("cifar10/trn", restorer="cifar10/trn", classifier="cifar10/mine")
    assert publish(folder, "cifar10/trn", f"results={measured}")[0] == 0
    (row,) = _card(shipped, "cifar10/trn")["test"]["rows"]
    assert (row["loss"], row["survivors"], "queries" in row) == ("margin", True, False)
    publish(run_folder(), "cifar10/mine")  # other weights under the classifier's name
    was = load_weights(shipped / "cifar10/trn.safetensors")
    save_weights(folder / "model.safetensors", *was)
    assert "was trained for other weights of cifar10/mine" in publish(folder, "cifar10/again")[2]
    with pytest.raises(gandefense.errors.UserError, match="was trained for other weights than cifar10/mine has now"):
        gandefense.load("cifar10/trn")


def test_another_file_of_the_run_can_be_published(publish: Callable, run_folder: Callable, shipped: Path) -> None:
    folder = run_folder(name="student.safetensors")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert publish(folder, "cifar10/student", "weights=student.safetensors")[0] == 0
    assert zoo.names() == ["cifar10/student"]


@pytest.mark.parametrize(("size", "kind", "halved"), [(15, "float32", False), (17, "float16", True)])
def test_only_a_large_network_is_stored_as_float16(
    publish: Callable, run_folder: Callable, shipped: Path, size: int, kind: str, halved: bool
) -> None:
    folder = run_folder(f"linear{size}")
    assert publish(folder, "cifar10/large")[0] == 0
    path = shipped / "cifar10" / "large.safetensors"
    assert path.stat().st_size < (9 if halved else 16) * 2**20
    assert _card(shipped, "cifar10/large")["stored_as"] == kind
    stored, original = load_weights(path)[0], load_weights(folder / "model.safetensors")[0]
    for name, tensor in original.items():
        assert torch.equal(stored[name], tensor.half().float() if halved else tensor)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: python tools/publish.py"),
        (["{run}"], "usage: python tools/publish.py"),
        (["{run}", "cifar10/mine", "third"], "usage: python tools/publish.py"),
        (["{run}", "cifar10/mine", "result=x"], "usage: python tools/publish.py"),
        (["{run}", "mine"], "a zoo name is DATASET/NAME in small letters, got 'mine'"),
        (["{run}", "../cifar10/mine"], "a zoo name is DATASET/NAME in small letters"),
        (["{run}/absent", "cifar10/mine"], "weights not found: {run}/absent/model.safetensors"),
        (["{run}", "cifar10/mine", "weights=student.safetensors"], "weights not found: {run}/student.safetensors"),
        (["{run}", "cifar10/mine", "results={run}/absent.json"], "{run}/absent.json is no results.json"),
        (["{run}", "cifar10/mine", "results={run}/broken.json"], "{run}/broken.json is no results.json"),
        (["{run}", "cifar10/mine", "results={run}/foreign.json"], "{run}/foreign.json is no results.json"),
    ],
)
def test_a_mistake_is_one_line_and_publishes_nothing(
    publish: Callable, run_folder: Callable, shipped: Path, words: list[str], message: str
) -> None:
    folder = run_folder()
    (folder / "broken.json").write_text('{"rows": [', encoding="utf-8")
    (folder / "foreign.json").write_text("[1, 2]", encoding="utf-8")
    status, _, err = publish(*(word.format(run=folder) for word in words))
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert message.format(run=folder) in err
    assert not list(shipped.rglob("*.*"))


def test_a_student_that_answers_is_published_with_its_restorer(publish: Callable, run_folder: Callable) -> None:
    folder = run_folder()
    tensors, card = load_weights(folder / "model.safetensors")
    save_weights(folder / "student.safetensors", tensors, card)
    shape = {"channels": 3, "labels": 10, "width": 8, "blocks": 1}
    about = {"kind": "trn", "data": "cifar10", "network": shape, "threshold": 1.0, "classifier": "student.safetensors"}
    about |= {"classifier_fingerprint": fingerprint(zoo.load_classifier(folder / "student.safetensors"))}
    save_weights(folder / "trn.safetensors", TwoStreamRestorationNetwork(**shape).state_dict(), about)
    status, _, err = publish(folder, "cifar10/judged", "weights=trn.safetensors")
    assert status == 0, err
    assert zoo.describe("cifar10/judged")["classifier"] == "cifar10/judged-classifier"
    assert gandefense.load("cifar10/judged").name == "cifar10/judged"
    save_weights(folder / "student.safetensors", {name: tensor + 1 for name, tensor in tensors.items()}, card)
    status, _, err = publish(folder, "cifar10/stranger", "weights=trn.safetensors")
    assert status == 2 and "is not the classifier that this restorer was trained with" in err


def test_a_classifier_from_elsewhere_is_published_first_and_named(publish: Callable, run_folder: Callable) -> None:
    folder = run_folder()
    tensors, card = load_weights(folder / "model.safetensors")
    save_weights(folder / "elsewhere.safetensors", tensors, card)
    save_weights(folder / "other.safetensors", {name: tensor + 1 for name, tensor in tensors.items()}, card)
    shape = {"channels": 3, "labels": 10, "width": 8, "blocks": 1}
    about = {"kind": "trn", "data": "cifar10", "network": shape, "threshold": 1.0}
    about |= {"classifier": str(folder / "elsewhere.safetensors")}
    about |= {"classifier_fingerprint": fingerprint(zoo.load_classifier(folder / "elsewhere.safetensors"))}
    save_weights(folder / "trn.safetensors", TwoStreamRestorationNetwork(**shape).state_dict(), about)
    status, _, err = publish(folder, "cifar10/mine", "weights=trn.safetensors")
    assert status == 2 and "elsewhere.safetensors is not shipped: publish that classifier first" in err
    assert publish(folder, "cifar10/judge", "weights=elsewhere.safetensors")[0] == 0
    assert publish(folder, "cifar10/stranger", "weights=other.safetensors")[0] == 0
    status, _, err = publish(folder, "cifar10/mine", "weights=trn.safetensors", "classifier=cifar10/stranger")
    assert status == 2 and "was not trained for the weights of cifar10/stranger" in err
    assert publish(folder, "cifar10/mine", "weights=trn.safetensors", "classifier=cifar10/judge")[0] == 0
    assert zoo.describe("cifar10/mine")["classifier"] == "cifar10/judge"
