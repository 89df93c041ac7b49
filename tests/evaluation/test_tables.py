"""Tables from hand-made flags: rows, worst case, detection, restoration."""

from __future__ import annotations

import json
import math

import pytest
import torch

from gandefense.attacks.suite import AttackSpec
from gandefense.evaluation import tables
from gandefense.evaluation.tables import Cell, Outcome

PGD, FGSM, NOISE = AttackSpec("pgd"), AttackSpec("fgsm"), AttackSpec("gaussian[-1,1]", eps=0.2)
BALL = AttackSpec("pgd-l2", eps=0.5)


def flags(word: str) -> torch.Tensor:
    """ "1101" as bools."""
    return torch.tensor([letter == "1" for letter in word])


def outcome(right: str, undefended: str, **more: object) -> Outcome:
    changed = more.pop("changed", flags("1" * len(right)))
    return Outcome(flags(right), flags(undefended), flags(undefended), changed, **more)


OUTCOMES = {
    Cell("trn", "gray_box", "oblivious", None): outcome("11110", "11111"),
    Cell("trn", "gray_box", "oblivious", PGD): outcome("11011", "00001"),
    Cell("trn", "gray_box", "oblivious", FGSM): outcome("01111", "01001"),
    Cell("trn", "gray_box", "oblivious", NOISE): outcome("00000", "00000"),
    Cell("trn", "white_box", "detached", PGD): outcome("10100", "00001"),
    Cell("trn", "white_box", "exact", PGD): outcome("10011", "00001"),
}


def test_an_l2_budget_is_another_one_and_no_part_of_worst_cases() -> None:
    ball = {Cell("trn", "gray_box", "oblivious", BALL): outcome("00000", "00000")}
    worst, before = tables.worst_cases({**OUTCOMES, **ball})["trn"]["gray_box"], tables.worst_cases(OUTCOMES)["trn"]["gray_box"]
    assert worst == {**before, "left_out": ["gaussian[-1,1] 0.2", "pgd-l2-20 0.5"]}
    clean = {cell: one for cell, one in OUTCOMES.items() if cell.spec is None}
    assert tables.worst_cases({**clean, **ball}) == {}, "there is nothing of a threat left"


def test_worst_case_is_per_image_clean_included_noise_left_out() -> None:
    worst = tables.worst_cases(OUTCOMES)
    assert worst["trn"]["gray_box"]["accuracy"] == 2 / 5  # 01010
    assert worst["trn"]["gray_box"]["attacks"] == ["pgd-20", "fgsm"]
    assert worst["trn"]["gray_box"]["left_out"] == ["gaussian[-1,1] 0.2"]
    assert worst["trn"]["gray_box"]["own"]["accuracy"] == 2 / 5
    assert worst["trn"]["white_box"]["own"]["accuracy"] == 1 / 5  # 10000
    assert worst["trn"]["white_box"]["own"]["eps"] == 8 / 255
    assert worst["trn"]["white_box"]["accuracy"] == 0, "who knows the defence may also ignore it"
    assert worst["trn"]["white_box"]["attacks"] == ["pgd-20", "fgsm", "detached: pgd-20", "exact: pgd-20"]
    assert worst["none"]["gray_box"]["accuracy"] == 1 / 5
    assert worst["none"]["white_box"] == {**worst["none"]["white_box"], "accuracy": 1 / 5, "attacks": ["pgd-20", "fgsm"]}


def test_attacks_beyond_a_threats_own_budget_are_no_part_of_its_worst_case() -> None:
    """Who may change pixels by 8/255 is not charged with what somebody else did with ten times as much."""
    large = AttackSpec("fgsm", eps=0.3)
    cells = {**OUTCOMES, Cell("trn", "gray_box", "oblivious", large): outcome("00000", "00000")}
    worst, before = tables.worst_cases(cells)["trn"], tables.worst_cases(OUTCOMES)["trn"]
    assert worst["white_box"] == {**before["white_box"], "left_out": ["gaussian[-1,1] 0.2", "fgsm 0.3"]}
    assert (worst["gray_box"]["accuracy"], worst["gray_box"]["eps"]) == (0, 0.3), "its own attacks all count"
    stands = tables.standing(cells)
    assert torch.equal(stands["trn/white_box"], tables.standing(OUTCOMES)["trn/white_box"]) and not stands["trn/gray_box"].any()


