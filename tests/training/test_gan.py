"""Training the GAN defence, stopped, killed and resumed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gandefense
from gandefense import zoo
from gandefense.attacks.noise import gaussian_signed
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, to_float
from gandefense.data.sources import data_root
from gandefense.errors import UserError
from gandefense.restorers.gan import GANNetworks
from gandefense.training import gan
from gandefense.training.gan import train
from gandefense.training.gan_config import GANConfig
from gandefense.training.gan_validation import choose_threshold
from gandefense.training.run import Run
from gandefense.weights_io import load_weights
from tests.helpers.short_training import logged, same
from tests.training.conftest import GAN_DISTIL, GAN_STEPS

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
PARTS = {"student", "student_optimiser", "networks", "average", "optimiser", "discriminator", "discriminator_optimiser"}


def test_a_short_training_learns(gan_finished: Path) -> None:
    for name in ("loss_pixel", "pixel_error"):
        values = [value for _, value in logged(gan_finished, f"train/{name}")]
        assert len(values) == GAN_STEPS / 4
        assert sum(values[-2:]) < 0.9 * sum(values[:2]), (name, values)


def test_noisy_images_come_nearer_to_the_clean_ones(gan_finished: Path, gan_settings: Callable[..., GANConfig]) -> None:
    defended = gandefense.load(gan_finished)
    clean = to_float(datasets.load(DataConfig(), "test").images)
    noisy = gaussian_signed(clean, 0.5)
    defended.restorer.threshold = -1e9
    before, after = ((images - clean).abs().mean() for images in (noisy, defended.restore(noisy).images))
    assert after < 0.9 * before


def test_a_fresh_student_learns_from_the_teacher(gan_settings: Callable[..., GANConfig]) -> None:
    config = gan_settings("fresh", distil=40, steps=1, log_every=10)
    config.student = "tiny"
    folder = train(config).parent
    losses = [loss for _, loss in logged(folder, "student/loss")]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]


def test_the_students_accuracy_is_measured_once(gan_finished: Path) -> None:
    ((step, accuracy),) = logged(gan_finished, "student/validation_accuracy")
    assert step == GAN_DISTIL
    assert accuracy > 0.3, "chance is 0.1, and this student starts as the teacher"


def test_the_run_folder_holds_everything(gan_finished: Path) -> None:
    names = {path.name.split(".")[0] for path in gan_finished.iterdir() if path.name != ".lock"}
    assert names == {"config", "stats", "events", "checkpoint", "model", "student"}
    description = load_weights(gan_finished / "model.safetensors")[1]
    assert (description["kind"], description["data"]) == ("gan", "cifar10")
    assert description["config"]["train"]["steps"] == GAN_STEPS
    assert (description["loop"]["rounds"], description["loop"]["tolerance"]) == (2, 4 / 255)
    measured = description["measured"]
    assert {"validation/clean", "validation/attacked", "validation/flagged_clean", "validation/gaussian_0.4"} <= set(measured)
    assert all(0 <= value <= 1 for value in measured.values())
    assert logged(gan_finished, "validation/attacked")[-1] == (GAN_DISTIL + GAN_STEPS, measured["validation/attacked"])
    assert Run.saved_config(gan_finished, "gan")["network"]["width"] == 8
    checkpoint = torch.load(gan_finished / "checkpoint.pt", weights_only=True)
    assert set(checkpoint["parts"]) == PARTS
    assert checkpoint["step"] == GAN_DISTIL + GAN_STEPS


def test_tensorboard_has_scalars_and_grids(gan_finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(gan_finished)).Reload()
    assert {"student/loss", "train/loss", "train/loss_discriminator", "validation/clean"} <= set(events.Tags()["scalars"])
    assert {"validation/auroc_gaussian_0.4", "validation/level_within_one_step"} <= set(events.Tags()["scalars"])
    levels = {f"pictures/gaussian_{level}" for level in (0.2, 0.3, 0.4)}
    assert {"pictures/attacked", *levels} <= set(events.Tags()["images"])
    assert "detection/levels/text_summary" in events.Tags()["tensors"]
    settings = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"train.noise_share" in settings and b"run.folder" not in settings
    assert [event.step for event in events.Images("pictures/attacked")] == [16, 32, 40]
    # TensorBoard shows neither of a scalar and a picture of the same name.
    assert not set(events.Tags()["scalars"]) & set(events.Tags()["images"])


def test_the_run_loads_as_a_defence(gan_finished: Path, gan_settings: Callable[..., GANConfig]) -> None:
    defended, images = gandefense.load(gan_finished), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert defended(images).shape == (4, 10)
    assert set(defended.restore(images).maps) == {"sparsity", "cleaned", "round_1", "round_2", "residual"}
    validation = datasets.load(DataConfig(), "validation")
    flagged = defended.restore(to_float(validation.images)).flagged.float().mean().item()
    assert flagged == pytest.approx(0.05, abs=1 / 60), "the threshold was chosen for this rate on these images"


def test_the_student_loads_as_a_classifier(gan_finished: Path, gan_settings: Callable[..., GANConfig]) -> None:
    student = zoo.load_classifier(gan_finished / "student.safetensors")
    teacher = zoo.load_classifier(gan_settings("unused").classifier)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert student(images).shape == (4, 10)
        assert not torch.equal(student(images), teacher(images))
    description = load_weights(gan_finished / "student.safetensors")[1]
    assert (description["architecture"], description["config"]["distil"]["temperature"]) == ("tiny", 4.0)


@pytest.mark.parametrize("stop", [GAN_DISTIL - 2, GAN_DISTIL, GAN_DISTIL + 10])
def test_a_stopped_run_resumes_bit_for_bit(
    gan_finished: Path, gan_settings: Callable[..., GANConfig], monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Stopped in the first phase two steps after a checkpoint, between the phases, and in the second phase."""
    taken = []

    def until(*words: int) -> Tensor:
        taken.append(words)
        if len(taken) > stop:
            raise KeyboardInterrupt
        return batch_indices(*words)

    config = gan_settings(f"stopped at {stop}")
    with monkeypatch.context() as patch:
        patch.setattr(gan, "batch_indices", until)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    (folder,) = Path(config.run.folder).iterdir()
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == stop // 4 * 4
    config.resume = str(folder)
    torch.manual_seed(99)
    assert train(config).parent == folder
    for name in ("student/loss", "student/validation_accuracy", "train/loss", "train/discriminator_fake", "validation/clean"):
        assert logged(folder, name) == logged(gan_finished, name), name
    resumed, whole = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (folder, gan_finished))
    for part in PARTS:
        assert same(resumed["parts"][part], whole["parts"][part]), part
    for part in ("step", "extra", "random"):
        assert same(resumed[part], whole[part]), part
    for file in ("model.safetensors", "student.safetensors"):
        assert same(*(load_weights(path / file)[0] for path in (folder, gan_finished))), file
    loops = [load_weights(path / "model.safetensors")[1]["loop"] for path in (folder, gan_finished)]
    assert loops[0] == loops[1]


