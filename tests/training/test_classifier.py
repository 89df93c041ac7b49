"""Training a classifier, killed and resumed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gandefense import zoo
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.training import adversarial, classifier
from gandefense.training.adversarial import AdversarialConfig, WeightPerturbationConfig
from gandefense.training.classifier import ClassifierConfig, OptimiserConfig, accuracy, one_cycle, train, with_noise
from gandefense.training.run import Run
from gandefense.training.soft_labels import DistillationConfig
from gandefense.training.vaccination import JpegConfig
from gandefense.weights_io import load_weights

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")


@pytest.fixture
def config(small_cifar10: Path, tmp_path: Path) -> Callable[..., ClassifierConfig]:
    """Settings for 240 images: 7 steps of 32 an epoch."""

    def settings(*, epochs: float = 1, learning_rate: float = 0.1, limit: int | None = None, **run: object) -> ClassifierConfig:
        return ClassifierConfig(
            data=DataConfig(limit=limit),
            run=RunConfig(**{"folder": str(tmp_path), "device": "cpu", "precision": "float32", "log_every": 5, **run}),
            architecture="tiny",
            train=OptimiserConfig(batch_size=32, epochs=epochs, learning_rate=learning_rate, ema_decay=0.9),
        )

    return settings


def _log(folder: Path, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def test_a_short_training_learns(config: Callable[..., ClassifierConfig]) -> None:
    path = train(config(epochs=10))
    network = zoo.load_classifier(path)
    assert accuracy(network, datasets.load(DataConfig(), "test"), CPU) > 0.7, "chance is 0.1"
    losses = [loss for _, loss in _log(path.parent, "train/loss")]
    assert losses[-1] < 0.8 * losses[0]
    measured = load_weights(path)[1]["measured"]
    assert measured["validation_n"] == 60
    assert measured["validation_accuracy"] == pytest.approx(accuracy(network, datasets.load(DataConfig(), "validation"), CPU))
    assert _log(path.parent, "validation/accuracy")[-1] == (70, measured["validation_accuracy"])


def test_adversarial_training_keeps_more_under_attack(config: Callable[..., ClassifierConfig]) -> None:
    kept, options = {}, AdversarialConfig(method="fgsm", eps=12 / 255, clean_weight=0.5, validation_images=60)
    for method in ("none", "fgsm"):
        settings = config(epochs=8)
        settings.train.adversarial = dataclasses.replace(options, method=method)
        path = train(settings)
        validation = datasets.load(DataConfig(), "validation")
        kept[method] = adversarial.robust_accuracy(zoo.load_classifier(path), validation, options, CPU)
        metadata = load_weights(path)[1]
        assert metadata["adversarial"] == method
    assert metadata["measured"]["validation_robust_accuracy"] == pytest.approx(kept["fgsm"], abs=0.02)  # rounding
    assert _log(path.parent, "validation/robust_accuracy")[-1] == (56, metadata["measured"]["validation_robust_accuracy"])
    assert kept["fgsm"] > kept["none"] + 0.05


def test_noise_has_a_level_for_each_image() -> None:
    torch.manual_seed(0)
    grey = torch.full((400, 3, 16, 16), 0.5)
    deviation = (with_noise(grey, 0.4) - grey).flatten(1).std(1)  # half of the level, which is meant for [-1, 1]
    assert deviation.min() < 0.005 and 0.18 < deviation.max() < 0.22
    assert deviation.mean().item() == pytest.approx(0.1, abs=0.01)
    assert with_noise(grey, 0) is grey


def test_training_on_noise_keeps_more_under_noise(config: Callable[..., ClassifierConfig]) -> None:
    parts = [datasets.load(DataConfig(), part) for part in ("validation", "test")]
    clean = torch.cat([part.images for part in parts] * 3) / 255
    noise = 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.cat([part.labels for part in parts] * 3)
    noisy = datasets.Images((clean + noise).clamp(0, 1), labels, torch.arange(len(labels)))
    kept = {}
    for largest in (0.0, 0.8):
        settings = config(epochs=8)
        settings.train.noise = largest
        kept[largest] = accuracy(zoo.load_classifier(train(settings)), noisy, CPU)
    assert kept[0.8] > kept[0.0] + 0.05


def test_a_teacher_sees_the_image_without_noise(config: Callable[..., ClassifierConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = train(config(epochs=1)), []
    real = classifier.soft_labels
    monkeypatch.setattr(classifier, "augmentation", lambda *_, **__: lambda images: images)
    monkeypatch.setattr(
        classifier, "soft_labels", lambda teacher, images, *rest: seen.append(images) or real(teacher, images, *rest)
    )
    settings = config(epochs=1)
    settings.train.noise = 0.4
    settings.train.distillation = DistillationConfig(teacher=str(path))
    train(settings)
    levels = torch.cat(seen) * 255
    assert len(seen) == 7 and (levels - levels.round()).abs().max() < 1e-3, "whole 8-bit levels, which noise would not leave"


@pytest.mark.parametrize("method", ["trades", "alp"])
def test_each_method_resumes_where_it_stopped(
    config: Callable[..., ClassifierConfig], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Stopped by an error in the ninth step of fourteen, one after a checkpoint; perturbed weights, JPEG and noise included."""

    def settings() -> ClassifierConfig:
        fresh = config(epochs=2, checkpoint_every=4)
        weights = WeightPerturbationConfig(gamma=0.01, warmup=0.5)
        fresh.train.adversarial = AdversarialConfig(method=method, steps=2, awp=weights, validation_images=20)
        fresh.train.jpeg = JpegConfig(probability=0.5, qualities=[30, 60])
        fresh.train.noise = 0.2
        return fresh

    whole = load_weights(train(settings()))[0]
    real, calls = adversarial.attacked_batch, []

    def fails(*words: object) -> torch.Tensor:
        calls.append(words)
        if len(calls) == 9:
            raise OSError("stopped")
        return real(*words)

    stopped = settings()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="stopped"):
        patch.setattr(adversarial, "attacked_batch", fails)
        train(stopped)
    (folder,) = (path.parent for path in Path(stopped.run.folder).glob("*/checkpoint.pt") if path.parent.name.startswith("00001"))
    stopped.resume = str(folder)
    resumed = load_weights(train(stopped))[0]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "free"}, "unknown train.adversarial.method 'free'; known: none, fgsm, pgd, trades, alp"),
        ({"eps": 8}, r"write 8/255\), got 8"),
        ({"clean_weight": 1.5}, r"must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_adversarial_settings_are_refused(
    config: Callable[..., ClassifierConfig], change: dict[str, object], message: str
) -> None:
    settings = config()
    settings.train.adversarial = AdversarialConfig(**change)
    with pytest.raises(UserError, match=message):
        train(settings)


