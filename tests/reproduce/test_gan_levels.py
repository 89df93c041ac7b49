"""gandefense.reproduce.gan_levels: readings of "level", variants of a defence, and the tables from a real, small evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gandefense import config as configuration
from gandefense import zoo
from gandefense.errors import UserError
from gandefense.evaluation import cost, metrics
from gandefense.evaluation.settings import resolve
from gandefense.reproduce import TABLES, gan_levels
from gandefense.reproduce.gan_level_tables import PUBLISHED, STUDENT, shown_eps
from gandefense.reproduce.gan_levels import GANLevelsConfig
from gandefense.restorers.gan import GANNetworks
from gandefense.weights_io import load_weights, save_weights
from tests.evaluation.conftest import Networks, networks  # noqa: F401  (a fixture)

ROOT = Path(__file__).parent.parent.parent
SHAPE = {"channels": 3, "size": 32, "width": 8}


@pytest.fixture
def gan(tmp_path: Path) -> str:
    """A GAN defence that has learnt nothing, changes images, and flags every one of them."""
    torch.manual_seed(0)
    made = GANNetworks(**SHAPE)
    for layer in (made.ismn.out, made.generator.out):
        torch.nn.init.normal_(layer.weight, std=0.02)
    about = {"kind": "gan", "data": "cifar10", "classifier": "cifar10/classifier", "network": SHAPE}
    path = tmp_path / "gan.safetensors"
    save_weights(path, made.state_dict(), {**about, "loop": {"threshold": -1e9, "rounds": 2, "tolerance": 0.0}})
    return str(path)


def test_a_level_is_read_as_its_name_says() -> None:
    config = GANLevelsConfig(pgd_steps=7)
    entries = [gan_levels.attack_at(config, reading, 0.3) for reading in gan_levels.READINGS]
    assert [(entry.attack, entry.eps) for entry in entries] == [
        ("gaussian[-1,1]", 0.3),
        ("gaussian[0,1]", 0.3),
        ("fgsm", 0.3),
        ("pgd", 0.3),
    ]
    assert entries[-1].steps == 7
    assert [shown_eps("pgd", 8 / 255), shown_eps("fgsm", 0.3), shown_eps("gaussian[0,1]", 0.05)] == ["8/255", "0.3", "0.05"]


def test_the_papers_tables_are_as_printed() -> None:
    third = {entry["level"]: (entry["none"], entry["ours"], *entry["rivals"].values()) for entry in PUBLISHED["cifar10"]}
    assert third == {
        0.2: (0.482, 0.936, 0.792, 0.895),
        0.3: (0.374, 0.894, 0.688, 0.853),
        0.4: (0.268, 0.871, 0.564, 0.816),
    }
    fourth = [(entry["attack"], entry["none"], entry["rivals"]["CelebANet"], entry["ours"]) for entry in PUBLISHED["celeba"]]
    assert fourth == [("FGSM", 0.624, 0.912, 0.927), ("PGD", 0.597, 0.923, 0.936)]


@pytest.mark.parametrize("name", ["gan-levels", "gan-celeba"])
def test_the_shipped_config_asks_for_every_threat(name: str) -> None:
    config = configuration.load(TABLES[name][0], ROOT / "configs" / "reproduce" / f"{name}.yaml")
    asked = gan_levels.level_settings(config, config.classifier, [config.ours])
    searched = {
        (entry.attack, entry.eps) for entry in asked["gray_box"] if entry.labels == "true" and entry.attack in ("fgsm", "pgd")
    }
    assert searched == {(attack, level) for attack in ("fgsm", "pgd") for level in config.levels}
    white = {(entry.attack, entry.eps) for entry in asked["white_box"].attacks}
    assert white == {(attack, min(config.levels)) for attack in ("fgsm", "pgd")}, "who keeps nothing there keeps nothing above"
    assert {(entry.attack, entry.eps) for entry in asked["black_box"].transfer} == searched
    leaks = {(entry.eps, entry.labels) for entry in asked["gray_box"] if entry.labels != "true"}
    assert leaks == {(level, labels) for level in config.levels for labels in ("predicted", "random_target")}
    names = [(entry.attack, entry.eps) for entry in gan_levels.probes(config)]
    assert len(set(names)) == len(names)


def test_a_defence_of_one_round_has_fewer_parts_and_meets_the_probes_once(gan: str, tmp_path: Path) -> None:
    tensors, about = load_weights(Path(gan))
    one = tmp_path / "one.safetensors"
    save_weights(one, tensors, {**about, "loop": {**about["loop"], "rounds": 1}})
    parts = gan_levels.parts_of(str(one), tmp_path)
    config = resolve(None, gan_levels.probe_settings(GANLevelsConfig(), "cifar10/classifier", list(parts.values())))
    assert len(config.restorers) == 1 + len(set(parts.values())) == 3 < 1 + len(parts)


def test_rounds_and_parts_are_the_same_networks_with_another_loop(gan: str, tmp_path: Path) -> None:
    assert gan_levels.variant(gan, tmp_path, rounds=2) == gan, "it is that already"
    cleaned = gan_levels.variant(gan, tmp_path, rounds=1, generator=False)
    assert gan_levels.parts_of(gan, tmp_path)["ISMN"] == cleaned
    assert gan_levels.variant(gan, tmp_path, rounds=3) != cleaned
    (tensors, about), (before, _) = load_weights(cleaned), load_weights(gan)
    assert about["loop"] == {"threshold": -1e9, "rounds": 1, "tolerance": 0.0, "generator": False}
    assert all(torch.equal(tensors[key], before[key]) for key in before)
    restorer, images = zoo.load_restorer(cleaned, torch.nn.Identity()), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        restoration = restorer(images)
    assert torch.equal(restoration.images, restoration.maps["cleaned"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"readings": ["uniform"]}, "unknown reading 'uniform'; known: gaussian"),
        ({"levels": []}, "at least one"),
        ({"levels": [2.0]}, "above 0 and up to 1"),
        ({"rounds": [0, 1]}, "rounds lie between 1 and 1000"),
        ({"rounds": [1, 2000]}, "rounds lie between 1 and 1000"),
        ({"eps": 8.0}, "eps is in pixel units"),
        ({"white_levels": [0.1]}, "white_levels are some of the levels"),
        ({"ours": "cifar10/nothing"}, "cifar10/nothing"),
        ({"ours": "cifar10/trn"}, "is a 'trn', not a GAN defence"),
        ({"rivals": ["cifar10/nobody"]}, "cifar10/nobody"),
        ({"student": "cifar10/no_student"}, "cifar10/no_student"),
        ({"student": "cifar10/trn"}, "student=cifar10/trn is a 'trn'; name a classifier, or a GAN defence with one"),
        ({"student": "cifar10/gan"}, "what answers there is cifar10/classifier itself, no distilled classifier"),
        ({"sources": ["cifar10/classifier"]}, "is the defended classifier itself; name another one"),
    ],
)
def test_a_mistake_is_found_before_any_work(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        gan_levels.check(replace(GANLevelsConfig(), **changes), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_tool_measures_every_reading_and_part(
    tool: Callable,
    networks: Networks,  # noqa: F811
    gan: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(cost, "LEAST_REPEATS", 1)
    monkeypatch.setattr(metrics, "lpips_network", lambda *_: None)
    student = tmp_path / "student.safetensors"
    tensors, card = load_weights(networks.classifier)
    save_weights(student, {name: tensor * 0.9 for name, tensor in tensors.items()}, card)
    words = [
        *("gan-levels", "data.limit=4", "batch_size=4", "device=cpu", "pgd_steps=1", "rounds=[1,2]", "levels=[0.2]"),
        *(f"classifier={networks.classifier}", f"ours={gan}", "rivals=[]", f"student={student}", f"sources=[{student}]"),
        *("readings=['gaussian[-1,1]', fgsm_linf]", f"folder={tmp_path / 'runs'}", f"results={tmp_path / 'results'}"),
    ]
    status, out, err = tool("reproduce", *words)
    assert status == 0, err
    made = json.loads((tmp_path / "results" / "gan-levels.json").read_text(encoding="utf-8"))
    assert [(row["reading"], row["threat"]) for row in made["levels"]] == [
        ("clean", None),
        ("gaussian[-1,1]", "gray_box"),
        ("fgsm_linf", "gray_box"),
        ("fgsm_linf", "black_box"),
        ("fgsm_linf", "white_box"),
    ]
    assert all(row["accuracy"][name]["n"] == 4 for row in made["levels"] for name in ("none", gan))
    assert [row["labels"] for row in made["controls"]] == ["true", "predicted", "random_target"]
    assert made["controls"][0]["accuracy"] == made["levels"][2]["accuracy"]
    assert [row["rounds"] for row in made["rounds"]] == [1, 2]
    alone, behind = STUDENT
    counts = [[row["accuracy"][name] and row["accuracy"][name]["n"] for name in STUDENT] for row in made["levels"]]
    assert counts == [[4, 4], [4, 4], [4, 4], [None, None], [4, 4]], "the source of black_box is that student itself"
    parts = {row["part"]: row["accuracy"] for row in made["parts"]}
    assert len(parts) == 8 and list(parts)[-1] == "ISMN + generator, all rounds + distilled classifier"
    assert parts[alone]["clean"] == made["levels"][0]["accuracy"][alone]
    assert list(parts.values())[-1]["gaussian[-1,1] 0.2"] == made["levels"][1]["accuracy"][behind]
    assert parts["ISMN + generator, all rounds"] == made["rounds"][1]["accuracy"]
    assert list(parts["nothing"]) == ["clean", "gaussian[-1,1] 0.2", "fgsm 8/255", "pgd 8/255"]
    assert parts["nothing"]["clean"] == made["levels"][0]["accuracy"]["none"]
    assert all(row[part]["psnr"] > 0 for row in made["quality"] for part in ("attacked", "ISMN only", "one round", "all rounds"))
    page = (tmp_path / "results" / "gan-levels.md").read_text(encoding="utf-8")
    assert "| published, reading not given | 0.2 | not given | 48.2 % | – | – | 93.6 % | MagNet 79.2 %, DDSA 89.5 % |" in page
    assert "## Which part helps" in page and "## How many rounds help" in page and out.count("measured before") == 0
    other = GANLevelsConfig(rivals=["jpeg"], sources=["cifar10/surrogate"])
    resolve(None, gan_levels.level_settings(other, other.classifier, [*other.rivals, other.ours]))
