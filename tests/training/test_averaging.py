"""Averages of classifiers' weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gandefense import zoo
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import to_float
from gandefense.errors import UserError
from gandefense.training.averaging import AverageConfig, average, averaged, renew_batch_norms
from gandefense.training.classifier import ClassifierConfig, OptimiserConfig, accuracy, train
from gandefense.weights_io import load_weights, save_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(_small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A classifier, and one that was trained on from it, on noise."""
    from tests.helpers import small_cifar10 as small

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        small.install(_small_root, patch)
        run = RunConfig(folder=str(folder), device="cpu", precision="float32")
        options = OptimiserConfig(batch_size=32, epochs=8, learning_rate=0.1, ema_decay=0.9)
        first = train(ClassifierConfig(run=run, architecture="tiny", train=options))
        noisy = dataclasses.replace(options, epochs=4, noise=0.5)
        return [str(first), str(train(ClassifierConfig(run=run, architecture="tiny", start=str(first), train=noisy)))]


@pytest.fixture
def settings(small_cifar10: Path, tmp_path: Path) -> Callable[..., AverageConfig]:
    def make(networks: list[str], **more: object) -> AverageConfig:
        run = RunConfig(folder=str(tmp_path), name="average", device="cpu")
        return AverageConfig(run=run, networks=networks, batches=4, batch_size=64, **more)

    return make


def test_a_weighted_mean_of_what_is_a_number_and_the_firsts_counters() -> None:
    states = [
        {"weight": torch.tensor([1.0, 2.0]), "seen": torch.tensor(7)},
        {"weight": torch.tensor([5.0, 0.0]), "seen": torch.tensor(9)},
    ]
    mean = averaged(states, [3.0, 1.0])
    assert mean["weight"].tolist() == [2.0, 1.5] and mean["seen"].item() == 7
    assert averaged(states[:1] * 2, [0.4, 0.6])["weight"].tolist() == [1.0, 2.0]
    with pytest.raises(UserError, match="names or shapes of their weights differ"):
        averaged([states[0], {"weight": torch.zeros(3), "seen": torch.tensor(7)}], [1.0, 1.0])


def test_batch_norms_take_the_mean_over_training_images(settings: Callable[..., AverageConfig]) -> None:
    """With one batch of all images, which are mirrored and moved but keep their colours nearly."""
    images = datasets.load(DataConfig(), "train")
    network = nn.Sequential(nn.BatchNorm2d(3, affine=False))
    network[0].running_mean.fill_(9.0)
    config = dataclasses.replace(settings([]), batch_size=len(images.labels), batches=1)
    renew_batch_norms(network, config, images, CPU)
    found: Tensor = network[0].running_mean
    assert not network.training and found == pytest.approx(to_float(images.images).mean((0, 2, 3)), abs=0.03)


def test_an_average_is_a_classifier_that_the_package_loads(trained: list[str], settings: Callable[..., AverageConfig]) -> None:
    config = settings(trained, shares=[1.0, 3.0], noise=0.3)
    path = average(config)
    network = zoo.load_classifier(path)
    measured = load_weights(path)[1]["measured"]
    assert measured["validation_accuracy"] == pytest.approx(accuracy(network, datasets.load(DataConfig(), "validation"), CPU))
    assert measured["validation_accuracy"] > 0.5, "chance is 0.1"
    weights = [load_weights(name)[0] for name in (*trained, path)]
    name = next(name for name, tensor in weights[0].items() if tensor.ndim == 4)
    assert torch.allclose(weights[2][name], 0.25 * weights[0][name] + 0.75 * weights[1][name], atol=1e-6)
    before = path.read_bytes()
    config.resume = str(path.parent)
    assert average(config) == path and path.read_bytes() == before


def test_what_cannot_be_averaged_is_refused(trained: list[str], settings: Callable[..., AverageConfig], tmp_path: Path) -> None:
    tensors, about = load_weights(trained[0])
    for name, change in (("other", {"architecture": "resnet9"}), ("foreign", {"data": "svhn"})):
        save_weights(tmp_path / f"{name}.safetensors", tensors, {**about, **change})
    cases = [
        (settings(trained[:1]), "at least two classifiers to average, got 1"),
        (settings(trained, shares=[1.0]), r"shares has 1 value\(s\) for 2 networks"),
        (settings(trained, shares=[1.0, 0.0]), r"shares\[1\] must be positive"),
        (settings([trained[0], str(tmp_path / "other.safetensors")]), "must have the same architecture, these are resnet9, tiny"),
        (settings([trained[0], str(tmp_path / "foreign.safetensors")]), "is no classifier for cifar10: 'classifier' for 'svhn'"),
        (settings([trained[0], "cifar10/trn"]), "cifar10/trn is no classifier for cifar10: 'trn' for 'cifar10'"),
        (settings([trained[0], str(tmp_path / "absent")]), "absent"),
    ]
    for config, message in cases:
        with pytest.raises(UserError, match=message):
            average(config)
    assert not list(tmp_path.glob("0*")), "no run folder was made"
