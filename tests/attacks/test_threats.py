"""Which network an attacker differentiates."""

from __future__ import annotations

import pytest
from torch import nn

from gandefense.attacks import threats
from gandefense.errors import UserError


class Defence:
    """Says which view it was asked for."""

    classifier = nn.Identity()

    def view(self, name: str) -> str:
        return f"view {name}"


def test_gray_box_attacks_the_bare_classifier() -> None:
    assert threats.target(Defence(), "gray_box") is Defence.classifier


@pytest.mark.parametrize("view", [view for view in threats.VIEWS if view != "oblivious"])
def test_white_box_attacks_a_view(view: str) -> None:
    assert threats.target(Defence(), "white_box", view) == f"view {view}"


@pytest.mark.parametrize(
    ("threat", "view", "message"),
    [
        ("blackbox", "exact", "unknown threat 'blackbox'; known: gray_box"),
        ("white_box", "oblivious", "white_box needs a view of the defence .* got 'oblivious'"),
        ("white_box", "clear", "white_box needs a view of the defence .* got 'clear'"),
    ],
)
def test_what_a_threat_does_not_allow_is_refused(threat: str, view: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        threats.target(Defence(), threat, view)
