"""Figures of the tables of TRN's article in the pages' sentences are those of the committed results."""

from __future__ import annotations

import pytest

from gandefense import config
from gandefense.evaluation.metrics import clearly_above
from gandefense.reproduce import trn_cross_attack
from tests.helpers.figures import (
    ROOT,
    percent,
    results,
    signed,
    spanned,
    text_of,
)


def config_of(table: str) -> trn_cross_attack.TRNCrossAttackConfig:
    return config.load(trn_cross_attack.TRNCrossAttackConfig, ROOT / "configs" / "reproduce" / f"{table}.yaml")


def test_figures_of_image_and_maps_are_those_of_the_table() -> None:
    made = results("trn-ablation")
    measured = text_of("docs/measured.md")

    def mean(streams: str) -> str:
        figure = made["variants"][streams]["pgd"]
        return spanned({"accuracy": figure["mean"], "ci95": figure["ci95"]})

    def gain(over: str, key: str) -> str:
        figure = made["differences"][f"both − {over}"][key]
        return f"{signed(figure['mean'])} points [{', '.join(signed(end) for end in figure['ci95'])}]"

    assert {variant["parameters"] for variant in made["variants"].values()} == {267_075}
    kept = f"{mean('both')} under gray_box PGD-20 at 8/255 with image and maps, {mean('image')} with the image alone"
    assert f"{kept} and {mean('maps')} with the maps alone" in measured
    assert f"the maps add {gain('image', 'pgd')} there and {gain('image', 'clean')} on clean images" in measured
    page = text_of("docs/reproducing-the-papers.md")
    assert f"both − image {gain('image', 'pgd')} under PGD-20, both − maps {gain('maps', 'pgd')}, three seeds" in page
    made = results("trn-ablation-fashion")  # of which `mean` and `gain` speak from here on
    assert f"on Fashion-MNIST {gain('image', 'pgd')} and {gain('maps', 'pgd')} (intervals over" in page
    assert (
        f"On Fashion-MNIST, so trained, they add {gain('image', 'pgd')} under PGD-20 to the image's {mean('image')}" in measured
    )
    low, high = made["differences"]["both − image"]["clean"]["ci95"]
    assert f"and {gain('image', 'clean').removeprefix('+')} on clean images; alone they keep {mean('maps')}, more" in measured
    apart = (made["variants"][streams]["pgd"]["mean"] for streams in ("maps", "image"))
    assert low < 0 < high and next(apart) > next(apart)
    assert f"on Fashion-MNIST {gain('image', 'pgd')}, for ten backward passes" in text_of("README.md")


@pytest.mark.parametrize(
    ("table", "above", "spread"),
    [
        ("trn-cross-attack", "{} of {} on CIFAR-10 ({})", "over {} to {} on CIFAR-10 ({} to {}, at"),
        (
            "trn-cross-attack-fashion",
            "in {} of {} cells on Fashion-MNIST ({} of them clearly)",
            "over {} to {} points on Fashion-MNIST (adversarial training {} to {})",
        ),
    ],
)
def test_figures_of_training_attacks_are_those_of_the_table(table: str, above: str, spread: str) -> None:
    made = results(table)
    page = text_of("docs/reproducing-the-papers.md")
    rows = {row["trained_on"]: row for row in made["rows"]}
    sides = ("trn", "adversarial_training")
    cells = [[row[side][faced] for side in sides] for row in made["rows"] for faced in rows]
    higher = sum(ours["accuracy"] > theirs["accuracy"] for ours, theirs in cells)
    assert above.format(higher, len(cells), sum(clearly_above(*cell) for cell in cells)) in page
    ends = [f"{100 * end([row['variation'][side] for row in made['rows']]):.1f}" for side in sides for end in (min, max)]
    assert spread.format(*ends) in page
    assert trn_cross_attack.learnt_nothing(made["rows"], made["no_defence"], list(rows)) == []
    note = trn_cross_attack.table(config_of(table), made["rows"], made["no_defence"]).note
    assert note in (ROOT / "results" / f"{table}.md").read_text(encoding="utf-8")
    if table == "trn-cross-attack":
        alone, pgd, bim = (
            [faced_by[faced] for faced in ("fgsm", "ffgsm")]
            for faced_by in (made["no_defence"], rows["pgd"]["trn"], rows["bim"]["trn"])
        )
        said = [" and ".join(percent(figure).removesuffix(" %") for figure in pair) for pair in (alone, pgd, bim)]
        assert f"the classifier alone has {said[0]} % right, {said[1]} after training on PGD alone, which is no" in page
        assert f"and {said[2]} after BIM" in page
        assert not any(map(clearly_above, pgd, alone)) and all(map(clearly_above, bim, alone))
        low, *_, high = sorted(100 * row["adversarial_training"][faced]["accuracy"] for row in made["rows"] for faced in rows)
        assert f"at {low:.1f} to {high:.1f} % right)" in page
        clean = [100 * row["adversarial_training"]["clean"]["accuracy"] for row in made["rows"]]
        assert f"{min(clean):.1f} to {max(clean):.1f} % on clean images of CIFAR-10" in page


