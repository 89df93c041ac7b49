"""The figures in docs are those of the committed results and cards, computed here; test_readme.py has the README's."""

from __future__ import annotations

from typing import Any

import pytest

from gandefense import config
from gandefense.evaluation.metrics import clearly_above
from gandefense.reproduce import trn_cross_attack
from tests.helpers.figures import (
    ROOT,
    USUAL,
    card,
    in_a_table,
    interval,
    percent,
    results,
    signed,
    spanned,
    speaker,
    text_of,
    under_unseen_attacks,
)


def config_of(table: str) -> trn_cross_attack.TRNCrossAttackConfig:
    return config.load(trn_cross_attack.TRNCrossAttackConfig, ROOT / "configs" / "reproduce" / f"{table}.yaml")


def test_figures_of_other_budgets_are_those_of_the_results() -> None:
    made, later = results("cifar10_budgets"), results("cifar10_budgets_balanced")
    measured = text_of("docs/measured.md")

    def spoken(restorer: str, made: dict[str, Any] = made) -> str:
        found = [row for row in made["rows"] if (row["restorer"], row["attack"]) == (restorer, "pgd")]
        first = [f"{100 * row['accuracy']:.1f}" for row in sorted(found, key=lambda row: row["eps"])]
        return f"{', '.join(first[:-1])} and {first[-1]} %"

    assert f"PGD-40 at 2, 4, 8, 12 and 16/255: TRN {spoken('cifar10/trn')}, the GAN {spoken('cifar10/gan')} (" in measured
    widest = max(
        (row["ci95"][1] - row["ci95"][0]) / 2 for row in made["rows"] if row["attack"] == "pgd" and row["accuracy"] > 0.5
    )
    assert f"± {100 * widest:.1f} points at most" in measured
    detected = {round(255 * entry["eps"]): entry["auroc"] for entry in made["detection"]["cifar10/trn"]["attacks"]}
    assert f"AUROC {detected[2]:.3f}, at 8/255 {detected[8]:.3f}" in measured
    worst = [spanned(made["worst_case"][name]["gray_box"]) for name in ("cifar10/trn", "cifar10/gan")]
    assert "TRN keeps {}, the GAN {}. TRN detects".format(*worst) in measured
    name = "cifar10/trn-balanced"
    worst = spanned(later["worst_case"][name]["gray_box"])
    assert f"keeps {spoken(name, later)} at these budgets, {worst} in the worst case of them" in measured
    assert min(detected, key=detected.get) == 2
    entries = {round(255 * entry["eps"]): entry for entry in made["detection"]["cifar10/trn"]["attacks"]}
    assert f"and {100 * entries[2]['tpr']['0.05']:.1f} % of PGD-40's at 2/255 (n = {entries[2]['n']};" in measured


def test_figures_of_unseen_attacks_are_those_of_the_results() -> None:
    made = results("cifar10_unseen")
    measured = text_of("docs/measured.md")
    rows = {(row["title"], row["threat"]): row for row in made["rows"] if row["restorer"] == "cifar10/trn"}

    spoken = speaker(made, "cifar10/trn")
    said = (
        f"AutoAttack on its classifier: {spoken('autoattack')}; Square with 1,000 queries {spoken('square-1000')}; "
        f"PGD-20 of another classifier {spoken('pgd-20', 'black_box')}; DeepFool {spoken('deepfool-50')}; C&W {spoken('cw-30')} ("
    )
    assert said in measured
    order = [("autoattack", "gray_box"), ("square-1000", "gray_box"), ("pgd-20", "black_box")]
    order += [("deepfool-50", "gray_box"), ("cw-30", "gray_box")]
    alone = [f"{100 * rows[key]['undefended_accuracy']:.1f}" for key in order]
    assert f"the classifier alone {', '.join(alone[:-1])} and {alone[-1]} %)" in measured
    detected = {entry["title"]: entry["auroc"] for entry in made["detection"]["cifar10/trn"]["attacks"]}
    assert f"(AUROC {detected['deepfool-50']:.3f} and {detected['cw-30']:.3f})" in measured
    met = {entry["title"]: entry for entry in made["detection"]["cifar10/trn"]["attacks"] if entry["threat"] == "gray_box"}
    flagged = [met[title] for title in ("square-1000", "deepfool-50", "cw-30")]
    shares = "{:.1f} % of Square's, {:.1f} % of DeepFool's and {:.1f} % of C&W's".format(
        *(100 * entry["tpr"]["0.05"] for entry in flagged)
    )
    assert f"TRN's flags {shares} (n = {', '.join(str(entry['n']) for entry in flagged)};" in measured
    controls = [100 * row["accuracy"] for (title, _), row in rows.items() if title.endswith("(predicted)")]
    assert len(controls) == 5 and f"leave {min(controls):.1f} to {max(controls):.1f} %. In the gray_box worst case" in measured
    assert f"of all of them it keeps {spanned(made['worst_case']['cifar10/trn']['gray_box'])} (n = 1,000" in measured