def test_bf16_trains_too(config: Callable[..., ClassifierConfig]) -> None:
    path = train(config(epochs=10, precision="bf16"))
    tensors, metadata = load_weights(path)
    assert metadata["measured"]["validation_accuracy"] > 0.5
    assert all(tensor.dtype != torch.bfloat16 for tensor in tensors.values())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(config: Callable[..., ClassifierConfig]) -> None:
    weights = [load_weights(train(config(seed=seed)))[0] for seed in (1, 1, 2)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert not all(torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())


def test_a_finished_run_is_not_trained_again(config: Callable[..., ClassifierConfig], capsys: pytest.CaptureFixture[str]) -> None:
    settings = config()
    path = train(settings)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    settings.resume = str(path.parent)
    assert train(settings) == path
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    assert "finished" in capsys.readouterr().out


def test_the_logged_loss_is_a_mean_over_the_steps_since_the_last_line(config: Callable[..., ClassifierConfig]) -> None:
    every_step, every_fifth = (train(config(log_every=every)).parent for every in (1, 5))
    losses = [loss for _, loss in _log(every_step, "train/loss")]
    assert len(losses) == 7
    expected = [(5, sum(losses[:5]) / 5), (7, sum(losses[5:]) / 2)]
    logged = _log(every_fifth, "train/loss")
    assert [step for step, _ in logged] == [5, 7]
    assert [loss for _, loss in logged] == pytest.approx([loss for _, loss in expected], rel=1e-4)


def test_a_loss_that_is_no_number_stops_the_run_before_a_checkpoint_keeps_it(config: Callable[..., ClassifierConfig]) -> None:
    settings = config(learning_rate=1e30, epochs=3, log_every=10, checkpoint_every=1)
    with pytest.raises(UserError, match="the loss became nan"):
        train(settings)
    (folder,) = Path(settings.run.folder).glob("0*")
    assert not (folder / "model.safetensors").exists()
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        network = torch.load(checkpoint, weights_only=True)["parts"]["network"]
        assert all(tensor.isfinite().all() for tensor in network.values())


def test_the_limit_cuts_training_images_but_never_validation(config: Callable[..., ClassifierConfig]) -> None:
    path = train(config(limit=20))
    assert load_weights(path)[1]["measured"]["validation_n"] == 60
    assert _log(path.parent, "validation/accuracy")[-1][0] == 1, "20 images are one batch, cut to their number"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": -0.1}, "train.momentum must lie in .0, 1., got -0.1"),
        ({"epochs": float("inf")}, "train.epochs must be a finite number, got inf"),
        ({"ema_decay": -0.1}, "ema_decay must lie in .0, 1., got -0.1"),
        ({"noise": -0.1}, "train.noise must not be negative, got -0.1"),
        ({"weight_decay": float("inf")}, "train.weight_decay must be a finite number"),
    ],
)
def test_values_that_no_optimiser_takes_are_refused(
    config: Callable[..., ClassifierConfig], change: dict[str, float], message: str
) -> None:
    settings = config()
    settings.train = dataclasses.replace(settings.train, **change)
    with pytest.raises(UserError, match=message):
        train(settings)
    assert not list(Path(settings.run.folder).glob("*"))


