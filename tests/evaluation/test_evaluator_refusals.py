"""Every mistake in an evaluation's settings is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gandefense
from gandefense.errors import UserError
from tests.evaluation.conftest import Networks

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"restorers": ["cifar10/nonesuch"]}, "unknown network 'cifar10/nonesuch'"),
    ({"restorers": []}, "restorers is empty"),
    ({"restorers": ["none", "none"]}, "twice"),
    ({"classifier": "cifar10/nonesuch"}, "unknown network"),
    ({"gray_box": [{"attack": "pgd", "stepz": 3}]}, "stepz"),
    ({"white_box": {"views": ["exact"], "attacks": [{"attack": "pgd", "epsilon": 0.1}]}}, "epsilon"),
    ({"gray_box": [{"eps": 0.1}]}, "attack"),
    ({"gray_box": [{"attack": "cv"}]}, "unknown attack 'cv'"),
    ({"gray_box": [{"attack": "pgd", "loss": "joint"}]}, "list it under white_box.attacks"),
    ({"gray_box": [{"attack": "pgd", "views": ["exact"]}]}, "views are for white_box.attacks"),
    ({"black_box": {"queries": [{"attack": "pgd"}]}}, "pgd needs gradients; known: square, hopskipjump"),
    ({"black_box": {"sources": ["cifar10/nonesuch"]}}, "unknown network"),
    ({"curves": {"steps": [1, 2], "attack": {"attack": "fgsm"}}}, "fgsm takes one step"),
    ({"curves": {"eot": [1, 2], "attack": {"attack": "fab"}}}, "curves.eot: fab"),
    ({"black_box": {"transfer": [{"attack": "pgd", "survivors": True}]}}, "survivors is for"),
    ({"white_box": {"attacks": [{"attack": "pgd", "views": ["sideways"]}]}}, "no view of a defence"),
    ({"curves": {"eps": [2]}}, r"curves.eps: values must be in \[0, 1\]"),
    ({"curves": {"eps": [0.1], "attack": {"attack": "pgd-l2", "eps": 0.5}}}, "pgd-l2 has an L2 budget; take pgd"),
    ({"gray_box": [{"attack": "pgd-l2"}]}, "pgd-l2: give eps, the L2 length"),
    ({"curves": {"steps": [3, 3]}}, "curves.steps lists a value twice"),
    ({"curves": {"attack": {"attack": "square"}}}, "follows no gradient"),
    ({"resubmissions": 0}, "resubmissions must be at least 1"),
    ({"gray_box": [{"attack": "pgd", "eps": 8}]}, "8/255"),
    ({"gray_box": [{"attack": "pgd"}, {"attack": "pgd"}]}, "twice"),
    ({"white_box": {"views": ["oblivious"]}}, "no view of a defence"),
    ({"white_box": {"attacks": [{"attack": "gaussian[0,1]", "eps": 0.1}]}}, "list it under gray_box"),
    ({"false_positive_rates": [0]}, "between 0 and 1"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"limit": 0}, "data.limit must be at least 1"),
    ({"restorer": ["none"]}, "unknown key restorer"),
    ({"data": {"name": "mnist"}}, "unknown data set 'mnist'"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED)
def test_mistakes_are_refused_before_any_work(
    change: dict[str, Any], said: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gandefense.data.datasets.load", None)
    with pytest.raises(UserError, match=said) as caught:
        gandefense.evaluate(**{**settings, **change})
    assert "\n" not in str(caught.value)
    assert not Path(settings["output"]).exists()


def test_a_restorer_cannot_stand_in_for_a_classifier(settings: dict[str, Any], networks: Networks) -> None:
    with pytest.raises(UserError, match="not a classifier"):
        gandefense.evaluate(**settings | {"classifier": networks.trn})
    with pytest.raises(UserError, match="not a restorer"):
        gandefense.evaluate(**settings | {"restorers": [networks.classifier]})
