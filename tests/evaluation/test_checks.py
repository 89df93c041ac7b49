"""Every check, firing and not firing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gandefense.evaluation import checks
from gandefense.evaluation.metrics import wilson_interval
from tests.helpers import results as made


def figure(right: int, count: int = 1000, title: str = "") -> dict[str, Any]:
    return {"accuracy": right / count, "ci95": list(wilson_interval(right, count)), "title": title, "n": count}


def with_p(right: int, p: float) -> dict[str, Any]:
    return {**figure(right), "mcnemar": {"defended_only": 1, "bare_only": 0, "p": p}}


def tried(accuracy: float, again: float, **more: Any) -> dict[str, Any]:
    base = {"restorer": "jpeg", "threat": "white_box", "view": "exact", "attack": "pgd", "title": "pgd-20", "accuracy": accuracy}
    return {**base, "resubmitted_accuracy": again, "resubmissions": 10, "eot_samples": 1, **more}


FOUND = [
    (
        checks.static_rule("trn", figure(12), figure(8)),
        True,
        "1.2 % under white_box where the classifier alone keeps 0.8 %: no gain that the intervals support",
    ),
    (checks.static_rule("trn", figure(300), figure(8)), False, "a gain that the intervals support"),
    (checks.static_rule("trn", figure(0), figure(300)), True, "no gain that the intervals support"),
    (checks.static_rule("trn", None, figure(8)), False, "not measured"),
    # McNemar's test sees differences that the intervals of either figure hide, and the other way round
    (
        checks.static_rule("trn", with_p(18, 0.002), figure(8)),
        False,
        "(+1.0 points, p = 0.002): a gain that McNemar's test supports",
    ),
    (
        checks.static_rule("trn", with_p(11, 0.61), figure(8)),
        True,
        "(+0.3 points, p = 0.61): no gain that McNemar's test supports",
    ),
    (checks.static_rule("trn", with_p(8, 0.001), figure(40)), True, "(−3.2 points, p = 0.001): no gain"),
    (checks.one_step_beats_many("x", figure(300, title="fgsm"), figure(500, title="pgd-20")), True, "masked gradients"),
    (checks.one_step_beats_many("x", figure(500), figure(300)), False, "as they should"),
    (checks.one_step_beats_many("x", figure(490), figure(500)), False, "as they should"),
    (checks.white_above_gray("trn", figure(501), figure(500)), True, "no bound"),
    (checks.white_above_gray("trn", figure(400), figure(500)), False, "helps the attacker"),
    (checks.white_above_gray("trn", figure(500), figure(500)), False, "made no difference"),
    (checks.white_above_gray("trn", figure(400), None), False, "no worst case of the budget"),
    (checks.black_beats_white("trn", figure(100), figure(200)), True, "gradients are masked"),
    (checks.black_beats_white("trn", figure(198), figure(200)), False, "no more harm"),
    (checks.black_beats_white("trn", figure(400), figure(200)), False, "keeps 40.0 % under the black_box attacks and 20.0 %"),
    (checks.black_beats_white("trn", figure(400), None), False, "no worst case of the budget"),
    (checks.suspiciously_high("trn", figure(151), adversarial=False), True, "15.1 % in its worst white_box case: suspiciously"),
    (checks.suspiciously_high("trn", figure(150), adversarial=False), False, "not suspiciously high"),
    (checks.suspiciously_high("trn", figure(500), adversarial=True), False, "trained adversarially"),
    (checks.suspiciously_high("trn", {**figure(500), "eps": 1 / 255}, adversarial=False), False, "1/255, is too small"),
    (checks.suspiciously_high("trn", {**figure(500), "eps": 8 / 255}, adversarial=False), True, "masked"),
    (checks.randomised("trn", [], random=False), False, "taken to be deterministic"),
    (checks.randomised("jpeg", [], random=True), True, "no white_box attack averaged gradients over draws (EOT)"),
    (checks.randomised("jpeg", [tried(0.5, 0.2)], random=True), True, "50.0 % under pgd-20 (white_box, exact) become 20.0 %"),
    (
        checks.randomised("jpeg", [tried(0.5, 0.4), tried(0.6, 0.1, title="fgsm"), tried(0.9, 0, attack="none")], random=True),
        True,
        "where the worst of 10 submissions counts, 60.0 % under fgsm",
    ),
    (checks.randomised("jpeg", [tried(0.5, 0.2, eot_samples=20)], random=True), True, "over up to 20 draws (EOT)"),
    (checks.randomised("jpeg", [tried(0.5, 0.2, eot_samples=20, threat="gray_box")], random=True), True, "no white_box attack"),
    (checks.randomised("jpeg", [tried(0.5, 0.2, restorer="trn", eot_samples=9)], random=True), True, "no white_box attack"),
    (checks.probabilities("net", are=True), True, "net gives what look like probabilities"),
    (checks.probabilities("net", are=False), False, "net gives logits"),
    (checks.other_classifier("trn", "mine", "theirs"), True, "trn was trained for theirs and stands before mine"),
    (checks.other_classifier("trn", "mine", None), False, "trn stands before mine, for which it was trained"),
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
        "suspiciously_high": [False],
        "one_step_beats_many": [False, True],  # the classifier alone, then the detached view
        "label_leaking": [True],
        "zero_gradients": [True],  # once a view, not once a row
        "few_images": [False],
    }


def test_who_knows_the_defence_is_not_compared_with_who_may_change_more() -> None:
    """A larger budget does more harm, whoever has it."""
    rows = [row("trn", threat, "pgd", 300, undefended=0) for threat in ("gray_box", "black_box", "white_box")]

    def fired(white: float) -> dict[str, bool]:
        cases = {"gray_box": (50, 0.3), "black_box": (50, 0.3), "white_box": (300, white)}
        worst = {threat: {**figure(right), "own": {**figure(right), "eps": eps}} for threat, (right, eps) in cases.items()}
        found = checks.run({"rows": rows, "worst_case": {"trn": worst, "none": worst}})
        return {entry["name"]: entry["fired"] for entry in found if "box" in entry["name"]}

    for white in (0.3, 0.4):  # who knows the defence and may change more must not do less harm
        assert fired(white) == {"white_box_above_gray_box": True, "black_box_beats_white_box": True}
    assert fired(8 / 255) == {"white_box_above_gray_box": False, "black_box_beats_white_box": False}


def _names(findings: list[dict[str, Any]]) -> list[str]:
    return [finding["name"] for finding in findings]


def test_run_on_a_complete_dictionary() -> None:
    results = made.complete()
    findings = results["checks"]
    by_name: dict[str, list[bool]] = {}
    for finding in findings:
        by_name.setdefault(finding["name"], []).append(finding["fired"])
    assert by_name == {
        "static_rule": [True, True, False],
        "white_box_above_gray_box": [False] * 3,
        "black_box_beats_white_box": [False] * 3,
        "suspiciously_high": [False] * 3,
        "randomised": [False, False, True],
        "probabilities": [False],
        "one_step_beats_many": [False],
        "label_leaking": [False] * 3,
        "larger_eps": [False, False, False, True],
        "huge_eps": [False, False, False, True],
        "still_falling": [False, False, False, True, False],
        "zero_gradients": [False, False, True] * 3,
        "few_images": [False],
    }


def test_what_results_lack_is_not_checked() -> None:
    results = made.complete()
    old = {"rows": results["rows"], "worst_case": results["worst_case"]}
    new = {"randomised", "probabilities", "larger_eps", "huge_eps", "still_falling"}
    assert set(_names(checks.run(old))) == set(_names(results["checks"])) - new
    for row in old["rows"]:
        for key in ("loss", "queries", "survivors", "resubmissions", "resubmitted_accuracy", "mcnemar"):
            del row[key]
    assert len(checks.run(old)) > 10


def test_an_adversarially_trained_classifier_is_not_suspicious() -> None:
    results = made.complete()
    results["worst_case"][made.TRN]["white_box"]["accuracy"] = 0.4
    fired = [[finding["fired"] for finding in checks.run(results) if finding["name"] == "suspiciously_high"]]
    results["classifier"]["adversarial"] = True
    fired += [[finding["fired"] for finding in checks.run(results) if finding["name"] == "suspiciously_high"]]
    assert fired == [[True, False, False], [False, False, False]]


@pytest.mark.parametrize("more", [{"survivors": True}, {"loss": "joint"}])
def test_rows_that_are_no_fair_comparison_are_left_out(more: dict[str, Any]) -> None:
    rows = [
        row("trn", "gray_box", "none", 920, undefended=930),
        row("trn", "white_box", "fgsm", 100, view="detached"),
        row("trn", "white_box", "pgd", 400, view="detached"),
    ]
    worst = {"trn": {}, "none": {}}
    assert "one_step_beats_many" in _names(checks.run({"rows": rows, "worst_case": worst}))
    for i in (1, 2):
        less = [{**entry, **more} if j == i else entry for j, entry in enumerate(rows)]
        assert "one_step_beats_many" not in _names(checks.run({"rows": less, "worst_case": worst}))


def test_a_control_on_survivors_is_compared_with_nothing() -> None:
    rows = [row("trn", "gray_box", "none", 920), row("trn", "gray_box", "pgd", 700)]
    control = row("trn", "gray_box", "pgd", 500, labels="predicted")
    worst = {"trn": {}, "none": {}}
    assert "label_leaking" in _names(checks.run({"rows": [*rows, control], "worst_case": worst}))
    for change in ({"survivors": True}, {"loss": "margin"}, {"eot_samples": 5}):
        assert "label_leaking" not in _names(checks.run({"rows": [*rows, {**control, **change}], "worst_case": worst}))


def test_a_gradient_that_is_no_number_counts_as_none() -> None:
    class Root(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.square().sum((2, 3)).sqrt()

    assert checks.zero_gradient(Root(), torch.zeros(2, 2, 4, 4), torch.tensor([0, 1])).tolist() == [1, 1]
