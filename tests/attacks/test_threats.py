"""Which network an attacker differentiates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gandefense.attacks import threats
from gandefense.errors import UserError


class Defence(nn.Module):
    """Says which view it was asked for; adds one to what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + 1

    def view(self, name: str, detector: tuple[float, float] | None = None) -> str:
        return f"view {name}, detector {detector}"


def test_gray_box_attacks_the_bare_classifier() -> None:
    defence = Defence()
    assert threats.target(defence, "gray_box") is defence.classifier


def test_black_box_asks_the_whole_pipeline_and_gets_no_gradient() -> None:
    images = torch.zeros(2, 3, 4, 4, requires_grad=True)
    answer = threats.target(Defence(), "black_box")(images)
    assert torch.equal(answer, torch.ones(2, 3, 4, 4))
    assert not answer.requires_grad


@pytest.mark.parametrize("view", [view for view in threats.VIEWS if view != "oblivious"])
def test_white_box_attacks_a_view(view: str) -> None:
    assert threats.target(Defence(), "white_box", view) == f"view {view}, detector None"
    assert threats.target(Defence(), "white_box", view, detector=(0.5, 2.0)) == f"view {view}, detector (0.5, 2.0)"


@pytest.mark.parametrize(
    ("threat", "view", "message"),
    [
        ("blackbox", "exact", "unknown threat 'blackbox'; known: gray_box, black_box, white_box"),
        ("white_box", "oblivious", "white_box needs a view of the defence .* got 'oblivious'"),
        ("white_box", "clear", "white_box needs a view of the defence .* got 'clear'"),
    ],
)
def test_what_a_threat_does_not_allow_is_refused(threat: str, view: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        threats.target(Defence(), threat, view)
