"""Figures of TRN in the pages' sentences are those of the committed results."""

from __future__ import annotations

from typing import Any

from gandefense.evaluation.metrics import clearly_above
from tests.helpers.figures import (
    USUAL,
    interval,
    percent,
    results,
    spanned,
    speaker,
    text_of,
    under_unseen_attacks,
)


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
