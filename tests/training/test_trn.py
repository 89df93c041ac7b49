"""Training a TRN, stopped, killed and resumed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gandefense
from gandefense import classifiers, zoo
from gandefense.attacks.cache import AttackedSet, AttackedSetConfig
from gandefense.attacks.suite import AttackSpec, attack
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, to_float
from gandefense.data.sources import data_root
from gandefense.errors import UserError
from gandefense.training import trn
from gandefense.training.distillation import clean_logits, distillation
from gandefense.training.run import Run
from gandefense.training.trn import TRNConfig, TRNNetworkConfig, TRNTrainConfig, train
from gandefense.weights_io import load_weights, save_weights
from tests.helpers import small_celeba
from tests.helpers import small_cifar10 as small
from tests.helpers.short_training import classifier_file, logged, same

ROOT = Path(__file__).parent.parent.parent
STEPS = 60


@pytest.fixture(scope="module")
def settings(_small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., TRNConfig]]:
    """Configs of a short training before a classifier that was itself trained for a second."""
    folder = tmp_path_factory.mktemp("trn")
    with pytest.MonkeyPatch.context() as patch:
        small.install(_small_root, patch)
        path = classifier_file(folder)

        def make(name: str, *, steps: int = STEPS, top_k: int | None = None, rows: int = 192, **run: object) -> TRNConfig:
            options = {"folder": str(folder / name), "device": "cpu", "precision": "float32", "seed": 4}
            every = {"log_every": 5, "image_every": 20, "checkpoint_every": 20}
            return TRNConfig(
                run=RunConfig(**{**options, **every, **run}),
                classifier=str(path),
                attacked=AttackedSetConfig(rows=rows, attacks=["fgsm"], budgets=[8 / 255]),
                validation_rows=96,
                network=TRNNetworkConfig(width=8, blocks=1, top_k=top_k),
                train=TRNTrainConfig(steps=steps, batch_size=16, learning_rate=1e-2, warmup=5, class_ramp=20, ema_decay=0.9),
            )

        yield make


@pytest.fixture(scope="module")
def finished(settings: Callable[..., TRNConfig]) -> Path:
    """The folder of a run that nobody interrupted."""
    return train(settings("whole")).parent


def test_a_short_training_learns(finished: Path) -> None:
    assert [step for step, _ in logged(finished, "train/loss")] == list(range(5, STEPS + 1, 5))
    for name in ("loss", "pixel_error"):
        values = [value for _, value in logged(finished, f"train/{name}")]
        assert values[-1] < 0.9 * values[0], name


def test_guidance_by_the_logits_brings_them_nearer_to_the_clean_ones(finished: Path, settings: Callable[..., TRNConfig]) -> None:
    config = settings("guided")
    config.train.pixel_weight, config.train.class_weight, config.train.logit_weight = 0.0, 0.0, 1.0
    config.network.halvings = 1
    folder = train(config).parent
    losses = [value for _, value in logged(folder, "train/logit_loss")]
    assert losses[-1] < 0.9 * losses[0]
    assert load_weights(folder / "model.safetensors")[1]["network"]["halvings"] == 1
    with torch.no_grad():
        assert gandefense.load(folder)(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_training_goes_on_from_another_ones_network(finished: Path, settings: Callable[..., TRNConfig], tmp_path: Path) -> None:
    config = settings("second stage", steps=1)
    tensors, about = load_weights(finished / "model.safetensors")
    about["network"] = {key: value for key, value in about["network"].items() if key not in ("halvings", "streams")}
    save_weights(tmp_path / "older.safetensors", tensors, about)  # as files were described before there were these two
    config.start, config.train.learning_rate = str(tmp_path / "older.safetensors"), 1e-9
    first, second = (load_weights(path)[0] for path in (finished / "model.safetensors", train(config)))
    assert first.keys() == second.keys()
    assert all(torch.allclose(tensor, second[name], atol=1e-6) for name, tensor in first.items())


def test_several_classifiers_take_turns_each_with_its_own_goals(
    settings: Callable[..., TRNConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("turns", steps=4)
    tensors, about = load_weights(Path(config.classifier))
    other = tmp_path / "other.safetensors"
    save_weights(other, {name: tensor.flip(0) if "head" in name else tensor for name, tensor in tensors.items()}, about)
    config.others, seen = [str(other)], []
    monkeypatch.setattr(trn, "distillation", lambda logits, goal: seen.append(goal) or distillation(logits, goal))
    folder = train(config).parent
    images = datasets.load(config.data, "train", seed=config.run.seed)
    goals = [
        clean_logits(zoo.load_classifier(str(path)), images, torch.device("cpu"), "float32")
        for path in (config.classifier, other)
    ]
    whose = [[bool((goal.unsqueeze(1) == all_of_it).all(2).any(1).all()) for all_of_it in goals] for goal in seen]
    assert whose == [[True, False], [False, True]] * 2
    assert f"the other classifier {other}" in (folder / "config.yaml").read_text(encoding="utf-8")
    config.others = [config.classifier]
    with pytest.raises(UserError, match="others lists a classifier twice"):
        train(config)


def test_rows_attacked_on_another_classifier_are_learnt_from(
    settings: Callable[..., TRNConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked_set, asked = trn.attacked_set, []

    def noted(*words: object, **options: object) -> AttackedSet:
        asked.append((options["name"], options.get("transfer", ())))
        return attacked_set(*words, **options)

    monkeypatch.setattr(trn, "attacked_set", noted)
    config = settings("transferred", steps=1)
    tensors, about = load_weights(Path(config.classifier))
    other = tmp_path / "other.safetensors"
    save_weights(other, {name: tensor.flip(0) if "head" in name else tensor for name, tensor in tensors.items()}, about)
    config.attacked.nearer, config.attacked.transfer, config.attacked.transfer_share = 0.5, [str(other)], 0.5
    folder = train(config).parent
    assert f"the classifier of transferred examples {other}" in (folder / "config.yaml").read_text(encoding="utf-8")
    (_, (theirs,)), (_, none) = asked
    assert same(theirs.state_dict(), zoo.load_classifier(str(other)).state_dict()) and not none, "not in the validation set"
    for names in (["nobody/nothing"], [config.classifier], [str(other), str(other)]):
        config = settings("refused", steps=1)
        config.attacked.transfer, config.attacked.transfer_share = names, 0.5
        with pytest.raises(UserError, match=r"nobody/nothing|attacked\.transfer lists a classifier twice"):
            train(config)
    assert not Path(config.run.folder).exists()


@pytest.mark.parametrize(
    ("start", "width", "expected"),
    [
        ("classifier", 8, "its kind is 'classifier', this training's 'trn'"),
        ("whole", 16, "its network is .*'width': 8"),
        ("other maps", 8, "its top_k is None, this training's 10"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    start: str, width: int, expected: str, finished: Path, settings: Callable[..., TRNConfig]
) -> None:
    config = settings("refused start")
    config.start = config.classifier if start == "classifier" else str(finished)
    config.network.width = width
    config.network.top_k = 10 if start == "other maps" else None
    with pytest.raises(UserError, match=expected):
        train(config)
    assert not Path(config.run.folder).exists(), "refused before anything is written"


def test_the_restored_images_are_nearer_to_the_clean_ones_than_the_attacked_ones(
    finished: Path, settings: Callable[..., TRNConfig]
) -> None:
    defended, data = gandefense.load(finished), datasets.load(DataConfig(), "test")
    clean = to_float(data.images)
    attacked = attack(defended.classifier, clean, data.labels, AttackSpec("fgsm", eps=8 / 255)).images
    before, after = ((images - clean).abs().mean() * 255 for images in (attacked, defended.restore(attacked).images))
    assert after < 0.9 * before


def test_the_run_folder_holds_everything(finished: Path, settings: Callable[..., TRNConfig]) -> None:
    names = {path.name.split(".")[0] for path in finished.iterdir() if path.name != ".lock"}
    assert names == {"config", "stats", "events", "checkpoint", "model"}
    description = load_weights(finished / "model.safetensors")[1]
    assert description["kind"] == "trn"
    assert description["data"] == "cifar10"
    assert description["config"]["train"]["steps"] == STEPS
    assert set(description["measured"]) == {"validation/clean", "validation/attacked", "validation/undefended"}
    assert all(0 <= value <= 1 for value in description["measured"].values())
    assert logged(finished, "validation/attacked")[-1] == (STEPS, description["measured"]["validation/attacked"])
    assert [step for step, _ in logged(finished, "validation/clean")] == [20, 40, 60]
    assert Run.saved_config(finished, "trn")["network"]["width"] == 8
    checkpoint = torch.load(finished / "checkpoint.pt", weights_only=True)
    assert set(checkpoint["parts"]) == {"network", "average", "optimiser"}
    assert checkpoint["step"] == STEPS


def test_tensorboard_has_scalars_and_a_grid(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished)).Reload()
    assert {"train/loss", "train/pixel_error", "validation/attacked"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("validation/clean_attacked_restored_residual_maps")] == [20, 40, 60]


def test_the_run_loads_as_a_defence(finished: Path, settings: Callable[..., TRNConfig]) -> None:
    defended, images = gandefense.load(finished), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert defended(images).shape == (4, 10)
    validation = datasets.load(DataConfig(), "validation")
    flagged = defended.restore(to_float(validation.images)).flagged.float().mean().item()
    assert flagged == pytest.approx(0.05, abs=1 / 60), "the threshold was chosen for this rate on these images"
    assert zoo.load_classifier(load_weights(finished / "model.safetensors")[1]["classifier"]) is not None


@pytest.mark.parametrize("stop", [3, 29, 40])
def test_a_stopped_run_resumes_bit_for_bit(
    finished: Path, settings: Callable[..., TRNConfig], monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Stopped before the first checkpoint, some steps after one, and right after one."""

    def until(count: int, batch_size: int, step: int, seed: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        return batch_indices(count, batch_size, step, seed)

    config = settings(f"stopped at {stop}")
    with monkeypatch.context() as patch:
        patch.setattr(trn, "batch_indices", until)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    (folder,) = Path(config.run.folder).iterdir()
    assert (folder / "checkpoint.pt").exists() == (stop >= 20)
    config.resume = str(folder)
    torch.manual_seed(99)
    assert train(config).parent == folder
    for name in ("train/loss", "train/pixel_error", "validation/clean", "validation/attacked"):
        assert logged(folder, name) == logged(finished, name)
    resumed, whole = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (folder, finished))
    for part in ("parts", "step", "extra", "random"):
        assert same(resumed[part], whole[part]), part
    resumed, whole = (load_weights(path / "model.safetensors") for path in (folder, finished))
    assert same(resumed[0], whole[0])
    assert resumed[1]["threshold"] == whole[1]["threshold"]


