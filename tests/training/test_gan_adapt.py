"""Attacks on the student in the GAN training's third phase."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gandefense.training.distillation import distillation
from gandefense.training.gan_adapt import add_own_attacks
from gandefense.training.gan_batch import Piece
from gandefense.training.gan_config import AdaptConfig, GANConfig
from gandefense.training.parts import Part

BATCH, NOISY = 16, 4


def _config(**adapt: object) -> GANConfig:
    return GANConfig(adapt=AdaptConfig(**adapt))


def _piece(part: Part) -> Piece:
    torch.manual_seed(0)
    clean, goal = torch.rand(BATCH, 3, 32, 32), 3 * torch.randn(BATCH, 10)
    labels, zeros = goal.argmax(1), torch.zeros(BATCH)
    whole = [tensor[part.rows] for tensor in (clean.clone(), clean, labels, goal, zeros, zeros, zeros)]
    return Piece(part, *whole)


@pytest.fixture(scope="module")
def student() -> nn.Module:
    torch.manual_seed(3)
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(convolution, nn.Flatten(), nn.Linear(8 * 15 * 15, 10)).train()


def _losses(student: nn.Module, images: Tensor, piece: Piece) -> Tensor:
    student.eval()
    with torch.no_grad():
        losses = [distillation(student(images[i : i + 1]), piece.goal[i : i + 1]) for i in range(len(images))]
    student.train()
    return torch.stack(losses)


@pytest.mark.parametrize("steps", [1, 5])
def test_some_rows_are_attacked_and_the_student_is_worse_on_them(student: nn.Module, steps: int) -> None:
    piece, before = _piece(Part(BATCH)), {name: value.clone() for name, value in student.state_dict().items()}
    add_own_attacks(_config(own_share=0.5, own_eps=0.1), student, piece, first=NOISY, steps=steps)
    moved = (piece.images - piece.clean).abs().flatten(1).amax(1)
    attacked = slice(NOISY, NOISY + BATCH // 2)
    assert (moved[attacked] > 0).all() and (moved[attacked] <= 0.1 + 1e-6).all()
    assert moved[attacked].unique().numel() == BATCH // 2, "each image has a budget of its own"
    assert moved[:NOISY].max() == 0 and moved[NOISY + BATCH // 2 :].max() == 0
    assert (_losses(student, piece.images, piece)[attacked] > _losses(student, piece.clean, piece)[attacked]).all()
    assert student.training and all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_no_share_changes_nothing_and_draws_nothing(student: nn.Module) -> None:
    piece = _piece(Part(BATCH))
    state = torch.get_rng_state()
    add_own_attacks(_config(own_share=0.0), student, piece, first=NOISY, steps=1)
    assert torch.equal(piece.images, piece.clean) and torch.equal(state, torch.get_rng_state())


def test_parts_get_what_the_whole_batch_gets(student: nn.Module) -> None:
    def made(part: Part) -> Tensor:
        piece = _piece(part)
        torch.manual_seed(5)
        add_own_attacks(_config(own_share=0.5), student, piece, first=NOISY, steps=1)
        return piece.images

    whole = made(Part(BATCH))
    for number in range(3):
        part = Part(BATCH, number, 3)
        assert torch.allclose(made(part), whole[part.rows], atol=1e-6)