@pytest.mark.parametrize(
    ("table", "best", "said"),
    [
        ("trn-attacks", "cifar10/gan", "above `cifar10/gan` by {:.1f} points or more"),
        ("trn-attacks-fashion", "adversarial training", "above the adversarially trained classifier by {:.1f} or more"),
    ],
)
def test_margins_over_the_other_defences_are_those_of_the_table(table: str, best: str, said: str) -> None:
    *others, ours = results(table)["defences"]
    page = text_of("docs/reproducing-the-papers.md")
    assert ours["name"].startswith("TRN")
    attacks = ("fgsm", "ffgsm", "pgd", "bim", "mim")
    rivals = [max(others, key=lambda row, name=name: row[name]["accuracy"]) for name in attacks]
    assert {rival["name"].split(":")[0] for rival in rivals} == {best}
    margins = [ours[name]["accuracy"] - rival[name]["accuracy"] for name, rival in zip(attacks, rivals, strict=True)]
    assert min(margins) > 0 and said.format(100 * min(margins)) in page
    if table == "trn-attacks":
        (longer,) = [row for row in results("cifar10_quick_gan_longer")["rows"] if row["title"] == "mim-10"]
        assert f"comes within {100 * (ours['mim']['accuracy'] - longer['accuracy']):.1f} of it under MIM" in page


@pytest.mark.parametrize(("table", "spoken"), [("trn-blocks", "PGD-20 leaves"), ("trn-blocks-fashion", "on Fashion-MNIST")])
def test_figures_of_fusion_blocks_are_those_of_the_table(table: str, spoken: str) -> None:
    made = results(table)
    points = {point["blocks"]: point for point in made["points"]}
    page = text_of("docs/reproducing-the-papers.md")
    best = max(points, key=lambda blocks: points[blocks]["pgd"]["mean"])
    first, last, most = (f"{100 * points[blocks]['pgd']['mean']:.1f} %" for blocks in (1, 8, best))
    assert list(points) == [1, 2, 4, 8] and f"{spoken} {first} with one block, {last} with eight" in page
    assert (", which is most;" if best == 8 else f"and most with four, {most}") in page and best in (4, 8)
    spans = [seed["pgd"]["ci95"] for point in points.values() for seed in point["seeds"]]
    assert len(spans) == 4 and max(low for low, _ in spans) < min(high for _, high in spans), "overlapping, one seed each"
    small, large = (f"{points[blocks]['parameters']:,}" for blocks in (1, 8))
    assert f"{small} parameters with one block and {large} with eight" in page or f"and so do {small} and {large} on" in page


def test_figures_of_wrong_maps_are_those_of_the_table() -> None:
    measured, made = text_of("docs/measured.md"), results("trn-maps")
    found = {(row["network"], row["maps"]): row["accuracy"] for row in made["rows"]}
    kinds = ["the image's own", "labels shuffled", "another image's", "another classifier's", "none (zeros)"]
    under = [found["cifar10/trn", kind] for kind in kinds]
    own, shuffled, neighbour, foreign, none = (spanned(figures["pgd-20"]) for figures in under)
    assert f"in place of {own} with the right ones, {shuffled} if their labels are shuffled, {neighbour} with another" in measured
    assert f"image's, {foreign} with another classifier's and {none} with none; under FGSM" in measured
    first, *wrong = (figures["fgsm"] for figures in under)
    assert f"more than {100 * max(first['accuracy'] - figure['accuracy'] for figure in wrong):.1f} points" in measured
    assert not any(clearly_above(first, figure) for figure in wrong)
    ends = (spanned(found["cifar10/trn-balanced", kind]["pgd-20"]) for kind in (kinds[0], kinds[-1]))
    assert "behaves alike ({} and, with none, {})".format(*ends) in measured
    assert f"still keeps {none} under PGD-20, with the right ones {own} (" in text_of("README.md")
