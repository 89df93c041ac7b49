"""YAML, key=value words and the dataclass that is their schema."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gandefense import config
from gandefense.config import DataConfig
from gandefense.errors import UserError


@dataclass
class Budget:
    eps: float = 0.5
    steps: int = 20
    labels: str = "true"


@dataclass
class Example:
    data: DataConfig = field(default_factory=DataConfig)
    budget: Budget = field(default_factory=Budget)
    levels: list[float] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    resume: str | None = None


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to_file(text: str) -> Path:
        path = tmp_path / "example.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("-1/2", -0.5),
        ("1.5/3", 0.5),
        ([["1/4"], {"deep": {"er": ["3/4"]}}], [[0.25], {"deep": {"er": [0.75]}}]),
        ("runs/1", "runs/1"),
        ("1/2/3", "1/2/3"),
        ("/2", "/2"),
        (7, 7),
        (None, None),
        (True, True),
    ],
)
def test_fractions_become_floats_at_any_depth(given: Any, expected: Any) -> None:
    assert config.fractions_to_floats(given) == expected


@pytest.mark.parametrize("given", ["1/0", {"a": ["1/0.0"]}])
def test_division_by_zero_is_refused(given: Any) -> None:
    with pytest.raises(UserError, match="divides by zero"):
        config.fractions_to_floats(given)


@pytest.mark.parametrize(
    ("values", "unknown", "nearest"),
    [
        ({"resum": "x"}, "resum", "resume"),
        ({"budget": {"epss": 0.1}}, "budget.epss", "budget.eps"),
        ({"data": {"limt": 3}}, "data.limt", "data.limit"),
        ({"buget": {"eps": 0.1}}, "buget", "budget"),
    ],
)
def test_unknown_key_names_the_nearest_known_one(values: dict[str, Any], unknown: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        config.build(Example, values)
    assert str(caught.value) == f"config: unknown key {unknown}; the nearest known one is {nearest}"


def test_free_form_dictionaries_take_any_key() -> None:
    assert config.build(Example, {"options": {"anything": {"nested": "1/2"}}}).options == {"anything": {"nested": 0.5}}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"budget": {"steps": "many"}}, "steps"),
        ({"budget": {"steps": 1.5}}, "steps"),
        ({"budget": {"eps": [1]}}, "eps"),
        ({"budget": {"labels": None}}, "labels"),
        ({"levels": ["a"]}, "levels"),
        ({"data": 5}, "data"),
        ({"data": None}, "data"),
    ],
)
def test_wrong_type_is_refused_and_the_key_is_named(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        config.build(Example, values)
    assert "\n" not in str(caught.value)
    assert re.search(rf"\b{key}\b", str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget: [1", "not readable as YAML"),
        ("a:\n\t- b", "not readable as YAML"),
        ("- a\n- b\n", "expected key: value lines"),
        ("budget:\n  epss: 1\n", "the nearest known one is budget.eps"),
    ],
)
def test_bad_file_is_one_clear_line(write: Any, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.load(Example, write(text))
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config file not found: .*absent\.yaml"):
        config.load(Example, tmp_path / "absent.yaml")


@pytest.mark.parametrize("word", ["budget.eps", "=3", "budget.eps=[1", "budget.epss=1"])
def test_malformed_override_is_refused(word: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load(Example, None, [word])
    assert "\n" not in str(caught.value)


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(write: Any) -> None:
    path = write("budget:\n  eps: 4/255\n  steps: 7\ndata:\n  root: here\n")
    loaded = config.load(Example, path, ["budget.eps=8/255", "data.limit=10", "levels=[1/4,0.5]", "data.root=a=b"])
    assert math.isclose(loaded.budget.eps, 8 / 255)
    assert (loaded.budget.steps, loaded.budget.labels) == (7, "true")
    assert (loaded.data.limit, loaded.data.root, loaded.data.name) == (10, "a=b", "cifar10")
    assert loaded.levels == [0.25, 0.5]


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_empty_file_means_the_defaults(write: Any, text: str) -> None:
    assert config.load(Example, write(text)) == config.load(Example, None) == Example()


def test_what_a_file_leaves_to_the_user_has_to_be_given(write: Any) -> None:
    path = write("options: {a: 1}\nbudget:\n  eps: ???\n")
    with pytest.raises(UserError, match=r"budget\.eps is left for you to give: budget\.eps=… on the command line"):
        config.load(Example, path)
    assert config.load(Example, path, ["budget.eps=8/255"]).budget.eps == pytest.approx(8 / 255)


def test_round_trip_through_a_dictionary() -> None:
    built = config.build(Example, {"budget": {"eps": "8/255"}, "levels": ["1/3"], "options": {"a": 1}, "data": {"limit": 3}})
    assert config.build(Example, config.to_dict(built)) == built


ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "configs" / "classifier").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_classifier_configs_fit_their_schema(path: Path) -> None:
    from gandefense.classifiers import CLASSIFIERS
    from gandefense.training.classifier import ClassifierConfig

    given = ["start=RUN_FOLDER"] if "start: ???" in path.read_text(encoding="utf-8") else []  # of second stages
    assert config.load(ClassifierConfig, path, given).architecture in CLASSIFIERS


def test_the_shipped_average_fits_its_schema() -> None:
    from gandefense.training.averaging import AverageConfig

    loaded = config.load(
        AverageConfig, ROOT / "configs" / "average" / "cifar10_noise.yaml", ["networks=[RUN,RUN,cifar10/classifier]"]
    )
    assert len(loaded.shares) == len(loaded.networks)


TRN_RECIPES = sorted((ROOT / "configs" / "trn").glob("*.yaml"))


@pytest.mark.parametrize("path", TRN_RECIPES, ids=lambda path: path.stem)
def test_shipped_trn_configs_fit_their_schema(path: Path) -> None:
    from gandefense.attacks.cache import plan
    from gandefense.training.trn import TRNConfig

    given = ["start=RUN_FOLDER"] if "start: ???" in path.read_text(encoding="utf-8") else []
    assert plan(config.load(TRNConfig, path, given).attacked, transfers=True)[1]


@pytest.mark.parametrize(("name", "recipe"), [("wide", "wide"), ("coarse", "coarse"), ("balanced", "balanced_again")])
def test_the_cards_of_later_stages_hold_the_recipe_of_their_config(name: str, recipe: str) -> None:
    from gandefense.training.trn import TRNConfig

    card = json.loads((ROOT / f"gandefense/weights/cifar10/trn-{name}.json").read_text(encoding="utf-8"))["recipe"]
    path = ROOT / f"configs/trn/cifar10_trn_{recipe}.yaml"
    chosen = ["start=" + card["start"]] if "start: ???" in path.read_text(encoding="utf-8") else []
    wanted = config.to_dict(config.load(TRNConfig, path, chosen))
    for part in ("attacked", "network", "train", "start", "classifier"):
        assert card[part] == wanted[part], part