def test_plain_gradient_descent_has_no_momentum(config: Callable[..., ClassifierConfig]) -> None:
    settings = config(limit=20)
    settings.train.momentum = 0.0
    assert train(settings).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "huge"}, "unknown classifier 'huge'"),
        ({"data": DataConfig(name="cifar11")}, "unknown data set"),
        ({"run": RunConfig(folder="never made", device="abacus")}, "unknown device 'abacus'"),
    ],
)
def test_bad_settings_are_refused(config: Callable[..., ClassifierConfig], change: dict[str, object], message: str) -> None:
    settings = dataclasses.replace(config(), **change)
    with pytest.raises(UserError, match=message):
        train(settings)


def test_accuracy_counts_and_leaves_the_mode(small_cifar10: Path) -> None:
    class Always(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return torch.nn.functional.one_hot(torch.full((len(images),), 3), 10).float()

    test, network = datasets.load(DataConfig(), "test"), Always().train()
    assert accuracy(network, test, CPU, batch_size=7) == (test.labels == 3).sum().item() / 60
    assert network.training


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1001])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 1.0])
def test_one_cycle_rises_to_its_peak_and_falls(steps: int, warmup: float) -> None:
    factors = [one_cycle(step, steps, warmup) for step in range(steps)]
    peak = factors.index(max(factors))
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if steps >= 100:
        assert max(factors) > 0.97
        assert abs(peak - warmup * steps) <= 2
    if steps >= 100 and warmup < 1:
        assert factors[-1] < 0.02


@pytest.mark.slow
def test_a_killed_run_resumes_to_bit_identical_weights(small_cifar10: Path, tmp_path: Path, python: Callable) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "architecture: tiny\ntrain: {batch_size: 32, epochs: 18, ema_decay: 0.9, erase: 0.5}\n"
        "run: {device: cpu, precision: float32, log_every: 5, checkpoint_every: 10, seed: 4}\n",
        encoding="utf-8",
    )
    tool = ["-m", "tests.helpers.with_small_cifar10", "tools/train_classifier.py"]

    whole = python(*tool, recipe, f"run.folder={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *tool, str(recipe), f"run.folder={tmp_path / 'killed'}"]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        folder, deadline = tmp_path / "killed" / "00000-run", time.monotonic() + 120
        while not (folder / "checkpoint.pt").is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "output").read_text()
    assert not (folder / "model.safetensors").exists(), "killed in the middle"
    interrupted_at = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < interrupted_at < 126

    resumed = python(*tool, f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr
    first, second = (load_weights(tmp_path / name / "00000-run" / "model.safetensors")[0] for name in ("whole", "killed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    for name in ("train/loss", "train/learning_rate", "validation/accuracy"):
        assert _log(folder, name) == _log(tmp_path / "whole" / "00000-run", name)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]

    again = python(*tool, f"resume={folder}")
    assert (again.returncode, again.stdout.count("finished")) == (0, 1)
    assert Run.saved_config(folder, "classifier")["run"]["seed"] == 4
