"""gandefense.reproduce.adaptive: the honest table from real, small evaluations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gandefense import config
from gandefense.attacks.spec import AttackSpec, standard_specs
from gandefense.errors import UserError
from gandefense.evaluation import cost, evaluator, metrics
from gandefense.evaluation.settings import AttackEntry, WhiteBoxConfig, resolve
from gandefense.evaluation.settings import check as check_evaluation
from gandefense.reproduce import adaptive
from gandefense.reproduce.adaptive import AdaptiveConfig
from gandefense.weights_io import load_weights
from tests.evaluation.conftest import Networks, networks  # noqa: F401  (a fixture)

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "configs" / "reproduce" / "adaptive.yaml"
AUTOATTACK = ROOT / "configs" / "reproduce" / "adaptive-autoattack.yaml"


def test_a_paired_gain_counts_the_images_that_only_one_keeps() -> None:
    reference = torch.arange(100) < 40
    defended = (torch.arange(100) >= 5) & (torch.arange(100) < 50)  # loses 5, wins 10
    found = adaptive.paired(defended, reference)
    assert found["gain"] == pytest.approx(0.05)
    half = 1.96 * (15 - 25 / 100) ** 0.5 / 100
    assert found["ci95"] == pytest.approx([0.05 - half, 0.05 + half])
    assert (found["mcnemar"]["defended_only"], found["mcnemar"]["bare_only"]) == (10, 5)
    assert adaptive.paired(reference, reference)["ci95"] == [0, 0]


def test_a_classifier_alone_meets_the_same_attacks_through_its_one_view() -> None:
    strong = [AttackEntry("pgd", steps=20), AttackEntry("autoattack", survivors=True, views=["detached", "exact"])]
    asked = AdaptiveConfig(
        classifiers=["cifar10/adversarial-small"],
        defences=["cifar10/trn"],
        white_box=WhiteBoxConfig(["straight_through", "detached", "exact"], strong),
    )
    alone, defended = (adaptive.settings(asked, name) for name in ("cifar10/adversarial-small", "cifar10/trn"))
    assert (alone["classifier"], alone["restorers"]) == ("cifar10/adversarial-small", ["none"])
    assert alone["white_box"].views == ["exact"]
    assert [(entry.attack, entry.views) for entry in alone["white_box"].attacks] == [("pgd", None), ("autoattack", None)]
    assert (defended["classifier"], defended["restorers"]) == ("cifar10/classifier", ["cifar10/trn"])
    assert defended["white_box"].attacks == strong
    for each in (alone, defended):
        check_evaluation(resolve(None, each))


def test_the_shipped_config_attacks_as_it_should_and_quotes_with_sources() -> None:
    asked = config.load(AdaptiveConfig, SHIPPED)
    assert set(asked.white_box.views) == {"straight_through", "detached", "exact", "smooth"}
    assert {"autoattack", "apgd-dlr", "pgd"} == {entry.attack for entry in asked.white_box.attacks}
    assert (min(asked.curves.eps), max(asked.curves.eps)) == (0, 64 / 255)
    assert asked.data.limit >= 1000
    for quoted in asked.published:
        assert quoted.source and 0 < quoted.robust < (quoted.claimed or 1) and quoted.robust < quoted.clean < 1
    asked.classifiers, asked.defences = ["cifar10/classifier"], ["cifar10/trn"]
    asked.black_box.sources = ["cifar10/surrogate"]
    for name in ("cifar10/classifier", "cifar10/trn"):
        check_evaluation(resolve(None, adaptive.settings(asked, name)))


def test_the_shipped_autoattack_is_the_standard_one_but_for_its_queries() -> None:
    asked = config.load(AdaptiveConfig, AUTOATTACK)
    usual = config.load(AdaptiveConfig, SHIPPED)
    assert (asked.classifiers, asked.defences, asked.data.limit) == (usual.classifiers, usual.defences, usual.data.limit)
    standard = standard_specs(AttackSpec("autoattack", eps=8 / 255), classes=10)
    ours = [entry for entry in asked.white_box.attacks if entry.attack in {part.attack for part in standard}]
    assert [entry.attack for entry in ours] == [part.attack for part in standard]
    assert all(entry.survivors and entry.views == ["detached"] for entry in ours)
    for entry, part in zip(ours, standard, strict=True):
        assert entry.spec() == (part if part.attack != "square" else replace(part, queries=1000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defences": []}, "name at least one of each"),
        ({"defences": ["cifar10/nothing"]}, "cifar10/nothing"),
        ({"defences": ["jpeg"]}, "does not say which classifier it defends"),
        ({"classifiers": ["cifar10/gan"]}, "cifar10/gan is a 'gan', not a classifier"),
        ({"gray_box": []}, "the table needs an attack of each"),
        ({"white_box": WhiteBoxConfig(["exact"], [AttackEntry("pgd", views=[])])}, "the table needs an attack of each"),
    ],
)
def test_a_mistake_is_found_before_any_work(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    usual = {"classifiers": ["cifar10/classifier"], "defences": ["cifar10/trn"], "folder": str(tmp_path / "runs")}
    with pytest.raises(UserError, match=message):
        adaptive.check(AdaptiveConfig(**{**usual, **changes}))
    assert not (tmp_path / "runs").exists()


def test_the_tool_measures_compares_and_quotes(
    tool: Callable,
    networks: Networks,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(cost, "LEAST_REPEATS", 1)
    monkeypatch.setattr(metrics, "lpips_network", lambda *_: None)
    monkeypatch.setattr(evaluator.report, "write", lambda *_: None)  # each evaluation's own page, which takes seconds to draw
    words = ["adaptive", "data.limit=8", "batch_size=8", "device=cpu"]
    words += [f"classifiers=[{networks.classifier}]", f"defences=[{networks.trn}]", "gray_box=[{attack: fgsm, eps: 8/255}]"]
    words += ["black_box.sources=[]", "black_box.queries=[]", "white_box.views=[detached, exact]"]
    words += ["white_box.attacks=[{attack: pgd, steps: 1, eps: 8/255}, {attack: pgd, steps: 1, loss: margin, survivors: true}]"]
    words += ["curves.eps=[0, 64/255]", "curves.images=6", "curves.attack.steps=1"]
    words += [f"folder={tmp_path / 'runs'}", f"results={tmp_path / 'results'}"]
    status, _, err = tool("reproduce", *words)
    assert status == 0, err
    made = json.loads((tmp_path / "results" / "adaptive.json").read_text(encoding="utf-8"))
    alone, defended = made["defences"]
    assert (alone["name"], alone["alone"], defended["name"], defended["alone"]) == (
        networks.classifier,
        True,
        networks.trn,
        False,
    )
    assert defended["classifier"] == networks.classifier
    # The same classifier alone, measured beside the defence and by itself.
    assert defended["its_classifier"]["clean"] == {key: alone["clean"][key] for key in ("accuracy", "ci95")}
    assert defended["its_classifier"]["white_box"] == alone["white_box"]
    gain = defended["white_box"]["accuracy"] - alone["white_box"]["accuracy"]
    (against,) = defended["paired"].values()
    assert alone["paired"] == {} and list(defended["paired"]) == [networks.classifier]
    assert against["white_box"]["gain"] == pytest.approx(gain)
    assert against["white_box"]["mcnemar"] == defended["its_classifier"]["mcnemar"]
    assert against["clean"]["gain"] == pytest.approx(defended["clean"]["accuracy"] - alone["clean"]["accuracy"])
    assert set(defended["views"]["pgd-1, 8/255"]) == {"detached", "exact"}
    assert [(row["title"], row["view"]) for row in defended["survivors"]] == [
        ("pgd-1 margin", view) for view in ("detached", "exact")
    ]
    assert defended["survivors"][0]["tried"] >= defended["survivors"][1]["tried"] >= 8 * defended["survivors"][1]["accuracy"]
    assert defended["survivors"][1]["accuracy"] >= defended["white_box"]["accuracy"]
    assert [point["eps"] for point in defended["curves"][networks.trn]["points"]] == pytest.approx([0, 64 / 255])
    stands = [load_weights(path)[0] for path in (tmp_path / "runs").rglob("standing.safetensors")]
    accuracies = {name: flags.float().mean().item() for each in stands for name, flags in each.items()}
    assert accuracies[f"{networks.trn}/white_box"] == pytest.approx(defended["white_box"]["accuracy"])
    assert accuracies[f"{networks.trn}/clean"] == pytest.approx(defended["clean"]["accuracy"])
    assert accuracies["none/gray_box"] == pytest.approx(alone["gray_box"]["accuracy"])
    page = (tmp_path / "results" / "adaptive.md").read_text(encoding="utf-8")
    for heading in (
        "Held against",
        "Gained over",
        "View by view",
        "Attack after attack",
        "Accuracy against the budget",
        "Checks that fired",
        "as published",
    ):
        assert heading in page, heading
    assert "| DiffPure, WRN-28-10 | 89.0 % | 70.6 % | 46.9 % | DiffAttack |" in page
    assert f"| {networks.classifier} alone | pgd-1 | oblivious |" in page
    assert tool("reproduce", *words)[1].count("measured before") == 2


def test_an_attack_is_named_with_its_norm_and_its_restarts() -> None:
    row = {"title": "pgd-20", "attack": "pgd", "norm": "linf", "eps": 8 / 255, "restarts": 1}
    assert adaptive.named(row) == "pgd-20, 8/255"
    assert adaptive.named({**row, "restarts": 5}) == "pgd-20, 8/255, 5 restarts"
    assert adaptive.named({**row, "title": "pgd-l2-20", "attack": "pgd-l2", "norm": "l2", "eps": 0.5}) == "pgd-l2-20, 0.5"
