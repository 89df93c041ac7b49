"""What every baseline's tool run has in common: a run folder, figures, a resume that changes nothing, clear errors."""

from __future__ import annotations

import importlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gandefense
from gandefense import zoo
from gandefense.attacks.cache import fingerprint
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, to_float
from gandefense.errors import UserError
from gandefense.training.baselines import BASELINES, chosen
from gandefense.weights_io import load_weights, save_weights

ROOT = Path(__file__).parent.parent.parent.parent
STEPS = 20
# name → a recipe that takes seconds; the figure that must fall
RECIPES: dict[str, tuple[str, str]] = {
    "magnet": ("train: {batch_size: 16, learning_rate: 0.1}", "pixel_error_0"),
    "ddsa": (
        "network: {width: 8, features: 2, code: 64}\ntrain: {batch_size: 16, attack_steps: 2, learning_rate: 0.01}",
        "clean_error",
    ),
    "denoiser": (
        "network: {widths: [8, 16]}\nattacked: {rows: 96, attacks: [fgsm], budgets: [8/255]}\n"
        "train: {batch_size: 16, learning_rate: 0.01}",
        "guide_loss",
    ),
    "ape_gan": (
        "network: {width: 8, discriminator_width: 4}\nattacked: {rows: 96, attacks: [fgsm], budgets: [8/255]}\n"
        "train: {batch_size: 16, learning_rate: 0.01}",
        "pixel_error",
    ),
    "defense_gan": (
        "network: {latent: 8, width: 4, critic_width: 4}\nsearch: {steps: 10}\n"
        "train: {batch_size: 8, critic_steps: 2, learning_rate: 0.01}",
        "loss",
    ),
    "lad": (
        "architecture: tiny\nautoencoder: {width: 4, features: 4, steps: 10}\nboundary: {images: 240, steps: 20}\n"
        "train: {batch_size: 60, learning_rate: 0.05}",
        "clean_loss",
    ),
}
CLASSIFIERS = {"lad": 10}  # what trains a classifier instead of defending one: the steps before those of train.steps


@pytest.fixture(scope="module")
def tool() -> Callable[..., None]:
    """The tool's main function."""
    return runpy.run_path(str(ROOT / "tools" / "train_baseline.py"))["main"]