def test_a_finished_run_is_not_trained_again(
    gan_finished: Path, gan_settings: Callable[..., GANConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = gan_settings("whole")
    config.resume = str(gan_finished)
    before = {file.name: file.read_bytes() for file in gan_finished.iterdir()}
    assert train(config) == gan_finished / "model.safetensors"
    assert {file.name: file.read_bytes() for file in gan_finished.iterdir()} == before
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ismn", "norm", "student", "replay", "distil", "precision"),
    [("paper", "batch", "tiny", 0.0, 2, "float32"), ("full", "group", "same", 0.5, 0, "bf16")],
)
def test_other_choices_train_and_load(
    gan_settings: Callable[..., GANConfig], ismn: str, norm: str, student: str, replay: float, distil: int, precision: str
) -> None:
    config = gan_settings(f"{ismn} {precision}", distil=distil, steps=3, precision=precision)
    config.network.ismn, config.network.norm, config.student, config.train.replay_share = ismn, norm, student, replay
    path = train(config)
    assert load_weights(path)[1]["network"]["ismn"] == ismn
    with torch.no_grad():
        assert gandefense.load(path.parent)(torch.rand(2, 3, 32, 32)).isfinite().all()
    assert all(tensor.dtype != torch.bfloat16 for tensor in load_weights(path)[0].values())
    assert [step for step, _ in logged(path.parent, "train/loss")][-1] == distil + 3


def test_a_batch_of_one_trains_without_losing_its_numbers(gan_settings: Callable[..., GANConfig]) -> None:
    """The only image is at once the first of the noisy share, of the attacked ones and of the fakes."""
    config = gan_settings("one", distil=0, steps=4, log_every=1)
    config.train.batch_size, config.network.norm, config.train.noise_share = 1, "group", 0.0
    folder = train(config).parent
    assert all(torch.isfinite(torch.tensor(value)) for _, value in logged(folder, "train/loss_discriminator"))


def test_rows_without_clean_ones_validate_on_what_there_is(gan_settings: Callable[..., GANConfig]) -> None:
    config = gan_settings("few", distil=0, steps=1)
    config.validation_rows = 5
    measured = load_weights(train(config))[1]["measured"]
    assert "validation/attacked" in measured
    assert all(value == value for value in measured.values())


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("network.ismn", "nonsense", "unknown ISMN 'nonsense'"),
        ("network.norm", "nonsense", "unknown norm 'nonsense'"),
        ("student", "nonsense", "unknown classifier 'nonsense'"),
        ("run.precision", "nonsense", "unknown precision 'nonsense'"),
        ("run.checkpoint_every", 0, "run.checkpoint_every must be at least 1, got 0"),
        ("classifier", "nonsense", "unknown network 'nonsense'"),
        ("attacked.attacks", ["fgsm", "nonsense"], "unknown attack 'nonsense'"),
        ("validation_rows", 0, "validation_rows must be at least 1, got 0"),
        ("train.batch_size", 0, "train.batch_size must be at least 1, got 0"),
        ("train.steps", 0, "train.steps must be at least 1, got 0"),
        ("distil.batch_size", 0, "distil.batch_size must be at least 1, got 0"),
        ("loss.r1_every", 0, "loss.r1_every must be at least 1, got 0"),
        ("distil.noise_every", 0, "distil.noise_every must be at least 1, got 0"),
        ("distil.attack_steps", 0, "distil.attack_steps must be at least 1, got 0"),
        ("adapt.clean_share", 1.5, "adapt.clean_share must lie in .0, 1., got 1.5"),
        ("adapt.own_share", 0.6, "adapt.noise_share and own_share together exceed 1"),
        ("adapt.own_steps", 0, "adapt.own_steps must be"),
        ("answers", "nobody", "unknown answers 'nobody'; known: teacher, student"),
        ("loop.detector", "magic", "unknown loop.detector 'magic'; known: perturbation, fused"),
        ("loop.rounds", 0, "loop.rounds must be at least 1, got 0"),
        ("loop.false_positive_rate", 0.0, "loop.false_positive_rate must lie between 0 and 1, got 0.0"),
        ("distil.temperature", 0.0, "distil.temperature must be positive, got 0.0"),
        ("train.replay_share", 0.9, "together exceed 1"),
        ("train.noise_share", -0.1, "train.noise_share must not be negative"),
        ("attacked.precision", "nonsense", "attacked.precision must be auto, bf16 or float32, got 'nonsense'"),
        ("loss.lpips", 1.0, "loss.lpips > 0 needs LPIPS's AlexNet weights"),
        ("train.discriminator_rate", -1.0, "train.discriminator_rate must be positive, got -1.0"),
        ("distil.learning_rate", -0.1, "distil.learning_rate must be positive, got -0.1"),
        ("adapt.learning_rate", -0.1, "adapt.learning_rate must be positive, got -0.1"),
        ("distil.eps", 8.0, r"distil.eps is in pixel units of \[0, 1\] images \(write 8/255\), got 8.0"),
        ("train.random_step_eps", 8.0, "train.random_step_eps is in pixel units"),
        ("adapt.own_eps", 12.0, "adapt.own_eps is in pixel units"),
        ("validation_budgets", [8.0], "8/255"),
        ("validation_budgets", [], "one budget"),
        ("train.learning_rate", float("inf"), "train.learning_rate must be a finite number, got inf"),
        ("train.ema_decay", -0.1, "ema_decay must lie in .0, 1., got -0.1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(
    gan_settings: Callable[..., GANConfig], monkeypatch: pytest.MonkeyPatch, change: str, value: object, message: str
) -> None:
    monkeypatch.setattr("gandefense.training.gan.lpips_network", lambda *_: None)
    config = gan_settings(f"bad {change}", rows=97)
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


def test_lpips_wants_images_that_its_network_can_see(
    gan_settings: Callable[..., GANConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = gan_settings("too small")
    config.loss.lpips = 0.5
    small = dataclasses.replace(datasets.DATASETS["cifar10"], size=28)
    monkeypatch.setitem(datasets.DATASETS, "cifar10", small)
    with pytest.raises(UserError, match=r"lpips > 0 is for images of 32 pixels and more, cifar10 has 28; set it to 0"):
        train(config)
    assert not Path(config.run.folder).exists()


def test_a_copy_of_an_own_classifier_is_no_student_that_answers(
    gan_settings: Callable[..., GANConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights tell nobody how to build it again; the teacher may answer, or a student of a known architecture."""
    code = "import torch\n\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))\n"
    (tmp_path / "own_of_test_gan.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = gan_settings("own", distil=1, steps=1)
    config.classifier, config.answers = "own_of_test_gan.net", "student"
    with pytest.raises(UserError, match=r"answers=student: a copy of own_of_test_gan\.net, a part of your own"):
        train(config)
    assert not Path(config.run.folder).exists()
    config.answers = "teacher"
    assert not (train(config).parent / zoo.STUDENT).exists()
    config.answers, config.student = "student", "tiny"
    assert zoo.load(train(config).parent).classifier is not None


def test_a_restorer_cannot_be_the_teacher(gan_finished: Path, gan_settings: Callable[..., GANConfig]) -> None:
    config = gan_settings("bad teacher")
    config.classifier = str(gan_finished)
    with pytest.raises(UserError, match="not a classifier"):
        train(config)


@pytest.mark.parametrize(("phase", "distil"), [("student", 8), ("networks", 0)])
def test_a_loss_that_is_no_number_stops_the_run(gan_settings: Callable[..., GANConfig], phase: str, distil: int) -> None:
    config = gan_settings(f"diverging {phase}", distil=distil, checkpoint_every=1, log_every=100)
    if phase == "student":
        config.distil.learning_rate = 1e30
    else:
        config.loss.pixel = float("inf")
    with pytest.raises(UserError, match=r"(became|no longer finite) .*; its last checkpoint is whole"):
        train(config)
    (folder,) = Path(config.run.folder).iterdir()
    assert not (folder / "model.safetensors").exists()
    if (folder / "checkpoint.pt").exists():
        parts = torch.load(folder / "checkpoint.pt", weights_only=True)["parts"]
        states = parts["student"] if phase == "student" else parts["networks"]
        assert all(tensor.isfinite().all() for tensor in states.values())


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_the_threshold_is_exceeded_by_a_share_of_the_clean_images(gan_settings: Callable[..., GANConfig], rate: float) -> None:
    networks, validation = GANNetworks(channels=3, size=32, width=8).train(), datasets.load(DataConfig(), "validation")
    threshold = choose_threshold(networks, validation, rate, CPU)
    assert networks.training, "the networks' mode is put back"
    with torch.no_grad():
        logits = networks.eval().detect(to_float(validation.images))
    assert (logits > threshold).float().mean().item() == pytest.approx(rate, abs=1 / 60)


@pytest.mark.slow
def test_a_killed_run_resumes_to_bit_identical_weights(
    gan_settings: Callable[..., GANConfig], small_cifar10: Path, tmp_path: Path, python: Callable
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"classifier: {gan_settings('unused').classifier}\n"
        "attacked: {rows: 512, attacks: [fgsm, none], budgets: [8/255]}\nvalidation_rows: 512\n"
        "network: {width: 8, discriminator_width: 4}\ndistil: {steps: 10, batch_size: 16}\n"
        "train: {steps: 30, batch_size: 13, warmup: 5, ema_decay: 0.9}\n"
        "run: {device: cpu, precision: float32, log_every: 5, image_every: 50, checkpoint_every: 5, seed: 4}\n",
        encoding="utf-8",
    )
    tool = ["-m", "tests.helpers.with_small_cifar10", "tools/train_gan.py"]
    whole = python(*tool, recipe, f"run.folder={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr

    command = [sys.executable, *tool, str(recipe), f"run.folder={tmp_path / 'killed'}"]
    with (tmp_path / "output").open("w") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        folder, deadline = tmp_path / "killed" / "00000-run", time.monotonic() + 120
        while not _reached(folder, 20) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "output").read_text()
    assert not (folder / "model.safetensors").exists(), "killed in the middle"
    assert 10 < torch.load(folder / "checkpoint.pt", weights_only=True)["step"] < 40, "killed in the second phase"

    resumed = python(*tool, f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr
    for file in ("model.safetensors", "student.safetensors"):
        first, second = (load_weights(tmp_path / name / "00000-run" / file)[0] for name in ("whole", "killed"))
        assert same(first, second)
    for name in ("student/loss", "train/loss", "validation/clean"):
        assert logged(folder, name) == logged(tmp_path / "whole" / "00000-run", name)
    assert (folder / "config.yaml").is_file()


def _reached(folder: Path, step: int) -> bool:
    """Whether a run's log has come to a step."""
    log = folder / "stats.jsonl"
    return log.is_file() and f'"step": {step},' in log.read_text(encoding="utf-8")
