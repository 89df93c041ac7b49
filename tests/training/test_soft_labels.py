"""Defensive distillation: soft labels, temperatures, and the saturation at the end."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gandefense import zoo
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.training.adversarial import AdversarialConfig, loss
from gandefense.training.classifier import ClassifierConfig, OptimiserConfig, accuracy, train
from gandefense.training.soft_labels import DistillationConfig, load_teacher, magnify, soft_labels
from gandefense.weights_io import load_weights
from tests.helpers.networks import Linear, small_cnn

CPU = torch.device("cpu")
CIFAR10 = datasets.describe("cifar10")


def _config(folder: object, **distillation: object) -> ClassifierConfig:
    return ClassifierConfig(
        run=RunConfig(folder=str(folder), device="cpu", precision="float32"),
        architecture="tiny",
        train=OptimiserConfig(
            batch_size=32, epochs=6, learning_rate=0.1, ema_decay=0.9, distillation=DistillationConfig(**distillation)
        ),
    )


def test_soft_labels_are_the_softmax_at_the_temperature() -> None:
    teacher, images = small_cnn(nn.ReLU), torch.rand(5, 3, 6, 6)
    hot, cold = (soft_labels(teacher, images, temperature) for temperature in (10.0, 1.0))
    logits = teacher(images)
    assert torch.allclose(hot, (logits / 10).exp() / (logits / 10).exp().sum(1, keepdim=True))
    assert (hot.max(1).values < cold.max(1).values).all()
    assert not hot.requires_grad


def test_the_gradient_pulls_towards_the_soft_labels() -> None:
    """∂/∂u of the cross-entropy is softmax(u) − q, and nothing is left to learn where they agree."""
    wanted, logits = torch.rand(3, 4).softmax(1), torch.randn(3, 4, requires_grad=True)
    loss(nn.Identity(), logits, logits, wanted, AdversarialConfig()).backward()
    assert torch.allclose(logits.grad, (logits.detach().softmax(1) - wanted) / 3, atol=1e-6)
    reached = wanted.log().requires_grad_(True)
    loss(nn.Identity(), reached, reached, wanted, AdversarialConfig()).backward()
    assert reached.grad.abs().max() < 1e-7


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_magnified_logits_over_the_temperature_are_what_was_trained(temperature: float) -> None:
    network, images = small_cnn(nn.ReLU), torch.rand(5, 3, 6, 6)
    trained = network(images)
    magnify(network, temperature)
    assert torch.allclose(network(images) / temperature, trained, atol=1e-5)


def test_saturated_logits_leave_the_cross_entropy_no_gradient() -> None:
    network = small_cnn(nn.ReLU)
    images = torch.rand(8, 3, 6, 6, requires_grad=True)
    labels = network(images).argmax(1)
    before = torch.autograd.grad(F.cross_entropy(network(images), labels), images)[0]
    magnify(network, 1000.0)
    after = torch.autograd.grad(F.cross_entropy(network(images), labels), images)[0]
    assert before.abs().max() > 1e-3
    assert (after == 0).float().mean() > 0.5


def test_only_a_network_that_ends_in_a_linear_layer_can_be_magnified() -> None:
    with pytest.raises(UserError, match="ends in a linear layer, not in ReLU"):
        magnify(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 2.0)
    with pytest.raises(UserError, match="not in Linear"):  # a helper of the same name, but no layer of torch's
        magnify(Linear(torch.ones(3, 2, 2)), 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "train.distillation.temperature must be positive, got 0.0"),
        ({"teacher_temperature": -1.0}, "train.distillation.teacher_temperature must be positive"),
        ({"teacher": "cifar10/nobody"}, "unknown network 'cifar10/nobody'"),
        ({"teacher": "cifar10/trn"}, "is a 'trn', not a classifier"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_teacher(DistillationConfig(**options), CIFAR10, CPU)


def test_a_teacher_of_another_data_set_is_refused() -> None:
    with pytest.raises(UserError, match="was trained on cifar10, not on other"):
        load_teacher(DistillationConfig(teacher="cifar10/classifier"), dataclasses.replace(CIFAR10, name="other"), CPU)


def test_a_student_learns_from_its_teacher_and_answers_at_temperature_one(small_cifar10: object, tmp_path: object) -> None:
    """Papernot's way in full: a teacher at T, a student at T on its soft labels; both saturate at 1."""
    test = datasets.load(DataConfig(), "test")
    teacher = train(_config(tmp_path, temperature=20.0))
    student = train(_config(tmp_path, teacher=str(teacher), temperature=20.0, teacher_temperature=20.0))
    images = test.images.float() / 255
    with torch.no_grad():
        teacher_logits, logits = (zoo.load_classifier(path)(images) for path in (teacher, student))
    assert accuracy(zoo.load_classifier(student), test, CPU) > 0.4, "chance is 0.1"
    agreement = (logits.argmax(1) == teacher_logits.argmax(1)).float().mean()
    assert agreement > 0.4
    for found in (teacher_logits, logits):
        assert found.softmax(1).max(1).values.mean() > (found / 20).softmax(1).max(1).values.mean() + 0.1
    assert load_weights(student)[1]["config"]["train"]["distillation"]["temperature"] == 20.0