def test_survivors_of_other_threats_are_not_a_threats_own() -> None:
    cells = dict(OUTCOMES)
    cells[Cell("trn", "white_box", "exact", FGSM, survivors=True)] = outcome("00000", "00000")
    worst = tables.worst_cases(cells)["trn"]["white_box"]
    assert worst["accuracy"] == 0 and worst["own"]["accuracy"] == 1 / 5, "what gray_box broke is not white_box's harm"
    only = {cell: value for cell, value in cells.items() if cell.threat == "gray_box" or cell.survivors}
    assert tables.worst_cases(only)["trn"]["white_box"]["own"] is None


def test_a_threat_of_noise_alone_has_no_worst_case() -> None:
    some = {cell: value for cell, value in OUTCOMES.items() if not cell.adversarial}
    assert tables.worst_cases(some) == {}


def test_rows_say_everything_about_the_attack() -> None:
    table = {(row["view"], row["title"]): row for row in tables.rows(OUTCOMES, seed=7)}
    row = table["detached", "pgd-20"]
    wanted = {
        "restorer": "trn",
        "threat": "white_box",
        "attack": "pgd",
        "norm": "linf",
        "eps": 8 / 255,
        "steps": 20,
        "restarts": 1,
    }
    wanted |= {"eot_samples": 1, "labels": "true", "n": 5, "seed": 7, "accuracy": 2 / 5, "undefended_accuracy": 1 / 5}
    assert {key: row[key] for key in wanted} == wanted
    clean = table["oblivious", "clean"]
    assert (clean["attack"], clean["eps"], clean["steps"], clean["threat"]) == ("none", 0, 0, "gray_box")
    assert table["oblivious", "fgsm"]["steps"] == 1
    assert table["oblivious", "gaussian[-1,1]"]["norm"] == "noise" and table["oblivious", "gaussian[-1,1]"]["steps"] == 0


def detected(count: int) -> dict[str, object]:
    """Ten clean scores 0 … 9, `count` of ten attacked images changed and broken, all those at score 8.5."""
    hit = torch.arange(10) < count
    clean = Outcome(flags("1" * 10), flags("1" * 10), flags("1" * 10), flags("0" * 10), score=torch.arange(10.0))
    attacked = Outcome(flags("1" * 5 + "0" * 5), ~hit, ~hit, flags("1" * 10), score=torch.where(hit, 8.5, 0.0))
    cells = {Cell("trn", "gray_box", "oblivious", None): clean, Cell("trn", "gray_box", "oblivious", PGD): attacked}
    return tables.detection(cells, {"trn": torch.arange(10.0)}, [0.1])["trn"]


def test_detection_of_known_scores() -> None:
    found = detected(10)
    assert found["thresholds"] == {"0.1": 8}
    entry = found["attacks"][0]
    assert entry["n"] == 10
    assert entry["auroc"] == pytest.approx(0.9)
    assert entry["tpr"] == {"0.1": 1}
    assert found["false_positive_rate"] == {"0.1": pytest.approx(0.1)}
    assert found["n_clean"] == 10 and found["validation_n"] == 10


def test_detection_on_few_images_is_null() -> None:
    entry = detected(9)["attacks"][0]
    assert (entry["n"], entry["auroc"], entry["tpr"]) == (9, None, {"0.1": None})


def test_only_changed_and_successful_attacks_count_in_detection() -> None:
    score = torch.cat([torch.zeros(20), torch.ones(20)])
    success, changed = torch.arange(40) >= 15, torch.arange(40) < 30
    clean = Outcome(*[torch.ones(40, dtype=torch.bool)] * 3, ~changed & changed, score=torch.zeros(40))
    gray = Outcome(torch.ones(40, dtype=torch.bool), ~success, ~success, changed, score=score)
    white = Outcome(~success, torch.ones(40, dtype=torch.bool), torch.ones(40, dtype=torch.bool), changed, score=score)
    cells = {
        Cell("trn", "gray_box", "oblivious", None): clean,
        Cell("trn", "gray_box", "oblivious", PGD): gray,  # success: the classifier alone is wrong
        Cell("trn", "white_box", "exact", PGD): white,  # success: the whole defence is wrong
    }
    entries = tables.detection(cells, {"trn": torch.zeros(40)}, [0.05])["trn"]["attacks"]
    assert [entry["n"] for entry in entries] == [15, 15]
    assert [entry["tpr"]["0.05"] for entry in entries] == [pytest.approx(10 / 15)] * 2