def test_a_run_killed_between_its_last_step_and_its_end_measures_when_it_is_resumed(
    finished: Path, settings: Callable[..., TRNConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("stopped at the end")

    def killed(*_: object) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    (folder,) = Path(config.run.folder).iterdir()
    config.resume = str(folder)
    about, whole = (load_weights(path)[1] for path in (train(config), finished / "model.safetensors"))
    assert (about["measured"], about["threshold"]) == (whole["measured"], whole["threshold"])


@pytest.mark.parametrize(("count", "chosen"), [(7, [0, 8, 17, 25, 34, 42, 51]), (60, range(60)), (1000, range(60))])
def test_the_threshold_is_set_by_as_many_validation_images_as_asked(
    count: int, chosen: Sequence[int], settings: Callable[..., TRNConfig]
) -> None:
    """All 60 there are, for any number from 60 up; fewer lie at even distances, from the first on."""
    config = settings(f"threshold by {count}", steps=1)
    config.threshold_images = count
    path = train(config)
    validation = datasets.load(DataConfig(), "validation").images[list(chosen)]
    scores = gandefense.load(path.parent).restore(to_float(validation)).score
    assert load_weights(path)[1]["threshold"] == pytest.approx(scores.quantile(0.95).item(), abs=1e-6)


def test_a_finished_run_is_not_trained_again(
    finished: Path, settings: Callable[..., TRNConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings("whole")
    config.resume = str(finished)
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    assert train(config) == finished / "model.safetensors"
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before
    assert "finished" in capsys.readouterr().out


def test_top_k_and_bf16_train_and_load(settings: Callable[..., TRNConfig]) -> None:
    path = train(settings("top", steps=4, top_k=2, precision="bf16"))
    description = load_weights(path)[1]
    assert (description["top_k"], description["network"]["labels"]) == (2, 2)
    restoration = gandefense.load(path.parent).restore(torch.rand(2, 3, 32, 32))
    assert restoration.maps["gradient_maps"].shape == (2, 6, 32, 32)
    assert all(tensor.dtype != torch.bfloat16 for tensor in load_weights(path)[0].values())


def test_few_validation_rows_leave_no_figure_that_is_no_number(settings: Callable[..., TRNConfig]) -> None:
    """Five rows are one each of the five attacks: there is no clean row among them."""
    config = settings("few", steps=2, image_every=1)
    config.validation_rows = 5
    path = train(config)
    measured = load_weights(path)[1]["measured"]
    assert "validation/attacked" in measured
    assert not [name for name, value in measured.items() if math.isnan(value)]
    assert "NaN" not in (path.parent / "stats.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("network.streams", "nonsense", "unknown streams 'nonsense'"),
        ("network.top_k", 11, "network.top_k lies between 1 and the 10 classes, got 11"),
        ("network.top_k", 0, "network.top_k lies between 1 and the 10 classes, got 0"),
        ("threshold_images", 0, "threshold_images must be at least 1, got 0"),
        ("run.precision", "nonsense", "unknown precision 'nonsense'"),
        ("run.device", "nonsense", "unknown device 'nonsense'"),
        ("run.log_every", 0, "run.log_every must be at least 1, got 0"),
        ("run.image_every", 0, "run.image_every must be at least 1, got 0"),
        ("run.checkpoint_every", -1, "run.checkpoint_every must be at least 1, got -1"),
        ("data.name", "nonsense", "unknown data set 'nonsense'"),
        ("data.limit", 0, "data.limit must be at least 1"),
        ("classifier", "nonsense", "unknown network 'nonsense'"),
        ("attacked.precision", "nonsense", "attacked.precision must be auto, bf16 or float32, got 'nonsense'"),
        ("attacked.nearer", 2.0, "attacked.nearer is a share between 0 and 1, got 2.0"),
        ("attacked.transfer", ["cifar10/surrogate"], "attacked.transfer_share above 0 go together"),
        ("attacked.attacks", ["fgsm", "nonsense"], "unknown attack 'nonsense'"),
        ("validation_rows", 0, "validation_rows must be at least 1, got 0"),
        ("train.learning_rate", -1.0, "train.learning_rate must be positive, got -1.0"),
        ("false_positive_rate", 1.0, "false_positive_rate must lie between 0 and 1, got 1.0"),
        ("run.seed", -1, "run.seed must not be negative, got -1"),
        ("train.batch_size", 0, "train.batch_size must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(
    settings: Callable[..., TRNConfig], change: str, value: object, message: str
) -> None:
    config = settings(f"bad {change}", steps=2, rows=193)  # a number of rows of its own, so that its set would be a new one
    *parents, last = change.split(".")
    owner = config
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, last, value)
    before = sorted((data_root() / "attacked").glob("*"))
    with pytest.raises(UserError, match=message):
        train(config)
    assert not list(Path(config.run.folder).glob("*")), "a mistake must leave no run folder behind"
    assert sorted((data_root() / "attacked").glob("*")) == before, "nor cost the time of an attacked set"


def test_a_loss_that_is_no_number_stops_the_run(settings: Callable[..., TRNConfig]) -> None:
    config = settings("diverges", checkpoint_every=1, log_every=10)
    config.train.pixel_weight = math.inf
    with pytest.raises(UserError, match=r"loss became .*; its last checkpoint is whole"):
        train(config)
    (folder,) = Path(config.run.folder).iterdir()
    assert not (folder / "model.safetensors").exists()
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_killed_run_resumes_to_bit_identical_weights(
    settings: Callable[..., TRNConfig], small_cifar10: Path, tmp_path: Path, python: Callable
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"classifier: {settings('unused').classifier}\n"
        "attacked: {rows: 64, attacks: [fgsm, none], budgets: [8/255]}\nvalidation_rows: 16\n"
        "network: {width: 8, blocks: 1}\ntrain: {steps: 120, batch_size: 16, ema_decay: 0.9}\n"
        "run: {device: cpu, precision: float32, log_every: 5, image_every: 60, checkpoint_every: 20, seed: 4}\n",
        encoding="utf-8",
    )
    tool = ["-m", "tests.helpers.with_small_cifar10", "tools/train_trn.py"]
    whole = python(*tool, recipe, f"run.folder={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr

    command = [sys.executable, *tool, str(recipe), f"run.folder={tmp_path / 'killed'}"]
    with (tmp_path / "output").open("w") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        folder, deadline = tmp_path / "killed" / "00000-run", time.monotonic() + 120
        while not (folder / "checkpoint.pt").is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "output").read_text()
    assert not (folder / "model.safetensors").exists(), "killed in the middle"
    assert 0 < torch.load(folder / "checkpoint.pt", weights_only=True)["step"] < 120

    resumed = python(*tool, f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr
    first, second = (load_weights(tmp_path / name / "00000-run" / "model.safetensors")[0] for name in ("whole", "killed"))
    assert same(first, second)
    assert logged(folder, "train/loss") == logged(tmp_path / "whole" / "00000-run", "train/loss")
    assert not [path for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_two_classes_are_enough(settings: Callable[..., TRNConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid shows the maps of three labels, where there are three."""
    small_celeba.write(tmp_path / "celeba")
    monkeypatch.setenv("GANDEFENSE_DATA", str(tmp_path))
    config = settings("two classes", steps=2)
    config.data = DataConfig("celeba", size=32)
    data, path = datasets.describe(config.data), tmp_path / "classifier.safetensors"
    about = {"kind": "classifier", "architecture": "tiny", "data": data.name}
    save_weights(path, classifiers.build("tiny", data).state_dict(), about)
    config.classifier = str(path)
    assert load_weights(train(config))[1]["network"]["labels"] == 2
