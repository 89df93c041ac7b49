"""gandefense.reproduce: the tables of TRN's article, from real, tiny trainings and evaluations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scipy import stats

from gandefense import config
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.reproduce import (
    TABLES,
    statistics,
    trn_ablation,
    trn_attacks,
    trn_blocks,
    trn_cross_attack,
    trn_figures,
    trn_maps,
)
from gandefense.reproduce.trn_tables import ATTACKS, check, variation
from gandefense.restorers.gradient_maps import GradientMaps
from gandefense.weights_io import load_weights, save_weights
from tests.reproduce.conftest import Recipes

CONFIGS = Path(__file__).parents[2] / "configs" / "reproduce"


def _figure(accuracy: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "ci95": [accuracy, accuracy], "n": 100}


def _row(**accuracies: float) -> dict[str, dict[str, Any]]:
    return {name: _figure(value) for name, value in accuracies.items()}


@pytest.fixture
def reproduce(tool: Callable, tmp_path: Path, cheap: None) -> Callable[..., tuple[dict[str, Any], str, str]]:
    """Make a table by the tool, in a moment; gives its figures, its page and what was printed."""

    def run(name: str, *words: str) -> tuple[dict[str, Any], str, str]:
        small = ("data.limit=4", "batch_size=4", "device=cpu", "steps=1", "pgd_steps=2")
        places = (f"folder={tmp_path / 'runs'}", f"results={tmp_path / 'results'}")
        status, out, err = tool("reproduce", name, *small, *places, *words)
        assert status == 0, err
        page = (tmp_path / "results" / f"{name}.md").read_text(encoding="utf-8")
        assert "how it was made" in page.lower() and not re.search(r"\b(None|nan)\b", page)
        for picture in re.findall(r"!\[.*\]\((.+)\)", page):
            assert (tmp_path / "results" / picture).is_file()
        return json.loads((tmp_path / "results" / f"{name}.json").read_text(encoding="utf-8")), page, out

    return run


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_a_config_that_fits(name: str, tmp_path: Path) -> None:
    settings = config.load(TABLES[name][0], CONFIGS / f"{name}.yaml")
    settings.folder = settings.results = str(tmp_path)
    head = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert head.startswith(f"# python tools/reproduce.py {name}")
    if name.startswith("trn-"):  # networks that it names are there, and recipes fit theirs
        check(settings, [*settings.adversarial, *settings.rivals] if name.startswith("trn-attacks") else [])
        assert settings.data.name == ("fashion_mnist" if name.endswith("-fashion") else "cifar10")


def test_students_interval() -> None:
    found = statistics.student([0.5, 0.6, 0.55])
    assert found["mean"] == pytest.approx(0.55)
    assert found["ci95"] == pytest.approx(stats.t.interval(0.95, 2, loc=0.55, scale=stats.sem([0.5, 0.6, 0.55])))
    assert statistics.student([0.5]) == {"mean": 0.5, "ci95": None, "each": [0.5]}
    assert statistics.mean_text(statistics.student([0.5])) == "50.0 %"
    assert statistics.gain_text({"mean": 0.012, "ci95": [-0.003, 0.027], "each": []}) == "+1.2 points [−0.3, +2.7]"


def test_variation_is_over_attacks_not_over_clean_images() -> None:
    assert variation(_row(clean=0.9, pgd=0.3, bim=0.5), ["pgd", "bim"]) == pytest.approx(0.2)


def test_attacks(reproduce: Callable, recipes: Recipes) -> None:
    words = (f"classifier={recipes.network}", f"trn={recipes.trn}", f"adversarial=[{recipes.classifier}]", "rivals=[jpeg]")
    made, page, out = reproduce("trn-attacks", *words)
    bare, adversarial, _, trn = made["defences"]
    assert [entry["name"] for entry in made["defences"]] == ["no defence", "adversarial training: tiny", "jpeg", "TRN: tiny"]
    assert all(entry[key]["n"] == 4 for entry in made["defences"] for key in ("clean", *ATTACKS))
    assert bare["variation"] == pytest.approx(variation(bare)) and adversarial["network"] != trn["network"]
    assert [each["config"]["train"]["steps"] for each in made["networks"] if "steps" in each["config"]["train"]] == [2]
    assert "none is quoted" in page and "| published | here |" in page
    assert out.count("run folder:") == 2
    again = reproduce("trn-attacks", *words)
    assert again[0]["defences"] == made["defences"]
    assert again[2].count("trained before") == 2 and again[2].count("measured before") == 2


def test_claims_about_attacks() -> None:
    trn, other = dict.fromkeys(ATTACKS, 0.8), dict.fromkeys(ATTACKS, 0.7)
    rows = [_row(clean=0.9, **other), _row(clean=0.9, **{**other, "mim": 0.85}), _row(clean=0.88, **trn)]
    (_, robust), (_, benign) = trn_attacks.claims(rows)
    assert robust == "above the best of 1 others under 4 of 5 attacks; least margin −5.0 points"
    assert benign == "clean accuracy changes by −2.0 points"
    assert trn_attacks.claims([rows[0], rows[2]])[0][1] == "nothing to compare with"


def test_cross_attack(reproduce: Callable, recipes: Recipes, untrained: None) -> None:
    words = (f"classifier={recipes.network}", f"trn={recipes.trn}", f"adversarial={recipes.classifier}", "attacks=[fgsm, bim]")
    other = ("train={train: {steps: 1}}", "train_adversarial={train: {epochs: 0.2, adversarial: {steps: 1}}}")
    made, page, _ = reproduce("trn-cross-attack", *words, *other)
    assert [entry["trained_on"] for entry in made["rows"]] == ["fgsm", "bim"]
    for entry in made["rows"]:
        for side in ("adversarial_training", "trn"):
            assert entry["variation"][side] == pytest.approx(variation(entry[side], ["fgsm", "bim"]))
    configs = [each["config"] for each in made["networks"]]
    assert [each["train"]["adversarial"]["attack"] for each in configs[:2]] == ["fgsm", "bim"]
    assert [each["attacked"]["attacks"] for each in configs[2:]] == [[*["fgsm"] * 5, "none"], [*["bim"] * 5, "none"]]
    assert all(each["train"]["steps"] == 1 for each in configs[2:])
    assert "| trained on | AT: clean | AT: FGSM | AT: BIM | AT: Variation | TRN: clean |" in page


def test_a_trn_that_learnt_nothing_is_named() -> None:
    bare = {"fgsm": {"accuracy": 0.10}, "pgd": {"accuracy": 0.0}}
    found = {"fgsm": (0.11, 0.0), "pgd": (0.05, 0.02), "bim": (0.3, 0.2), "mim": (0.0, 0.01)}
    rows = [
        {"trained_on": name, "trn": {"fgsm": {"accuracy": first}, "pgd": {"accuracy": second}}}
        for name, (first, second) in found.items()
    ]
    assert trn_cross_attack.learnt_nothing(rows, bare, ["fgsm", "pgd"]) == ["fgsm", "mim"]


def test_maps(reproduce: Callable, recipes: Recipes, untrained: None, tmp_path: Path) -> None:
    trained, _, _ = reproduce("trn-attacks", f"classifier={recipes.network}", f"trn={recipes.trn}", "adversarial=[]", "rivals=[]")
    trn = trained["defences"][-1]["network"]
    other = tmp_path / "other.safetensors"
    tensors, about = load_weights(recipes.network)
    save_weights(other, {name: 1.1 * part if part.is_floating_point() else part for name, part in tensors.items()}, about)
    made, page, _ = reproduce("trn-maps", f"classifier={recipes.network}", f"trn={trn}", "others=[]", f"foreign={other}")
    assert [row["maps"] for row in made["rows"]] == list(trn_maps.SOURCES)
    titles = ["clean", "fgsm", "fgsm (predicted)", "pgd-2", "pgd-2 (predicted)"]
    assert all(list(row["accuracy"]) == titles and row["accuracy"]["clean"]["n"] == 4 for row in made["rows"])
    for key in ("clean", "fgsm"):  # PGD starts elsewhere
        before = trained["defences"][-1][key]["accuracy"]
        assert made["rows"][0]["accuracy"][key]["accuracy"] == before, "with its own maps it is the restorer as evaluated"
    assert f"| gradient maps | {' | '.join(titles)} |" in page


def test_wrong_maps_are_what_they_are_called() -> None:
    torch.manual_seed(0)
    own, foreign = (GradientMaps(torch.rand(3, 15, 4, 4), torch.rand(3, 5)) for _ in range(2))
    right, shuffled, neighbours, others, blank = (handed(own, foreign) for handed in trn_maps.SOURCES.values())
    assert right is own and others is foreign
    assert torch.equal(neighbours.maps[1], own.maps[0]) and torch.equal(neighbours.log_norms[0], own.log_norms[2])
    assert not blank.maps.any() and not blank.log_norms.any() and blank.maps.shape == own.maps.shape
    for image in range(3):
        order = [own.log_norms[image].tolist().index(norm) for norm in shuffled.log_norms[image].tolist()]
        assert sorted(order) == list(range(5))
        assert torch.equal(shuffled.maps[image].unflatten(0, (5, 3)), own.maps[image].unflatten(0, (5, 3))[order])
    assert not torch.equal(shuffled.log_norms, own.log_norms)


def test_claims_about_training_attacks() -> None:
    rows = [
        {
            "adversarial_training": _row(fgsm=0.6, bim=0.3),
            "trn": _row(fgsm=0.7, bim=0.25),
            "variation": {"adversarial_training": 0.3, "trn": 0.45},
        }
    ]
    (_, above), (_, smaller) = trn_cross_attack.claims(rows, ["fgsm", "bim"])
    assert above == "in 1 of 2 cells; least margin −5.0 points" and smaller == "in 0 of 1 rows"


def test_ablation(reproduce: Callable, recipes: Recipes, untrained: None) -> None:
    made, page, _ = reproduce("trn-ablation", f"classifier={recipes.network}", f"trn={recipes.trn}", "seeds=[0, 3]")
    variants = made["variants"]
    assert list(variants) == ["maps", "image", "both"]
    assert len({variant["parameters"] for variant in variants.values()}) == 1
    assert [entry["seed"] for entry in variants["both"]["seeds"]] == [0, 3]
    configs = [each["config"] for each in made["networks"]]
    assert [(each["network"]["streams"], each["run"]["seed"]) for each in configs[:4]] == [
        ("maps", 0),
        ("maps", 3),
        ("image", 0),
        ("image", 3),
    ]
    gains = made["differences"]["both − image"]["pgd"]
    pairs = zip(variants["both"]["seeds"], variants["image"]["seeds"], strict=True)
    assert gains["each"] == pytest.approx([a["pgd"]["accuracy"] - b["pgd"]["accuracy"] for a, b in pairs])
    assert "| none (classifier alone) |" in page and "## What the second stream adds" in page


@pytest.mark.parametrize(
    ("interval", "said"), [([0.01, 0.03], "more"), ([-0.03, -0.01], "less"), ([-0.01, 0.03], "no difference"), (None, "one seed")]
)
def test_a_difference_is_only_said_where_its_interval_allows(interval: list[float] | None, said: str) -> None:
    assert trn_ablation.verdict({"mean": 0.0, "ci95": interval, "each": []}).startswith(said)


def test_blocks(reproduce: Callable, recipes: Recipes, untrained: None) -> None:
    made, page, _ = reproduce("trn-blocks", f"classifier={recipes.network}", f"trn={recipes.trn}", "blocks=[1, 2]")
    assert [point["blocks"] for point in made["points"]] == [1, 2]
    first, second = (point["parameters"] for point in made["points"])
    # a block of width 8: two 3×3 convolutions with their norms, the fusion and the two ways out, all with biases
    assert second - first == 2 * (8 * 8 * 9 + 8 + 16) + (16 * 8 + 8) + 2 * (8 * 8 + 8)
    assert made["points"][0]["pgd"]["ci95"] is None and made["points"][0]["seeds"][0]["pgd"]["ci95"] is not None
    assert "of 1, 2" in page


def test_blocks_over_seeds_have_students_interval() -> None:
    point = {"blocks": 2, "seeds": [{}, {}], "pgd": statistics.student([0.5, 0.6])}
    assert trn_blocks.shown(point, "pgd") == {"accuracy": pytest.approx(0.55), "ci95": point["pgd"]["ci95"]}


def test_figures(reproduce: Callable, recipes: Recipes, untrained: None, tmp_path: Path) -> None:
    words = (
        "shown=3",
        "data.limit=30",
        "batch_size=30",
        "eps=0.2",
        "pgd_steps=3",
        f"classifier={recipes.network}",
        f"trn={recipes.trn}",
    )
    made, page, _ = reproduce("trn-figures", *words)
    assert made["files"] == ["trn-figures-cifar10.png", "trn-figures-cifar10-maps.png"]
    sizes = [Image.open(tmp_path / "results" / name).size for name in made["files"]]
    # pictures of 32 pixels, four times enlarged, with four pixels around each
    assert sizes == [(3 * 132 + 4, 3 * 136), (10 * 132 + 4, 2 * 136)]
    maps, classes = made["gradient_maps"], datasets.describe("cifar10").classes
    assert maps["original"] == maps["label"] != maps["attacked"]
    assert [entry["class"] for entry in maps["classes"]] == list(classes)
    shuffled = datasets.load(DataConfig(limit=30), "test", seed=0)
    assert [entry["label"] for entry in made["images"]] == [classes[label] for label in shuffled.labels[:3]]
    assert f"| {maps['label']} |" in page and "original image seen as this" in page


def test_claims_about_maps_name_the_smallest() -> None:
    norms = [
        {"class": name, "log10_norm_original": a, "log10_norm_attacked": b} for name, a, b in (("cat", -6, -1), ("dog", -1, -5))
    ]
    ((_, here),) = trn_figures.claims({"original": "cat", "attacked": "dog"}, norms)
    assert "original: the smallest map is that of cat, and it is seen as cat; attacked: the smallest map is that of dog" in here


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trn-ablation", "seeds=[1, 1]"], "seeds takes different numbers"),
        (["trn-ablation", "trn=cifar10/trn", "train={}"], "must be a recipe"),
        (["trn-ablation", "train.train.step=3"], "unknown key train.step; the nearest known one is train.steps"),
        (["trn-blocks", "blocks=[0, 1]"], "blocks takes different numbers from 1 up"),
        (["trn-cross-attack", "attacks=[fgsm, square]"], "attacks takes each of"),
        (["trn-cross-attack", "train_adversarial.train.epoch=3"], "unknown key train.epoch"),
        (["trn-attacks", "train.train.steps=3"], "train changes a recipe, but trn=cifar10/trn is a trained network"),
        (["trn-attacks", "rivals=[jpg]"], "unknown network 'jpg'"),
        (["trn-attacks", "data.name=svhn"], "cifar10/classifier is for 'cifar10', but data.name is 'svhn'"),
        (
            ["trn-ablation", "data.name=svhn", "classifier=configs/classifier/svhn_resnet9.yaml"],
            "cifar10_trn.yaml is for 'cifar10'",
        ),
        (
            ["trn-ablation", "classifier=configs/trn/cifar10_trn.yaml"],
            "classifier=configs/trn/cifar10_trn.yaml is a 'trn', not a",
        ),
        (["trn-figures", "shown=0"], "shown must be at least 1"),
        (["trn-figures", "trn=cifar10/gan"], "is no TRN"),
        (["trn-maps", "others=[cifar10/gan]"], "cifar10/gan is not a TRN that is"),
        (
            ["trn-maps", "foreign=cifar10/classifier"],
            "foreign=cifar10/classifier must be another classifier than the defended one",
        ),
    ],
)
def test_mistakes_are_one_line_before_any_work(tool: Callable, tmp_path: Path, words: list[str], message: str) -> None:
    status, _, err = tool("reproduce", *words, f"folder={tmp_path / 'runs'}", f"results={tmp_path / 'results'}", "data.limit=2")
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not list(tmp_path.rglob("*.safetensors"))
