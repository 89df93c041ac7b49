"""The GAN defence's second stage, started from a first, and its third phase."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gandefense
from gandefense import zoo
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, to_float
from gandefense.errors import UserError
from gandefense.training import gan
from gandefense.training.gan import train
from gandefense.training.gan_batch import moved
from gandefense.training.gan_config import AdaptConfig, GANConfig, LossConfig
from gandefense.training.parts import Part
from gandefense.weights_io import load_weights, save_weights
from tests.helpers.short_training import logged, same
from tests.training.test_gan import PARTS


def _adapting(gan_settings: Callable[..., GANConfig], name: str, **options: object) -> GANConfig:
    """A shorter training with a third phase, whose student stands behind the restorer, and a fused detector."""
    config = gan_settings(name, distil=4, steps=6, **options)
    config.answers, config.loop.detector = "student", "fused"
    config.distil.attack_steps, config.distil.noise_every = 2, 2
    config.adapt = AdaptConfig(steps=12, batch_size=16, learning_rate=0.02, own_share=0.25, own_steps=2)
    return config


@pytest.fixture(scope="module")
def adapted(gan_settings: Callable[..., GANConfig]) -> Path:
    """The folder of a run with three phases that nobody interrupted."""
    return train(_adapting(gan_settings, "adapted")).parent


def test_a_second_stage_goes_on_from_the_first_ones_networks(gan_finished: Path, gan_settings: Callable[..., GANConfig]) -> None:
    config = gan_settings("second stage", distil=1, steps=1)
    config.start, config.train.learning_rate, config.train.discriminator_rate = str(gan_finished), 1e-9, 1e-9
    config.loss.code_rate = 0.0
    first, second = (load_weights(path)[0] for path in (gan_finished / "model.safetensors", train(config)))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if "mean_activation" not in name:
            assert torch.allclose(tensor, second[name], atol=1e-6), name


def test_guidance_by_the_logits_is_learnt(gan_finished: Path, gan_settings: Callable[..., GANConfig]) -> None:
    config = gan_settings("guided", distil=1, log_every=16)
    config.loss = LossConfig(pixel=0.0, cleaned=0.0, classifier=0.0, student=0.0, adversarial=0.0, logits=1.0, class_ramp=0)
    losses = [value for _, value in logged(train(config).parent, "train/loss_logits")]
    assert losses[-1] < losses[0]


def test_a_second_stage_resumes_without_the_first_once_it_has_a_checkpoint(
    gan_finished: Path, gan_settings: Callable[..., GANConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = gan_settings("second stage stopped", distil=2, steps=10)
    whole = copy.deepcopy(config)
    first = tmp_path / "first.safetensors"
    shutil.copy(gan_finished / "model.safetensors", first)
    config.start = whole.start = str(first)
    whole.run.folder += " whole"
    taken = []

    def until(*words: int) -> Tensor:
        taken.append(words)
        if len(taken) > 7:
            raise KeyboardInterrupt
        return batch_indices(*words)

    with monkeypatch.context() as patch:
        patch.setattr(gan, "batch_indices", until)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    expected = load_weights(train(whole))[0]
    (folder,) = Path(config.run.folder).iterdir()
    config.resume = str(folder)
    checkpoint = (folder / "checkpoint.pt").rename(tmp_path / "checkpoint.pt")
    tensors, about = load_weights(first)
    save_weights(first, {name: tensor + 1 for name, tensor in tensors.items()}, about)
    with pytest.raises(UserError, match="the weights to start from changed since this run was started"):
        train(config)
    checkpoint.rename(folder / "checkpoint.pt")
    first.unlink()
    assert same(load_weights(train(config))[0], expected)


@pytest.mark.parametrize(
    ("start", "width", "expected"),
    [("classifier", 8, "its kind is 'classifier', this training's 'gan'"), ("whole", 16, "its network is .*'width': 8")],
)
def test_a_start_that_does_not_fit_is_refused(
    start: str, width: int, expected: str, gan_finished: Path, gan_settings: Callable[..., GANConfig]
) -> None:
    config = gan_settings("refused")
    config.start = str(gan_finished) if start == "whole" else config.classifier
    config.network.width = width
    with pytest.raises(UserError, match=expected):
        train(config)
    assert not Path(config.run.folder).exists()


def test_the_third_phase_teaches_the_student_behind_the_restorer(adapted: Path, gan_settings: Callable[..., GANConfig]) -> None:
    losses = [loss for _, loss in logged(adapted, "adapt/loss")]
    assert len(losses) == 4 and losses[-1] < losses[0]
    description = load_weights(adapted / "model.safetensors")[1]
    assert description["classifier"] == "student.safetensors", "beside it, wherever the folder lies"
    assert {signal["kind"] for signal in description["detector"]["signals"]} == {"perturbation", "l1", "jsd"}
    card = load_weights(adapted / "student.safetensors")[1]
    assert (card["adversarial"], card["config"]["adapt"]["steps"]) == ("distilled", 12)
    defended, student = gandefense.load(adapted), zoo.load_classifier(adapted / "student.safetensors")
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(defended.classifier(images), student(images)), "the student answers"
    flagged = defended.restore(to_float(datasets.load(DataConfig(), "validation").images)).flagged.float().mean().item()
    assert flagged == pytest.approx(0.05, abs=1 / 30), "the fused threshold was chosen for this rate on these images"


def test_the_third_phase_alone_leaves_the_restorer_as_it_was(gan_finished: Path, gan_settings: Callable[..., GANConfig]) -> None:
    config = _adapting(gan_settings, "third phase alone")
    config.start, config.distil.steps, config.train.steps = str(gan_finished), 0, 0
    path = train(config)
    assert same(load_weights(path)[0], load_weights(gan_finished / "model.safetensors")[0])
    teacher, student = (load_weights(place)[0] for place in (config.classifier, path.parent / "student.safetensors"))
    assert teacher.keys() == student.keys() and not same(teacher, student)


def test_the_third_phases_images_are_moved_and_mirrored() -> None:
    torch.manual_seed(0)
    columns = torch.arange(16.0).expand(64, 1, 16, 16) / 16
    made = (moved(columns, flip=True) * 16)[:, 0, 8]
    steps = {(made[i, 9] - made[i, 8]).item() for i in range(64)}
    assert steps == {1.0, -1.0}, "one image of a row of columns, mirrored or not"
    starts = {made[i, 8].item() - 8 for i in range(64) if made[i, 9] > made[i, 8]}
    assert starts == {-2.0, -1.0, 0.0, 1.0, 2.0}, "by up to an eighth of 16 pixels"
    assert {(row[9] - row[8]).item() for row in (moved(columns, flip=False) * 16)[:, 0, 8]} == {1.0}
    torch.manual_seed(1)
    whole = moved(columns, flip=True)
    torch.manual_seed(1)
    part = Part(64, 1, 4)
    with part.drawing():
        assert torch.equal(moved(columns[part.rows], flip=True), whole[part.rows]), "the same whatever the number of parts"


def test_the_third_phase_resumes_bit_for_bit(
    adapted: Path, gan_settings: Callable[..., GANConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def until(*words: int) -> Tensor:
        taken.append(words)
        if len(taken) > 16:
            raise KeyboardInterrupt
        return batch_indices(*words)

    config = _adapting(gan_settings, "third phase stopped")
    with monkeypatch.context() as patch:
        patch.setattr(gan, "batch_indices", until)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    (folder,) = Path(config.run.folder).iterdir()
    config.resume = str(folder)
    torch.manual_seed(99)
    assert train(config).parent == folder
    resumed, whole = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (folder, adapted))
    for part in PARTS:
        assert same(resumed["parts"][part], whole["parts"][part]), part
    assert logged(folder, "adapt/loss") == logged(adapted, "adapt/loss")
    detectors = [load_weights(path / "model.safetensors")[1]["detector"] for path in (folder, adapted)]
    assert detectors[0] == detectors[1]