@pytest.fixture(scope="module")
def words(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """A short training's command-line words: a config file, and where its runs go."""
    folder = tmp_path_factory.mktemp("baselines")

    def make(name: str, place: str, *more: str) -> list[str]:
        config = folder / f"{name}.yaml"
        defended = "" if name in CLASSIFIERS else f"classifier: {classifier}\nvalidation_rows: 48\n"
        config.write_text(
            f"baseline: {name}\n{defended}{RECIPES[name][0]}\n"
            "run: {device: cpu, precision: float32, seed: 4, log_every: 5, image_every: 10, checkpoint_every: 10}\n",
            encoding="utf-8",
        )
        runs = f"run.folder={folder / name / place}"
        return [str(config), runs, f"train.steps={STEPS}", "train.warmup=2", "train.ema_decay=0.8", *more]

    return make


def _folder(words: list[str]) -> Path:
    (folder,) = Path(words[1].removeprefix("run.folder=")).iterdir()
    return folder


@pytest.fixture(scope="module", params=sorted(RECIPES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def finished(name: str, tool: Callable, words: Callable[..., list[str]]) -> Path:
    """The folder of a run that nobody interrupted."""
    tool(words(name, "whole"))
    return _folder(words(name, "whole"))


def _log(folder: Path, figure: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line[figure]) for line in lines if figure in line]


def test_every_baseline_is_tried_here_and_has_a_config() -> None:
    assert set(RECIPES) == set(BASELINES)
    for name in BASELINES:
        first = (ROOT / "configs" / "baselines" / f"cifar10_{name}.yaml").read_text(encoding="utf-8").splitlines()
        assert next(line for line in first if not line.startswith("#")) == f"baseline: {name}"


def test_a_short_training_learns(name: str, finished: Path) -> None:
    values = [value for _, value in _log(finished, f"train/{RECIPES[name][1]}")]
    assert len(values) == STEPS / 5
    assert values[-1] < 0.95 * values[0]


def test_the_run_folder_holds_everything(name: str, finished: Path) -> None:
    names = {path.name.split(".")[0] for path in finished.iterdir() if path.name != ".lock"}
    assert names == {"config", "stats", "events", "checkpoint", "model"}
    description = load_weights(finished / "model.safetensors")[1]
    assert (description["kind"], description["data"]) == ("classifier" if name in CLASSIFIERS else name, "cifar10")
    assert description["config"]["baseline"] == name
    assert description["config"]["train"]["steps"] == STEPS
    if name in CLASSIFIERS:
        assert (description["latent"], description["adversarial"]) == (name, "none")
        assert description["measured"]["validation_n"] == 60
        assert description["measured"]["validation_accuracy"] == _log(finished, "validation/accuracy")[-1][1]
        return
    assert {"validation/clean", "validation/attacked", "validation/undefended"} <= set(description["measured"])
    assert [step for step, _ in _log(finished, "validation/clean")] == [10, 20]
    assert description["classifier_fingerprint"] == fingerprint(zoo.load_classifier(description["classifier"]))


def test_tensorboard_has_scalars_and_a_grid(name: str, finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished)).Reload()
    watched = "validation/accuracy" if name in CLASSIFIERS else "validation/attacked"
    assert {"train/loss", watched, f"train/{RECIPES[name][1]}"} <= set(events.Tags()["scalars"])
    assert len(events.Tags()["images"]) == (2 if name == "defense_gan" else 1)  # which shows generated images too
    for tag in events.Tags()["images"]:
        before = CLASSIFIERS.get(name, 0)
        assert [event.step for event in events.Images(tag)] == [before + 10, before + 20]


def test_the_run_loads_as_a_defence_that_flags_few_clean_images(name: str, finished: Path) -> None:
    defended = gandefense.load(finished)
    validation = datasets.load(DataConfig(), "validation")
    images = to_float(validation.images)
    restoration = defended.restore(images)
    assert restoration.images.shape == images.shape
    assert restoration.images.min() >= 0 and restoration.images.max() <= 1
    assert restoration.flagged.float().mean() <= 0.05 + 1 / 60
    with torch.no_grad():
        assert defended(images[:4]).shape == (4, 10)
    point = images[:4].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(defended.view("exact")(point).sum(), point)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("stop", [3, 13])
def test_a_stopped_run_resumes_to_the_same_weights(
    name: str, finished: Path, tool: Callable, words: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Stopped before the first checkpoint, and some steps after one."""

    def until(count: int, batch_size: int, step: int, seed: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        return batch_indices(count, batch_size, step, seed)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(f"gandefense.training.baselines.{name}"), "batch_indices", until)
        with pytest.raises(KeyboardInterrupt):
            tool(words(name, f"stopped at {stop}"))
    folder = _folder(words(name, f"stopped at {stop}"))
    assert (folder / "checkpoint.pt").exists() == (stop >= 10)
    torch.manual_seed(99)
    tool([f"resume={folder}"])
    (resumed, about), (whole, wanted) = (load_weights(path / "model.safetensors") for path in (folder, finished))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in resumed.items())
    for figure in ("train/loss", "validation/clean", "validation/attacked", "validation/accuracy"):
        assert _log(folder, figure) == _log(finished, figure)
    for key in ("threshold", "thresholds", "measured"):
        assert about.get(key) == wanted.get(key)


def test_a_finished_run_is_not_trained_again(
    name: str, finished: Path, tool: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    tool([f"resume={finished}"])
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("run.sed=3", "unknown key run.sed; the nearest known one is run.seed"),
        ("baseline=other", "the config file chooses the baseline"),
        ("train.steps=0", "train.steps must be at least 1, got 0"),
        ("train.learning_rate=-1", "train.learning_rate must be positive"),
        ("run.precision=nonsense", "unknown precision 'nonsense'"),
        ("data.name=nonsense", "unknown data set 'nonsense'"),
        ("classifier=nonsense", "unknown network 'nonsense'"),
        ("validation_rows=0", "validation_rows must be at least 1"),
        ("run.seed=-1", "run.seed must not be negative"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(
    name: str, tool: Callable, words: Callable[..., list[str]], word: str, message: str
) -> None:
    if name in CLASSIFIERS and word.split("=")[0] in ("classifier", "validation_rows"):
        pytest.skip("it defends no classifier")
    asked = words(name, f"bad {word}", word)
    with pytest.raises(UserError, match=message):
        tool(asked)
    assert not Path(asked[1].removeprefix("run.folder=")).exists()


def test_a_loss_that_is_no_number_stops_the_run(
    name: str, tool: Callable, words: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"gandefense.training.baselines.{name}")
    with monkeypatch.context() as patch:
        patch.setattr(module, "to_float", lambda images: to_float(images) * torch.nan)
        with pytest.raises(UserError, match=r"became nan .*; its last checkpoint is whole"):
            tool(words(name, "diverges"))
    assert not (_folder(words(name, "diverges")) / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classifier: cifar10/classifier\n", "needs a line 'baseline: NAME'; known: magnet"),
        ("baseline: nonsense\n", "unknown baseline 'nonsense'; known: magnet"),
        ("", "needs a line 'baseline: NAME'"),
        ("- a list\n", "needs a line 'baseline: NAME'"),
        ("a: b: c\n", "not readable as YAML"),
    ],
)
def test_a_config_that_names_no_baseline_is_refused(tool: Callable, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        tool([str(tmp_path / "bad.yaml")])


def test_words_that_make_no_sense_are_refused(tool: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config file given"):
        tool([])
    with pytest.raises(UserError, match="config file not found"):
        tool([str(tmp_path / "absent.yaml")])
    with pytest.raises(UserError, match="no run folder"):
        tool([f"resume={tmp_path}"])
    (tmp_path / "config.yaml").write_text("kind: trn\nclassifier: cifar10/classifier\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a run of kind 'trn', not 'baseline'; use tools/train_trn.py"):
        tool([f"resume={tmp_path}"])


def test_several_processes_are_refused(tool: Callable, words: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start them without torchrun"):
        tool(words("magnet", "two processes"))


def test_another_tool_sends_a_baselines_run_here(name: str, finished: Path) -> None:
    from gandefense.training.run import Run

    with pytest.raises(UserError, match=f"a run of kind '{name}', not 'trn'; use tools/train_baseline.py"):
        Run.saved_config(finished, "trn")


def test_a_run_does_not_go_on_before_another_classifier(
    name: str, finished: Path, tool: Callable, words: Callable[..., list[str]], tmp_path: Path
) -> None:
    if name in CLASSIFIERS:
        pytest.skip("it defends no classifier")
    description = load_weights(finished / "model.safetensors")[1]
    path = Path(description["classifier"])
    before = path.read_bytes()
    tensors, about = load_weights(path)
    try:
        save_weights(path, {key: tensor + 1 for key, tensor in tensors.items()}, about)
        with pytest.raises(UserError, match="the defended classifier changed since this run was started"):
            tool([f"resume={finished}"])
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("baseline: [ddsa]", "unknown baseline .'ddsa'."),
        ("baseline: {ddsa: 1}", "unknown baseline"),
        ("baseline: 3", "unknown baseline 3"),
        ("- ddsa", "needs a line 'baseline: NAME'"),
        ("a: &a [1]\nb: *a\nbaseline: ddsa", "aliases"),
        ("a: " + "[" * 60 + "]" * 60 + "\nbaseline: ddsa", "levels deep"),
        ("baseline: ddsa\n" + "#" * 2**16, "at most 65,536 bytes"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_an_odd_config_names_no_baseline(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        chosen(path)
    path.write_text("baseline: ddsa", encoding="utf-8")
    assert chosen(path) == "ddsa"