def test_figures_of_trn_wide_are_those_of_the_results() -> None:
    measured, name = text_of("docs/measured.md"), "cifar10/trn-wide"
    made, quick = results("cifar10_unseen_wide"), results("cifar10_quick_wide")
    assert under_unseen_attacks(made, name, said_of_autoattack="AutoAttack on its classifier") in measured
    usual = {(row["title"], row["view"]): row for row in quick["rows"] if row["restorer"] == name}
    before = {(row["restorer"], row["title"], row["view"]): row for row in results("cifar10_quick")["rows"]}
    clean, pgd = (percent(usual[title, "oblivious"]) for title in ("clean", "pgd-20"))
    earlier = percent(before["cifar10/trn", "pgd-20", "oblivious"])
    assert f"clean images {clean}, PGD-20 {pgd} (`cifar10/trn` {earlier})" in measured
    worst = min(usual[title, "oblivious"]["accuracy"] for title in USUAL)
    assert f"the five usual attacks at least {100 * worst:.1f} %" in measured
    assert f"PGD-20 through `detached` {spanned(usual['pgd-20', 'detached'])}" in measured


def test_figures_of_trn_coarse_are_those_of_the_results() -> None:
    measured, name = text_of("docs/measured.md"), "cifar10/trn-coarse"
    made, quick, white = (results(f"cifar10_{kind}_coarse") for kind in ("unseen", "quick", "white"))
    assert under_unseen_attacks(made, name, said_of_autoattack="After AutoAttack on its classifier it keeps") in measured
    usual = {row["title"]: row for row in quick["rows"] if row["restorer"] == name}
    worst = spanned(min((usual[title] for title in USUAL), key=lambda row: row["accuracy"]))
    assert f"Of clean images {percent(usual['clean'])} are right, after the five usual attacks at least {worst}" in measured
    (known,) = [row for row in white["rows"] if row["view"] == "detached" and row["restorer"] == name]
    assert f"PGD-20 through `detached` leaves {spanned(known)} of the first {known['n']} images" in measured


