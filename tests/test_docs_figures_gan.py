"""Figures of the GAN defence in the pages' sentences are those of the committed results."""

from __future__ import annotations

from typing import Any

from gandefense.evaluation.metrics import clearly_above
from tests.helpers.figures import (
    ROOT,
    card,
    percent,
    results,
    spanned,
    text_of,
)


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