def test_four_ways() -> None:
    clean = Outcome(flags("1110"), flags("1111"), flags("1111"), flags("0000"), score=torch.tensor([0.0, 0, 0, 2]))
    attacked = Outcome(flags("1100"), flags("0000"), flags("1000"), flags("1111"), score=torch.tensor([0.0, 0, 2, 0]))
    cells = {Cell("trn", "gray_box", "oblivious", None): clean, Cell("trn", "white_box", "exact", PGD): attacked}
    found = tables.detection(cells, {"trn": torch.ones(4)}, [0.05])["trn"]
    assert found["false_positive_rate"] == {"0.05": 0.25}
    assert found["clean_accuracy"]["0.05"] == {"none": 1, "detector": 0.75, "restorer": 0.75, "both": 0.75}
    assert found["attacks"][0]["accuracy"]["0.05"] == {"none": 0.25, "detector": 0.5, "restorer": 0.5, "both": 0.75}


def test_a_flagged_image_that_the_attack_left_alone_is_a_false_alarm() -> None:
    clean = Outcome(flags("11"), flags("11"), flags("11"), flags("00"), score=torch.tensor([0.0, 0]))
    left = Outcome(flags("11"), flags("11"), flags("11"), flags("01"), score=torch.tensor([2.0, 2]))
    cells = {Cell("trn", "gray_box", "oblivious", None): clean, Cell("trn", "gray_box", "oblivious", PGD): left}
    entry = tables.detection(cells, {"trn": torch.ones(10)}, [0.1])["trn"]["attacks"][0]
    assert entry["accuracy"]["0.1"] == {"none": 1, "detector": 0.5, "restorer": 1, "both": 0.5}


def test_restoration_is_averaged_over_changed_images() -> None:
    values = {"psnr": torch.tensor([30.0, 80.0]), "ssim": torch.tensor([0.9, 1.0])}
    attacked = outcome("11", "11", changed=flags("10"), attacked=values, restored=values)
    cells = {
        Cell("trn", "gray_box", "oblivious", None): outcome("11", "11", changed=flags("00"), attacked=values, restored=values),
        Cell("trn", "gray_box", "oblivious", PGD): attacked,
    }
    clean, pgd = tables.restoration(cells, lpips=False)["trn"]
    assert (clean["n"], clean["attacked"], clean["restored"]["psnr"]) == (2, None, 55)
    assert pgd["n"] == 1 and pgd["attacked"]["psnr"] == 30 and pgd["restored"]["ssim"] == pytest.approx(0.9)
    assert pgd["restored"]["lpips"] == "missing"


def test_restoration_of_unchanged_images_is_null() -> None:
    values = {"psnr": torch.tensor([30.0]), "ssim": torch.tensor([0.9]), "lpips": torch.tensor([0.1])}
    cells = {Cell("trn", "gray_box", "oblivious", PGD): outcome("1", "1", changed=flags("0"), attacked=values, restored=values)}
    assert tables.restoration(cells, lpips=True)["trn"][0]["restored"] == {"psnr": None, "ssim": None, "lpips": None}


def test_json_ready_leaves_no_nan() -> None:
    ready = tables.json_ready({"a": [math.nan, 1.5, (math.inf, 2)], "b": {"c": "text", 0.05: None}})
    assert json.dumps(ready, allow_nan=False) == '{"a": [null, 1.5, [null, 2]], "b": {"c": "text", "0.05": null}}'


def test_levels_are_compared_over_changed_images_and_of_restorers_that_estimate_them() -> None:
    changed, right = flags("1110"), flags("1111")
    true = torch.tensor([0.2, 0.2, 0.4, 0.0])
    met = Outcome(right, right, right, changed, level=torch.tensor([0.1, 0.2, 0.1, 0.4]), true_level=true)
    unknown = Outcome(right, right, right, changed, level=torch.full((4,), torch.nan), true_level=true)
    clean = Outcome(right, right, right, ~right, level=torch.tensor([0.0, 0.1, 0.3, 0.0]), true_level=torch.zeros(4))
    noise = AttackSpec("gaussian[-1,1]", eps=0.2)
    outcomes = {
        Cell("gan", "gray_box", "oblivious"): clean,
        Cell("gan", "gray_box", "oblivious", noise): met,
        Cell("trn", "gray_box", "oblivious", noise): unknown,
    }
    found = tables.levels(outcomes)
    assert list(found) == ["gan"]
    assert [entry["n"] for entry in found["gan"]] == [4, 3]
    assert [entry["within_one_step"] for entry in found["gan"]] == pytest.approx([3 / 4, 2 / 3])
    assert found["gan"][1]["true"] == pytest.approx(0.8 / 3)
    assert found["gan"][1]["estimated"] == pytest.approx(0.4 / 3)