def test_figures_of_trn_balanced_are_those_of_the_results() -> None:
    measured, name = text_of("docs/measured.md"), "cifar10/trn-balanced"
    made, quick, white, longer = (results(f"cifar10_{kind}_balanced") for kind in ("unseen", "quick", "white", "pgd40"))
    assert under_unseen_attacks(made, name, said_of_autoattack="after AutoAttack on its classifier") in measured
    usual = {row["title"]: row for row in quick["rows"] if row["restorer"] == name}
    five = [percent(usual[title]).removesuffix(" %") for title in USUAL]
    (pgd,) = [row for row in longer["rows"] if row["restorer"] == name and row["title"] == "pgd-40"]
    said = (
        f"clean {spanned(usual['clean'])}, after FGSM, FFGSM, BIM-10, PGD-20 and MIM-10 {', '.join(five[:-1])} and {five[-1]} %"
    )
    widest = max((high - low) / 2 for low, high in (usual[title]["ci95"] for title in USUAL))
    assert f"{said} (each ± {100 * widest:.1f} points at most), PGD-40 {spanned(pgd)};" in measured
    (known,) = [row for row in white["rows"] if row["view"] == "detached" and row["restorer"] == name]
    assert f"PGD-20 through `detached` leaves {spanned(known)} of the first {known['n']} images" in measured
    spoken, before = speaker(made, name), {row["title"]: row for row in results("cifar10_unseen")["rows"]}
    first = {(row["title"], row["eps"]): row for row in results("cifar10_quick")["rows"] if row["restorer"] == "cifar10/trn"}
    leak = f"leaves {spoken('fgsm (predicted)')}, from the true one {spanned(usual['fgsm'])}"
    earlier = [f"`cifar10/trn` {percent(before['fgsm (predicted)']).removesuffix(' %')} and {percent(first['fgsm', 8 / 255])}"]
    for short in ("wide", "coarse"):
        figures = [speaker(results(f"cifar10_{kind}_{short}"), f"cifar10/trn-{short}") for kind in ("unseen", "quick")]
        predicted, true = (of(title).split(" %")[0] for of, title in zip(figures, ("fgsm (predicted)", "fgsm"), strict=True))
        earlier.append(f"`cifar10/trn-{short}` {predicted} and {true} %")
    assert f"the predicted label {leak} ({', '.join(earlier)})." in measured
    assert f"PGD-40 of the predicted label leaves {spoken('pgd-40 (predicted)')}." in measured
    for kind in ("unseen", "quick"):
        now, then = (
            {
                (row["title"], row["eps"]): row
                for row in results(f"cifar10_{kind}_{short}")["rows"]
                if row["restorer"].endswith(short)
            }
            for short in ("balanced", "coarse")
        )
        assert not any(clearly_above(now[key], then[key]) for key in now), "none clearly better than trn-coarse"
    assert leak in text_of("README.md")
    (noisy,) = [row for row in quick["rows"] if row["attack"] == "gaussian[-1,1]" and row["eps"] == 0.2]
    earlier = first["gaussian[-1,1]", 0.2]
    assert f"less than `cifar10/trn`: {spanned(noisy)} in place of {spanned(earlier)} at 0.2" in measured
    assert clearly_above(earlier, noisy)
    speed = {who: f"{cost['images_per_second']:.0f}" for who, cost in made["cost"].items()}
    assert {cost["threads"] for cost in made["cost"].values()} == {1}
    slowest = min(results(f"cifar10_{kind}_balanced")["cost"][name]["images_per_second"] for kind in ("quick", "pgd40", "unseen"))
    said = (
        f"`cifar10/trn-balanced` {speed[name]} images/s in one, {slowest:.0f} in another (the classifier alone {speed['none']} in"
    )
    assert said in measured


def test_speeds_are_those_of_the_benchmark() -> None:
    made, measured, readme = results("benchmark"), text_of("docs/measured.md"), text_of("README.md")
    rows = {(row["name"], row["ratio_to"]): row for row in made["rows"]}

    def number(what: str, key: str, to: str = "") -> str:
        """As the table has it: three figures, thousands with a comma."""
        value = rows[what, to][key]
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    diffusion = "images/s of the diffusion purifier"
    trn, all_flagged, none_flagged = (
        number(what, "images_per_second", diffusion)
        for what in ("TRN", "GAN, every image flagged (2 rounds)", "GAN, no image flagged")
    )
    assert f"TRN {trn} images/s, the GAN defence {all_flagged} where every image is flagged and {none_flagged} where" in readme
    assert f"`cifar10/trn` restores {trn} images/s, and `cifar10/gan` {all_flagged} where every image is flagged" in measured
    times = [number(what, "ratio", diffusion) for what in ("TRN", "GAN, every image flagged (2 rounds)")]
    assert f"{trn} and {all_flagged} are {times[0]} and {times[1]} times what" in measured
    slow = number("diffusion purifier, 100 steps", "images_per_second")
    assert f"in batches of 16, {slow} (one step" in readme and f"({slow} images/s, random weights" in measured
    assert f"(alone it sees {number('classifier alone', 'images_per_second')} images/s)" in measured
    naive = rows["gradient maps, float32", "naive loop"]["ratio"]
    passes = rows["gradient maps, float32", "1 forward + 10 input-backward passes, in time"]["ratio"]
    assert f"take {naive:.2f} of the time of the naive loop over the labels." in readme
    assert f"take {naive:.2f} of the time of the naive loop over the labels, in float32, and {passes:.2f} of one" in measured
    assert (made["made"]["threads"], made["made"]["precision"], made["made"]["batch_size"]) == (2, "bf16", 32)


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


