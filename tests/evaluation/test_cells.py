"""Which cells an evaluation has, in which order, and what a cell's records are called."""

from __future__ import annotations

import pytest

from gandefense import config as configuration
from gandefense.attacks.suite import AttackSpec
from gandefense.evaluation.cells import NO_RESTORER, Cell, curve_cells, earlier, table_cells
from gandefense.evaluation.settings import EvaluateConfig

CONFIG = configuration.build(
    EvaluateConfig,
    {
        "restorers": ["trn"],
        "gray_box": [{"attack": "pgd"}, {"attack": "gaussian[-1,1]", "eps": 0.2}],
        "black_box": {
            "sources": ["other"],
            "transfer": [{"attack": "fgsm"}],
            "queries": [{"attack": "square", "survivors": True}],
        },
        "white_box": {
            "views": ["straight_through", "detached"],
            "attacks": [
                {"attack": "pgd"},
                {"attack": "pgd", "eot": 5},
                {"attack": "pgd", "loss": "joint", "views": ["detached"]},
                {"attack": "apgd-ce", "survivors": True, "views": ["exact"]},
            ],
        },
        "curves": {"eps": [0, 0.1], "steps": [1], "eot": [1, 4]},
    },
)


def test_order_and_views() -> None:
    cells = table_cells(CONFIG, "trn", randomised=True)
    named = [(cell.threat, cell.view, cell.title) for cell in cells]
    assert named == [
        ("gray_box", "oblivious", "clean"),
        ("gray_box", "oblivious", AttackSpec("pgd").title()),
        ("gray_box", "oblivious", "gaussian[-1,1]"),
        ("black_box", "transfer: other", "fgsm"),
        ("black_box", "query", AttackSpec("square").title()),
        ("white_box", "straight_through", AttackSpec("pgd").title()),
        ("white_box", "detached", AttackSpec("pgd").title()),
        ("white_box", "straight_through", AttackSpec("pgd", eot=5).title()),
        ("white_box", "detached", AttackSpec("pgd", eot=5).title()),
        ("white_box", "detached", AttackSpec("pgd", loss="joint").title()),
        ("white_box", "exact", AttackSpec("apgd-ce").title()),
    ]
    assert len({cell.key for cell in cells}) == len(cells)


def test_averaging_over_nothing_random_is_left_out() -> None:
    cells = table_cells(CONFIG, "trn", randomised=False)
    assert {cell.spec.eot for cell in cells if cell.spec} == {1}
    assert len(cells) == len(table_cells(CONFIG, "trn", randomised=True)) - 2
    assert set(curve_cells(CONFIG, "trn", randomised=False)) == {"eps", "steps"}
    assert [cell.spec.eot for cell in curve_cells(CONFIG, "trn", randomised=True)["eot"]] == [1, 4]


def test_what_survivors_have_survived() -> None:
    cells = table_cells(CONFIG, "trn", randomised=False)
    last = cells[-1]
    assert last.survivors
    before = earlier(last, cells)
    assert {cell.threat for cell in before} == {"gray_box", "black_box", "white_box"}
    assert not any(cell.spec and cell.spec.norm == "noise" for cell in before), "noise is no adversary"
    square = next(cell for cell in cells if cell.view == "query")
    assert [cell.title for cell in earlier(square, cells)] == ["clean", "fgsm"], "black_box attackers made no gray_box attack"


def test_what_survivors_of_another_norm_have_survived() -> None:
    linf, ball = AttackSpec("pgd"), AttackSpec("pgd-l2", eps=0.5)
    cells = [Cell("trn", "gray_box", "oblivious", spec) for spec in (None, linf, ball)]
    last = [Cell("trn", "gray_box", "oblivious", AttackSpec(name, eps=1.0), survivors=True) for name in ("fgsm", "pgd-l2")]
    assert [cell.title for cell in earlier(last[0], [*cells, *last])] == ["clean", "pgd-20"]
    assert [cell.title for cell in earlier(last[1], [*cells, *last])] == ["clean", "pgd-l2-20"]
    noise = Cell("trn", "gray_box", "oblivious", AttackSpec("gaussian[-1,1]", eps=0.2), survivors=True)
    assert [cell.title for cell in earlier(noise, [*cells, noise])] == ["clean", "pgd-20"]


@pytest.mark.parametrize(
    ("cell", "same"),
    [
        (Cell("trn", "white_box", "exact", AttackSpec("pgd")), "none"),
        (Cell("trn", "gray_box", "oblivious", AttackSpec("pgd")), "none"),
        (Cell("trn", "white_box", "exact", AttackSpec("pgd", loss="joint", eot=7)), "none"),
        (Cell("trn", "black_box", "transfer: other", AttackSpec("pgd")), "transfer"),
        (Cell("trn", "white_box", "exact", AttackSpec("pgd"), survivors=True), "survivors"),
    ],
)
def test_the_classifier_alone_meets_each_attack_once(cell: Cell, same: str) -> None:
    bare = cell.bare()
    assert bare.restorer == NO_RESTORER and bare.bare() == bare
    shared = Cell(NO_RESTORER, "gray_box", "oblivious", AttackSpec("pgd"))
    assert (bare.key == shared.key) == (same == "none")
    assert bare.spec.loss == "ce" and bare.spec.eot == 1
    assert cell.bare(randomised=True).spec.eot == cell.spec.eot, "a random classifier is averaged over, too"


def test_survivors_of_a_larger_budget_are_not_survivors() -> None:
    wide, same = (Cell("trn", "gray_box", "oblivious", AttackSpec("pgd", eps=eps)) for eps in (16 / 255, 8 / 255))
    last = Cell("trn", "gray_box", "oblivious", AttackSpec("apgd-ce", eps=8 / 255), survivors=True)
    assert earlier(last, [wide, same, last]) == [same]
