"""Losses with known values."""

from __future__ import annotations

import torch

from gandefense.attacks.losses import joint, margin
from gandefense.attacks.victim import broken

LOGITS = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, -5.0]])
LABELS = torch.tensor([0, 1, 0])


def test_the_margin_is_the_lead_of_the_best_other_class() -> None:
    assert margin(LOGITS, LABELS).tolist() == [-1.0, 2.0, 0.0]


def test_the_margins_gradient_does_not_depend_on_the_scale_of_logits() -> None:
    gradients = []
    for factor in (1.0, 1e4):
        logits = LOGITS.clone().requires_grad_(True)
        margin(logits * factor, LABELS)[:2].sum().backward()
        gradients.append(logits.grad / factor)
    assert torch.equal(*gradients)
    assert gradients[0].tolist() == [[-1.0, 0.0, 1.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_joint_loss_follows_the_margin_until_an_image_is_clearly_wrong_and_then_the_detector() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 1.04, 0.0], [1.0, 1.06, 0.0]])
    detector = torch.tensor([5.0, 5.0, 6.0, -7.0])
    outputs = torch.cat([logits, detector[:, None]], dim=1).requires_grad_(True)
    loss = joint(outputs, torch.zeros(4, dtype=torch.int64))
    assert torch.allclose(loss, torch.tensor([-2.0, -5.0, 0.04, 7.0]))
    loss.sum().backward()
    follows_detector = outputs.grad[:, 3] == -1
    assert follows_detector.tolist() == [False, True, False, True]
    assert (outputs.grad[follows_detector, :3] == 0).all()
    assert (outputs.grad[~follows_detector, 3] == 0).all()
    scaled = joint(outputs.detach() * 1000, torch.zeros(4, dtype=torch.int64))
    assert torch.allclose(scaled, loss.detach() * 1000), "which of the two is followed does not depend on the scale"


def test_broken_under_a_joint_loss_means_wrong_and_undetected() -> None:
    outputs = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1e-3], [0.0, 1.0, 9.0]])
    labels = torch.zeros(5, dtype=torch.int64)
    assert broken(outputs, labels, "joint").tolist() == [False, True, True, False, False]
    assert broken(outputs, labels, "ce").tolist() == [False, True, True, True, True], "otherwise all columns are logits"