def test_figures_of_fashion_mnist_are_those_of_the_results() -> None:
    made = results("fashion_mnist_quick")
    measured = text_of("docs/measured.md")
    rows = {(row["title"], row["view"]): row for row in made["rows"] if row["restorer"] == "fashion_mnist/trn"}

    def spoken(title: str, view: str = "oblivious") -> str:
        return spanned(rows[title, view])

    attacks = ("fgsm", "pgd-20", "mim-10")
    alone = "{:.1f}, {:.1f} and {:.1f} %".format(*(100 * rows[title, "oblivious"]["undefended_accuracy"] for title in attacks))
    bare = f"{percent(made['classifier'])}"
    clean = f"{percent(rows['clean', 'oblivious'])}"
    assert f"keeps {clean} of clean images right (its classifier alone {bare}), and at 8/255 " in measured
    assert f"at 8/255 {spoken('fgsm')} under FGSM" in measured
    assert f"{spoken('pgd-20')} under PGD-20 and {spoken('mim-10')} under MIM-10 (alone {alone})" in measured
    known = rows["pgd-20", "detached"]
    bare = f"{100 * known['undefended_accuracy']:.1f} % {interval({'ci95': known['undefended_ci95']})}"
    assert f"PGD-20 through `detached` leaves {spanned(known)}, of the classifier alone {bare}. " in measured
    assert any(check["name"] == "suspiciously_high" and check["fired"] for check in made["checks"])
    stronger = results("fashion_mnist_white_box")
    worst = {name: spanned(entry["white_box"]) for name, entry in stronger["worst_case"].items()}
    stages = [row for row in stronger["rows"] if row["threat"] == "white_box"]
    left = [(row["title"], row["view"], round(row["n"] * row["accuracy"])) for row in stages]
    first, again, exact, *margins, apgd, last = (count for *_, count in left)
    assert [view for _, view, _ in left] == ["detached", "detached", "exact", "detached", "exact", "detached", "exact"]
    assert {*margins, apgd} == {exact} and last == exact - 1 and stages[0]["n"] == 100
    said = f"PGD-20 leaves {first} through `detached`, once more {again}, with the true gradient (`exact`) {exact};"
    assert said in measured
    assert f"{worst['fashion_mnist/trn']} are left, of the classifier alone {worst['none']}" in measured
    page = text_of("docs/reproducing-the-papers.md")
    assert f"and {worst['fashion_mnist/trn']} of 100 images under stronger attacks and the true gradient" in page


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


def test_figures_of_another_victim_are_those_of_the_results() -> None:
    made = results("cifar10_other_victim")
    measured = text_of("docs/measured.md")
    rows = {(row["restorer"], row["title"]): row for row in made["rows"]}

    def spoken(restorer: str, title: str) -> str:
        return spanned(rows[restorer, title])

    one, several = "cifar10/trn", "cifar10/trn-several"
    clean = {name: f"{percent(rows[name, 'clean'])}" for name in (one, several)}
    alone = f"{percent(made['classifier'])} without it"
    assert f"leaves clean images alone ({clean[one]} of them are right, {alone}) and undoes little: " in measured
    worst = {name: f"{spanned(made['worst_case'][name]['gray_box'])} in the gray_box worst case" for name in clean}
    assert f"undoes little: {spoken(one, 'pgd-40')} under PGD-40 at 8/255, {spoken(one, 'mim-20')} under MIM-20, " in measured
    assert f"{spoken(one, 'mim-20')} under MIM-20, {worst[one]}. " in measured
    control = spoken(several, "pgd-40 (predicted)")
    assert f"{clean[several]} clean, {spoken(several, 'pgd-40')} under PGD-40, {control} with the predicted label" in measured
    assert f"instead of the true one, {spoken(several, 'mim-20')} under MIM-20, {worst[several]} (n = 1,000" in measured
    assert set(made["trained_for"].values()) == {"cifar10/classifier"} and made["classifier"]["name"] == "cifar10/surrogate"


