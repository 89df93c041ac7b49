"""Every check, firing and not firing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gandefense.evaluation import checks
from gandefense.evaluation.metrics import wilson_interval


def figure(right: int, count: int = 1000, title: str = "") -> dict[str, Any]:
    return {"accuracy": right / count, "ci95": list(wilson_interval(right, count)), "title": title, "n": count}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(600, 500, True), (500, 600, False), (510, 500, False), (500, 500, False), (10, 0, True), (2, 0, False)],
)
def test_clearly_above(first: int, second: int, expected: bool) -> None:
    assert checks.clearly_above(figure(first), figure(second)) is expected


FOUND = [
    (
        checks.static_rule("trn", figure(12), figure(8)),
        True,
        "1.2 % under white_box where the classifier alone keeps 0.8 %",
    ),
    (checks.static_rule("trn", figure(300), figure(8)), False, "a gain beyond the intervals"),
    (checks.static_rule("trn", figure(0), figure(300)), True, "no gain that the intervals support"),
    (checks.static_rule("trn", None, figure(8)), False, "not measured"),
    (checks.one_step_beats_many("x", figure(300, title="fgsm"), figure(500, title="pgd-20")), True, "masked gradients"),
    (checks.one_step_beats_many("x", figure(500), figure(300)), False, "as they should"),
    (checks.one_step_beats_many("x", figure(490), figure(500)), False, "as they should"),
    (checks.white_above_gray("trn", figure(501), figure(500)), True, "no bound"),
    (checks.white_above_gray("trn", figure(400), figure(500)), False, "helps the attacker"),
    (checks.white_above_gray("trn", figure(400), None), False, "not compared"),
    (checks.label_leaking("x", figure(800), figure(500), figure(900)), True, "may leak"),
    (checks.label_leaking("x", figure(950), figure(950), figure(900)), True, "an attack that helps"),
    (checks.label_leaking("x", figure(500), figure(510), figure(900)), False, "no sign"),
    (checks.zero_gradients("trn", "detached", 0.37), True, "trn, view detached: 37.0 % of the loss gradient's entries"),
    (checks.zero_gradients("trn", "detached", 0.01), False, "gradients to follow"),
    (checks.few_images([figure(100, 200), figure(10, 200)], 200), True, "± 6.9 points"),
    (checks.few_images([figure(500)], 1000), False, "± 3.1 points"),
]


@pytest.mark.parametrize(("finding", "fired", "said"), FOUND)
def test_each_check_fires_when_it_should(finding: dict[str, Any], fired: bool, said: str) -> None:
    assert set(finding) == {"name", "fired", "text"}
    assert finding["fired"] is fired
    assert said in finding["text"] and finding["text"].endswith(".") and "\n" not in finding["text"]


class Dead(nn.Module):
    """Logits that ignore the input's left half, or all of it, or cut the graph."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "cut":
            images = images.detach()
        if self.kind == "half":
            images = images[..., images.shape[-1] // 2 :]
        total = images.flatten(1).sum(1) * (0 if self.kind == "flat" else 1)
        return torch.stack([total, -total], dim=1)


@pytest.mark.parametrize(("kind", "share"), [("alive", 0.0), ("half", 0.5), ("flat", 1.0), ("cut", 1.0)])
def test_zero_gradient_share(kind: str, share: float) -> None:
    images = torch.rand(3, 1, 4, 4) / 16
    assert checks.zero_gradient(Dead(kind), images, torch.tensor([0, 1, 0])).tolist() == [share] * 3


def test_zero_gradient_is_measured_under_no_grad_and_leaves_parameters_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).train()
    with torch.no_grad():
        assert checks.zero_gradient(network, torch.rand(2, 1, 4, 4), torch.tensor([0, 1])).sum() == 0
    assert network.training and all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def row(restorer: str, threat: str, attack: str, right: int, *, undefended: int = 0, **more: Any) -> dict[str, Any]:
    alone = figure(undefended)
    base = {"restorer": restorer, "threat": threat, "view": "oblivious", "attack": attack, "eps": 8 / 255, "steps": 20}
    base |= {"step_size": None, "restarts": 1, "labels": "true", "zero_gradient": None, **figure(right, title=attack)}
    return base | {"undefended_accuracy": alone["accuracy"], "undefended_ci95": alone["ci95"], **more}


def test_run_picks_the_right_rows() -> None:
    rows = [
        row("trn", "gray_box", "none", 920, undefended=930),
        row("trn", "gray_box", "fgsm", 300, undefended=200),
        row("trn", "gray_box", "pgd", 700, undefended=10),  # a restorer may find one step harder; no masking
        row("trn", "gray_box", "pgd", 500, labels="predicted", undefended=20),
        row("trn", "white_box", "fgsm", 100, view="detached", zero_gradient=0.2),
        row("trn", "white_box", "pgd", 400, view="detached", zero_gradient=0.2),
    ]
    kept = {"trn": {"gray_box": figure(280), "white_box": figure(90)}, "none": {"gray_box": figure(5), "white_box": figure(0)}}
    worst = {name: {threat: {**entry, "own": entry} for threat, entry in mine.items()} for name, mine in kept.items()}
    fired = {}
    for finding in checks.run({"rows": rows, "worst_case": worst}):
        fired.setdefault(finding["name"], []).append(finding["fired"])
    assert fired == {
        "static_rule": [False],
        "white_box_above_gray_box": [False],
        "one_step_beats_many": [False, True],  # the classifier alone, then the detached view
        "label_leaking": [True],
        "zero_gradients": [True],  # once a view, not once a row
        "few_images": [False],
    }
