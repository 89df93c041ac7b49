"""The figures in docs are those of the committed results and cards, computed here; test_readme.py has the README's."""

from __future__ import annotations

from tests.helpers.figures import (
    card,
    in_a_table,
    percent,
    results,
    signed,
    spanned,
    text_of,
)


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