def test_figures_at_the_gans_levels_are_those_of_the_results() -> None:
    text, measured = ((ROOT / name).read_text(encoding="utf-8") for name in ("results/gan-levels.md", "docs/measured.md"))
    section = text.split("## Which part helps\n")[1].split("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    assert table.count("\n") > 2 and table in measured
    made = results("gan-levels")
    page = (ROOT / "docs" / "reproducing-the-papers.md").read_text(encoding="utf-8")
    noisy = [row["accuracy"] for row in made["levels"] if row["reading"] == "gaussian[-1,1]"]
    for column, said in (("cifar10/gan", "`cifar10/gan`: "), ("GAN + distilled classifier", "with a distilled classifier ")):
        assert said + ", ".join(f"{100 * row[column]['accuracy']:.1f}" for row in noisy) + " %" in page

    faces = results("celeba128_levels")
    spoken = " ".join(measured.split())
    found = {(row["restorer"], row["threat"], row["attack"], row["labels"]): row for row in faces["rows"]}

    def share(restorer: str, threat: str, attack: str) -> str:
        row = found[restorer, threat, attack, "true"]
        assert row["n"] == 330
        return spanned(row)

    alone, behind = (
        {name: share(who, "gray_box", name) for name in ("none", "fgsm", "pgd")} for who in ("none", "celeba128/gan")
    )
    assert (
        f"FGSM leaves {alone['fgsm']} and PGD-10 {alone['pgd']}, behind `celeba128/gan` {behind['fgsm']} and {behind['pgd']}"
        in spoken
    )
    assert alone["none"] == behind["none"] and f"clean images {alone['none'].split(' [')[0]} with it and without it" in spoken
    other = {who: share(who, "black_box", "pgd") for who in ("none", "celeba128/gan")}
    assert f"makes {other['celeba128/gan']} right, {other['none'].split(' [')[0]} without it" in spoken
    worse = [share(who, "black_box", "fgsm") for who in ("celeba128/gan", "none")]
    test = found["celeba128/gan", "black_box", "fgsm", "true"]["mcnemar"]
    gained, lost = test["defended_only"], test["bare_only"]
    said = f"({gained} faces gained and {lost} lost: p = {test['p']:.3f}, McNemar)"
    assert "fewer than without it, {} and {} ".format(*worse) + said in spoken and gained < lost
    assert "fewer are right with it than without: {} and {}.".format(*worse) in text_of("README.md")
    control, worst = found["celeba128/gan", "gray_box", "fgsm", "predicted"], faces["worst_case"]["celeba128/gan"]["gray_box"]
    assert f"that of the predicted label leaves {spanned(control)}, and in the gray_box worst case" in spoken
    assert f"under all of these, {spanned(worst)} are left" in spoken and len(worst["attacks"]) == 4
    known = results("celeba128_white_box")["rows"]
    (row,) = [row for row in known if (row["restorer"], row["threat"]) == ("celeba128/gan", "white_box")]
    assert f"differentiates the defence leaves {spanned(row)} at 8/255" in spoken and row["n"] == 100


def test_figures_of_gan_longer_are_those_of_the_results() -> None:
    measured, readme, name = text_of("docs/measured.md"), text_of("README.md"), "cifar10/gan-longer"
    quick, white = results("cifar10_quick_gan_longer"), results("cifar10_white_gan_longer")
    usual = {(row["title"], row["eps"]): row for row in quick["rows"] if row["restorer"] == name}
    of = {
        title: spanned(usual[title, 0 if title == "clean" else 8 / 255])
        for title in ("clean", "fgsm", "pgd-20", "pgd-20 (predicted)")
    }
    noisy = [usual["gaussian[-1,1]", level] for level in (0.2, 0.3, 0.4)]
    said = f"{of['fgsm']} under FGSM, {of['pgd-20']} under PGD-20, {of['pgd-20 (predicted)']} with the predicted label"
    assert (
        f"keeps {said}, and under noise of 0.2, 0.3 and 0.4 {spanned(noisy[0])}, {spanned(noisy[1])} and {spanned(noisy[2])};"
        in measured
    )
    assert f"clean {of['clean']} (n = 1,000" in measured
    (known,) = [row for row in white["rows"] if row["view"] == "detached" and row["restorer"] == name]
    assert f"PGD-20 through `detached` leaves {spanned(known)} of the first {known['n']} images" in measured
    short = [percent(row).removesuffix(" %") for row in (*noisy, usual["fgsm", 8 / 255], usual["pgd-20", 8 / 255])]
    assert "more, keeps {}, {} and {} %, and {} and {} % under gray_box FGSM and PGD-20".format(*short) in readme
    assert card(name)["recipe"]["loop"]["rounds"] == 1
    parts = {row["part"]: row["accuracy"] for row in results("gan-levels")["parts"]}
    once, twice = (parts[f"ISMN + generator, {rounds}"] for rounds in ("one round", "all rounds"))
    keys = {("clean", 0): "clean", ("fgsm", 8 / 255): "fgsm 8/255"}
    keys |= {("gaussian[-1,1]", level): f"gaussian[-1,1] {level}" for level in (0.2, 0.3, 0.4)}
    assert not any(clearly_above(usual[key], once[before]) for key, before in keys.items())
    (first,) = [row for row in results("cifar10_quick")["rows"] if (row["restorer"], row["title"]) == ("cifar10/gan", "fgsm")]
    share = (once["fgsm 8/255"]["accuracy"] - twice["fgsm 8/255"]["accuracy"]) / (
        usual["fgsm", 8 / 255]["accuracy"] - first["accuracy"]
    )
    assert f"gain over two rounds, {percent(first)}, nearly half comes with the round" in measured and 0.4 < share < 0.5


def test_figures_of_the_classifier_trained_on_noise_are_those_of_the_results() -> None:
    measured, name = text_of("docs/measured.md"), "cifar10/gan-noise"
    quick, white = results("cifar10_quick_gan_noise"), results("cifar10_white_gan_noise")

    def alone(row: dict[str, Any]) -> str:
        return spanned({"accuracy": row["undefended_accuracy"], "ci95": row["undefended_ci95"]})

    rows = {(row["title"], row["eps"]): row for row in quick["rows"] if row["restorer"] == name}
    noisy = [rows["gaussian[-1,1]", level] for level in (0.2, 0.3, 0.4)]
    attacked = [rows[title, 8 / 255] for title in ("fgsm", "pgd-20", "pgd-20 (predicted)")]
    (clean,) = [row for row in quick["rows"] if row["title"] == "clean"]
    first = [alone(row) for row in noisy]
    assert f"right on {alone(clean)} of clean images and on {first[0]}, {first[1]} and {first[2]} of noisy ones" in measured
    made, chances = [spanned(row) for row in noisy], [row["mcnemar"]["p"] for row in noisy]
    said = "McNemar's p {:.2f}, {:.2f} and {:.2f}".format(*chances)
    assert (
        f"makes {made[0]}, {made[1]} and {made[2]} of that, which is no difference ({said})" in measured and min(chances) > 0.05
    )
    longer = {row["title"]: row for row in results("cifar10_quick_gan_longer")["rows"]}
    assert all(clearly_above(longer[row["title"]], row) for row in attacked), "less well than gan-longer before its own"
    made = "FGSM {}, PGD-20 {}, {} with the predicted label".format(*map(spanned, attacked))
    bare = "alone {:.1f}, {:.1f} and {:.1f} %".format(*(100 * row["undefended_accuracy"] for row in attacked))
    assert f"{made} ({bare}; n = 1,000" in measured
    (known,) = [row for row in white["rows"] if row["view"] == "detached" and row["restorer"] == name]
    assert f"leaves {spanned(known)} of the first {known['n']} images, of the classifier alone {alone(known)}" in measured
    short = [f"{100 * row['undefended_accuracy']:.1f}" for row in (*noisy, clean)]
    assert "alone it has {}, {} and {} % right, {} % of clean images".format(*short) in text_of("README.md")
    page = text_of("docs/reproducing-the-papers.md")
    assert "trained on noise has {}, {}, {} % without any restorer".format(*short) in page


def test_figures_of_rounds_and_parts_on_faces_are_those_of_the_table() -> None:
    made, measured = results("gan-celeba"), text_of("docs/measured.md")
    first, second = (entry["accuracy"] for entry in made["rounds"])
    assert f"A single round leaves {spanned(first['fgsm 0.3'])} under that FGSM, more than of clean images" in measured
    assert first["fgsm 0.3"]["accuracy"] > first["clean"]["accuracy"]
    assert f"(PGD {spanned(first['pgd 0.3'])} after one round, {spanned(second['pgd 0.3'])} after two)" in measured
    (alone,) = [entry["accuracy"] for entry in made["parts"] if entry["part"] == "ISMN"]
    said = f"The ISMN alone leaves {spanned(alone['fgsm 0.3'])} under FGSM and {spanned(alone['pgd 0.3'])} under PGD."
    assert said in measured
    quality = {entry["attack"]: entry for entry in made["quality"]}
    ways = ("attacked", "ISMN only", "all rounds")
    for attack in ("fgsm 0.3", "pgd 0.3"):
        psnr, lpips = ([quality[attack][way][metric] for way in ways] for metric in ("psnr", "lpips"))
        assert psnr == sorted(psnr) and lpips == sorted(lpips, reverse=True), "each step is nearer to the clean image"
    small = [quality["fgsm 8/255"][way]["psnr"] for way in ways]
    assert "(FGSM: {:.2f} dB attacked, {:.2f} ISMN, {:.2f} all rounds)".format(*small) in measured
    pgd = quality["pgd 8/255"]
    for attack in ("fgsm 8/255", "pgd 8/255"):
        ismn, both = (quality[attack][way] for way in ("ISMN only", "all rounds"))
        assert both["psnr"] < ismn["psnr"] and both["lpips"] > ismn["lpips"], "farther than the ISMN's in both"
    psnr, lpips = ([pgd[way][metric] for way in ("attacked", "all rounds")] for metric in ("psnr", "lpips"))
    assert "in PSNR ({:.2f} and {:.2f} dB), though not in LPIPS ({:.4f} and {:.4f})".format(*psnr, *lpips) in measured
    assert psnr[1] < psnr[0] and lpips[1] < lpips[0]


def test_figures_of_rivals_in_sentences_are_those_of_the_results_and_cards() -> None:
    made = results("rivals")
    rows = {entry["name"]: entry for entry in (*made["restorers"], *made["classifiers"])}
    worst = max((entry["white_box_worst"] for entry in made["restorers"][1:]), key=lambda figure: figure["accuracy"])
    measured = text_of("docs/measured.md")

    gain = made["feature_denoising"]["gains"]["apgd"]
    low, high = (signed(end) for end in gain["ci95"])
    assert f"keeps more than {spanned(worst)} in the white_box worst case" in measured
    assert f"denoiser {spanned(rows['cifar10/denoiser']['pgd'])} of PGD-20, JPEG {spanned(rows['jpeg']['pgd'])})" in measured
    distilled, robust = rows["cifar10/distilled-small"], rows["cifar10/pgd-small"]
    assert f"keeps {spanned(distilled['pgd'])} under PGD-20 and {spanned(distilled['autoattack'])} under AutoAttack" in measured
    assert f"keeps {spanned(robust['autoattack'])} there, at {percent(robust['clean']).removesuffix(' %')} % clean" in measured
    assert f"adds {signed(gain['mean'])} points [{low}, {high}]" in measured
    trained = ("trades-small", "alp-small", "adversarial-small", "fgsm-small")
    others = [spanned(rows[f"cifar10/{name}"]["autoattack"]) for name in trained]
    assert "TRADES {}, logit pairing {}, one step from a random start {}, FGSM training {}".format(*others) in measured


def test_figures_of_adversarial_training_are_those_of_the_results_and_the_card() -> None:
    made = results("cifar10_at")
    described = card("cifar10/classifier-at")
    rows = {row["title"]: row for row in made["rows"] if row["threat"] == "white_box"}
    clean = next(row for row in made["rows"] if row["attack"] == "none")

    measured = text_of("docs/measured.md")
    strongest = spanned(rows["autoattack"])
    assert f"keeps {spanned(rows['pgd-20'])} under PGD-20 and {strongest} under AutoAttack at 8/255" in measured
    assert f"with {spanned(clean)} of clean images right (n = {clean['n']:,}, seed {made['made']['seed']}" in measured
    assert f"({described['parameters']:,} parameters)" in measured
    page = text_of("docs/adaptive.md")
    margin, plain = (f"{percent(rows[title])}" for title in ("pgd-20 margin", "pgd-20"))
    assert rows["pgd-20 margin"]["survivors"] and rows["autoattack"]["survivors"]
    left = f"PGD-20 leaves {plain}, the margin loss on these {margin}, and AutoAttack on what is left then {strongest}"
    assert f"of {clean['n']:,} images {left}; clean {spanned(clean)}" in page
    before = card("cifar10/classifier-at-one-step")
    earlier = {row["title"]: row for row in before["test"]["rows"]}
    assert f"keeps {spanned(earlier['autoattack'])}, clean {spanned(earlier['clean'])} (card" in page


def test_figures_of_jointly_trained_pairs_are_those_of_the_table() -> None:
    readme = text_of("README.md")
    page = text_of("docs/adaptive.md")
    made = results("adaptive")
    entries = {entry["name"]: entry for entry in made["defences"]}

    (control,) = (name for name in entries if name.endswith("cifar10_at_longer"))
    shown = {control: "it, trained on alone for 300 steps more"}
    low, high = (signed(end) for end in entries[control]["paired"]["cifar10/classifier-at"]["white_box"]["ci95"])
    gain = signed(entries[control]["paired"]["cifar10/classifier-at"]["white_box"]["gain"])
    assert f"has over it: {gain} points [{low}, {high}]" in page
    for name, entry in entries.items():
        own = entry.get("its_classifier")
        cells = [in_a_table(entry[key]) for key in ("clean", "gray_box", "black_box", "white_box")]
        cells += [in_a_table(own["white_box"]) if own else "–", f"{entry['images_per_second']:,.0f}"]
        assert f"| {shown.get(name, f'`{name}`')} | {' | '.join(cells)} |" in readme
        if own is None:
            continue
        paired = entry["paired"]["cifar10/classifier-at"]
        gains = []
        for kind in ("clean", "white_box"):
            low, high = (signed(end) for end in paired[kind]["ci95"])
            gains.append(f"{signed(paired[kind]['gain'])} [{low}, {high}]")
        assert f"`{name}` {gains[0]} points clean and {gains[1]} in the worst case" in page


def test_figures_of_autoattack_through_the_pairs_are_those_of_the_table() -> None:
    measured = text_of("docs/measured.md")
    page = text_of("docs/adaptive.md")
    made = results("adaptive-autoattack")
    entries = {entry["name"]: entry for entry in made["defences"]}

    bare, trn, gan = (entries[f"cifar10/{name}"] for name in ("classifier-at", "trn-robust", "gan-robust"))
    figures = [in_a_table(entry["white_box"]) for entry in (bare, trn, gan)]
    said = "leaves `cifar10/classifier-at` {}, `cifar10/trn-robust` {} and `cifar10/gan-robust` {} percent"
    assert said.format(*figures) in measured
    gains = []
    for entry in (trn, gan):
        found = entry["paired"]["cifar10/classifier-at"]["white_box"]
        low, high = found["ci95"]
        assert low < 0 < high  # neither a gain nor a loss
        gains.append(f"{signed(found['gain'])} [{signed(low)}, {signed(high)}]")
    assert f"{gains[0]} and {gains[1]} points over the classifier" in measured
    taken: dict[str, list[int]] = {}
    for entry in (bare, trn, gan):
        for row in entry["survivors"]:
            fell = row["tried"] - round(entry["clean"]["n"] * row["accuracy"])
            if row["view"] in ("detached", "oblivious"):
                taken.setdefault(row["title"], []).append(fell)
    assert f"APGD-CE of 100 steps takes {'{}, {} and {}'.format(*taken['apgd-ce-100'])} more" in page
    assert f"APGD-T {'{}, {} and {}'.format(*taken['apgd-t-100'])}, FAB-T and Square 0, 0 and 0" in page
    assert taken["fab-t-100"] == taken["square-1000"] == [0, 0, 0]
