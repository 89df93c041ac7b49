"""Defensive distillation and the student's adversarial step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gandefense.data.batches import Images, to_float
from gandefense.training.distillation import StudentConfig, clean_logits, distillation, student_step
from tests.helpers.networks import Linear


def _student(*, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        convolution = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        return nn.Sequential(convolution, nn.Dropout(0.0), nn.Flatten(), nn.Linear(8 * 36, 4))


@pytest.fixture
def clean() -> Tensor:
    return torch.rand(8, 3, 6, 6) * 0.6 + 0.2


@pytest.fixture
def teacher() -> nn.Sequential:
    return _student(seed=1).eval().requires_grad_(False)


def test_equal_logits_cost_nothing_whatever_their_offset() -> None:
    logits = torch.randn(5, 7) * 3
    assert distillation(logits, logits).item() == pytest.approx(0, abs=1e-6)
    assert distillation(logits + 4, logits).item() == pytest.approx(0, abs=1e-6)
    assert distillation(logits, logits.flip(1)).item() > 0.1


@pytest.mark.parametrize(
    ("logits", "goal", "expected"),
    [
        ([[0.0, 0.0]], [[0.0, 100.0]], math.log(2)),
        ([[0.0, math.log(3)]], [[0.0, 0.0]], -math.log(0.25) / 2 - math.log(0.75) / 2 - math.log(2)),
        ([[0.0, 0.0], [0.0, 0.0]], [[0.0, 100.0], [0.0, 0.0]], math.log(2) / 2),  # a mean over the batch
    ],
)
def test_known_divergences(logits: list, goal: list, expected: float) -> None:
    assert distillation(torch.tensor(logits), torch.tensor(goal)).item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_the_difference_of_the_probabilities() -> None:
    logits, goal = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    distillation(logits, goal).backward()
    assert torch.allclose(logits.grad, (logits.detach().softmax(1) - goal.softmax(1)) / 3, atol=1e-6)


def test_half_precision_is_widened() -> None:
    logits, goal = torch.randn(3, 5).bfloat16(), torch.randn(3, 5).bfloat16()
    assert distillation(logits, goal).dtype == torch.float32
    assert distillation(logits, goal).item() == pytest.approx(distillation(logits.float(), goal.float()).item(), rel=1e-5)


def test_a_step_leaves_the_student_trainable_and_the_teacher_alone(clean: Tensor, teacher: nn.Module) -> None:
    student = _student().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    loss = student_step(StudentConfig(), student, teacher, clean)
    assert all(child.training for child in student.modules())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in student.parameters()), "the attack touches no parameter's gradient"
    loss.backward()
    assert student[0][0].weight.grad.any(), "the gradient reaches the first layer"
    assert not teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_only_the_training_pass_counts_for_batch_norm(clean: Tensor, teacher: nn.Module) -> None:
    """The attack runs the student once more, in eval mode and with its statistics held."""
    student, seen = _student().train(), []
    student.register_forward_hook(lambda network, inputs, _: seen.append((network.training, inputs[0].detach().clone())))
    norm = student[0][1]
    student_step(StudentConfig(), student, teacher, clean)
    assert [training for training, _ in seen] == [False, True]
    assert norm.num_batches_tracked == 1
    with torch.no_grad():
        expected = 0.1 * student[0][0](seen[1][1]).mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, expected, atol=1e-6)


@pytest.mark.parametrize(("eps", "noise"), [(0.0, 0.0), (8 / 255, 0.0), (0.1, 0.0), (0.0, 0.4)])
def test_what_the_student_is_trained_on(clean: Tensor, teacher: nn.Module, eps: float, noise: float) -> None:
    student, seen = _student().train(), []
    student.register_forward_hook(lambda network, inputs, _: seen.append(inputs[0].detach().clone()))
    student_step(StudentConfig(eps=eps, noise=noise), student, teacher, clean)
    size = (seen[-1] - clean).abs().flatten(1).amax(1)
    noisy = torch.arange(8) % 4 == 0
    assert (size[~noisy] <= eps + 1e-6).all()
    assert (size[~noisy] > 0).all() == (eps > 0)
    assert (size[noisy] > 0).all() == (noise > 0)
    assert size[~noisy].unique().numel() == (6 if eps > 0 else 1), "each image has a budget of its own"
    assert seen[-1].min() >= 0
    assert seen[-1].max() <= 1


def test_the_attack_raises_the_students_loss(clean: Tensor) -> None:
    weight = torch.randn(3, 6, 6)
    student, teacher, config = Linear(weight), Linear(weight), StudentConfig(temperature=1.0, eps=0.1, noise=0.0)
    attacked = student_step(config, student, teacher, clean).item()
    assert student_step(StudentConfig(temperature=1.0, eps=0.0, noise=0.0), student, teacher, clean).item() < 1e-6
    with torch.no_grad():
        random = distillation(student(clean + 0.1 * torch.randn_like(clean).sign()), teacher(clean)).item()
    assert attacked > 2 * random


def test_the_squared_temperature_keeps_the_gradients_size(clean: Tensor, teacher: nn.Module) -> None:
    """At a high temperature T² KL(z/T) tends to half the squared error of centred logits over K (Hinton et al. 2015)."""
    student = _student().eval()
    for network in (student, teacher):
        network[-1].weight.data.mul_(5)  # logits far enough apart that float32 does not round their divergence away
    with torch.no_grad():
        difference = student(clean) - teacher(clean)
        limit = 0.5 * (difference - difference.mean(1, keepdim=True)).square().mean(1).mean().item()
    losses = {}
    for temperature in (1.0, 5.0, 50.0):
        config = StudentConfig(temperature=temperature, eps=0.0, noise=0.0)
        losses[temperature] = student_step(config, student, teacher, clean).item()
        with torch.no_grad():
            plain = distillation(student(clean) / temperature, teacher(clean) / temperature).item()
        assert losses[temperature] == pytest.approx(temperature**2 * plain, rel=1e-5)
    assert losses[50.0] == pytest.approx(limit, rel=0.05)


def test_steps_bring_the_student_to_the_teacher(clean: Tensor, teacher: nn.Module) -> None:
    student = _student().train()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = student_step(StudentConfig(noise=0.1), student, teacher, clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_clean_logits_are_the_teachers_own_on_every_image(teacher: nn.Module) -> None:
    data = Images((torch.rand(501, 3, 6, 6) * 255).byte(), torch.zeros(501).long(), torch.arange(501))
    logits = clean_logits(teacher, data, torch.device("cpu"), "float32")
    assert torch.allclose(logits, teacher(to_float(data.images)), atol=1e-5)
    assert not logits.requires_grad
    chosen = torch.arange(500, -1, -5)
    assert torch.allclose(clean_logits(teacher, data, torch.device("cpu"), "float32", chosen=chosen), logits[chosen], atol=1e-5)
    rough = clean_logits(teacher, data, torch.device("cpu"), "bf16")
    assert rough.dtype == torch.float32
    assert 0 < (rough - logits).abs().max() < 0.1
