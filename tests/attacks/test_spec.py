"""What an attack may be asked to do, and what it is called."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from gandefense.attacks.noise import NOISES
from gandefense.attacks.spec import (
    BELONGS,
    EUCLIDEAN,
    NAMES,
    STEPWISE,
    AttackSpec,
    check_classes,
    check_spec,
    family,
    standard_specs,
)
from gandefense.attacks.suite import attack, standard_suite
from gandefense.errors import UserError

OTHERS = {"steps": 7, "step_size": 0.01, "restarts": 2, "loss": "margin", "eot": 2, "queries": 7}  # none a default


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (AttackSpec("fgms"), "unknown attack 'fgms'; known: fgsm, "),
        (AttackSpec("pgd", eps=8), "eps is in pixel units"),
        (AttackSpec("pgd", eps=-0.1), "eps is in pixel units"),
        (AttackSpec("pgd", eps=float("nan")), "eps is in pixel units"),
        (AttackSpec("pgd-l2", eps=-0.1), "eps is the L2 length"),
        (AttackSpec("pgd-l2", eps=float("inf")), "eps is the L2 length"),
        (AttackSpec("pgd", step_size=0.0), "step_size must be positive, got 0.0"),
        (AttackSpec("pgd", step_size=float("nan")), "step_size must be positive"),
        (AttackSpec("pgd", steps=0), "steps and restarts must be at least 1"),
        (AttackSpec("pgd", restarts=0), "steps and restarts must be at least 1"),
        (AttackSpec("pgd", eot=0), "eot and queries must be at least 1"),
        (AttackSpec("square", queries=0), "eot and queries must be at least 1"),
        (AttackSpec("pgd", labels="random"), "labels must be true, predicted or random_target, got 'random'"),
        (AttackSpec("pgd", loss="dlr"), "loss must be ce, margin or joint, got 'dlr'"),
        (
            AttackSpec("apgd-ce", loss="margin"),
            "apgd-ce: loss=margin has no effect; loss is for fgsm, ffgsm, bim, pgd, mim, pgd-coarse, pgd-l2$",
        ),
        (AttackSpec("square", eot=2), "square: eot=2 has no effect; eot is for fgsm, .*, apgd-ce, "),
        (AttackSpec("square", steps=10), "square: steps=10 has no effect; steps is for fgsm, .*, cw$"),
        (AttackSpec("pgd", queries=10), "pgd: queries=10 has no effect; queries is for square, hopskipjump, autoattack$"),
        (AttackSpec("deepfool", restarts=2), "deepfool: restarts=2 has no effect"),
        (AttackSpec("apgd-t", step_size=0.01), "apgd-t: step_size=0.01 has no effect; step_size is for fgsm, "),
        (AttackSpec("apgd-ce", labels="random_target"), "apgd-ce: labels=random_target is for fgsm, ffgsm, bim, pgd, mim"),
        (AttackSpec("pgd", loss="joint", labels="random_target"), "labels=random_target does not go with it"),
    ],
)
def test_bad_specs_are_refused(spec: AttackSpec, message: str) -> None:
    images, labels = torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    for check in (lambda: check_spec(spec), lambda: attack(nn.Flatten(), images, labels, spec)):
        with pytest.raises(UserError, match=message) as error:
            check()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*NAMES, *NOISES])
@pytest.mark.parametrize("setting", OTHERS)
def test_a_setting_is_taken_where_it_belongs_and_refused_elsewhere(name: str, setting: str) -> None:
    check_spec(AttackSpec(name))
    spec = AttackSpec(name, **{setting: OTHERS[setting]})
    if name in BELONGS[setting]:
        check_spec(spec)
    else:
        with pytest.raises(UserError, match=f"{setting}=.* has no effect"):
            check_spec(spec)


@pytest.mark.parametrize(
    ("spec", "title", "norm"),
    [
        (AttackSpec("pgd", steps=40), "pgd-40", "linf"),
        (AttackSpec("pgd", loss="margin"), "pgd-20 margin", "linf"),
        (AttackSpec("pgd", eot=10), "pgd-20 eot-10", "linf"),
        (AttackSpec("bim", steps=5, loss="joint", eot=3, labels="predicted"), "bim-5 joint eot-3 (predicted)", "linf"),
        (AttackSpec("fgsm"), "fgsm", "linf"),
        (AttackSpec("pgd-l2", eps=0.5, steps=40), "pgd-l2-40", "l2"),
        (AttackSpec("fgsm", loss="margin"), "fgsm margin", "linf"),
        (AttackSpec("mim", steps=10, labels="predicted"), "mim-10 (predicted)", "linf"),
        (AttackSpec("apgd-ce"), "apgd-ce-100", "linf"),
        (AttackSpec("apgd-t"), "apgd-t-100", "linf"),
        (AttackSpec("apgd-dlr", steps=20, eot=5), "apgd-dlr-20 eot-5", "linf"),
        (AttackSpec("fab"), "fab-100", "linf"),
        (AttackSpec("fab-t", steps=10), "fab-t-10", "linf"),
        (AttackSpec("square"), "square-1000", "linf"),
        (AttackSpec("square", queries=50), "square-50", "linf"),
        (AttackSpec("hopskipjump"), "hopskipjump-1000", "linf"),
        (AttackSpec("deepfool"), "deepfool-50", "linf"),
        (AttackSpec("cw"), "cw-100", "linf"),
        (AttackSpec("universal"), "universal-100", "linf"),
        (AttackSpec("autoattack"), "autoattack", "linf"),
        (AttackSpec("autoattack", steps=20), "autoattack-20", "linf"),
        (AttackSpec("autoattack", steps=20, queries=1000), "autoattack-20 queries-1000", "linf"),
        (AttackSpec("gaussian[-1,1]", eps=0.2), "gaussian[-1,1]", "noise"),
    ],
)
def test_titles_and_norms(spec: AttackSpec, title: str, norm: str) -> None:
    assert (spec.title(), spec.norm) == (title, norm)


def test_usual_numbers_stand_where_none_are_given() -> None:
    usual = {name: (AttackSpec(name).steps, AttackSpec(name).queries) for name in NAMES}
    assert {name: numbers for name, numbers in usual.items() if numbers != (20, 1000)} == {
        **dict.fromkeys(("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "cw", "universal"), (100, 1000)),
        "deepfool": (50, 1000),
        "autoattack": (100, 5000),
    }
    assert AttackSpec("pgd") == AttackSpec("pgd", steps=20, queries=1000)
    assert hash(AttackSpec("pgd")) == hash(AttackSpec("pgd", steps=20))
    assert replace(AttackSpec("apgd-ce"), eot=3).steps == 100


def test_families() -> None:
    families = {name: AttackSpec(name).family for name in (*NAMES, *NOISES)}
    assert {name for name, kind in families.items() if kind == "query"} == {"square", "hopskipjump"}
    assert {name for name, kind in families.items() if kind == "noise"} == set(NOISES)
    assert set(families.values()) == {"gradient", "query", "noise"}
    assert family("autoattack") == "gradient"
    with pytest.raises(UserError, match="unknown attack 'squares'"):
        family("squares")


def test_step_sizes() -> None:
    assert AttackSpec("pgd", eps=0.04).step() == pytest.approx(0.01)
    assert AttackSpec("pgd", eps=0.04, step_size=0.002).step() == 0.002
    assert AttackSpec("universal", eps=0.04).step() == pytest.approx(0.004)
    assert AttackSpec("universal", eps=0.04, steps=4).step() == pytest.approx(0.01), "four steps reach the edge"
    assert AttackSpec("pgd-l2", eps=2.0).step() == pytest.approx(0.5)
    assert AttackSpec("pgd-coarse", eps=0.04).step() == pytest.approx(0.01)
    assert AttackSpec("pgd-coarse", eps=0.04, steps=2).step() == pytest.approx(0.02), "two steps reach the edge"
    others = [name for name in (*NAMES, *NOISES) if name not in (*STEPWISE, *EUCLIDEAN, "universal")]
    assert [AttackSpec(name).step() for name in others] == [None] * (len(NAMES) - 8 + len(NOISES))


@pytest.mark.parametrize(
    ("classes", "suite"),
    [
        (2, ["apgd-ce", "fab", "square", "pgd margin"]),
        (3, ["apgd-ce", "fab", "square", "pgd margin"]),
        (4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
        (10, ["apgd-ce", "apgd-t", "fab-t", "square"]),
    ],
)
def test_the_standard_suite_goes_by_the_number_of_classes(classes: int, suite: list[str]) -> None:
    assert standard_suite(classes) == suite
    parts = standard_specs(AttackSpec("autoattack", eps=0.1, steps=30, restarts=2, eot=3, queries=40), classes)
    for part in parts:
        check_spec(part)
        check_classes(part.attack, classes)
        assert (part.eps, part.restarts) == (0.1, 2)
        assert part.steps == (20 if part.attack == "square" else 30)
        assert part.queries == (40 if part.attack == "square" else 1000)
        assert part.eot == (3 if part.attack in ("apgd-ce", "apgd-t", "pgd") else 1)


@pytest.mark.parametrize(
    ("name", "least", "instead"), [("apgd-dlr", 3, "apgd-ce"), ("apgd-t", 4, "apgd-ce"), ("fab-t", 4, "fab")]
)
def test_attacks_that_need_more_classes_say_what_to_use(name: str, least: int, instead: str) -> None:
    check_classes(name, least)
    message = f"{name}: needs at least {least} classes, the network has {least - 1}; use {instead}"
    with pytest.raises(UserError, match=message):
        check_classes(name, least - 1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, least - 1))
    with pytest.raises(UserError, match=message):
        attack(network, torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), AttackSpec(name))
