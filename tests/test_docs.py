"""The pages in docs/: their commands are understood as they stand, what they name is there, generated pages are up to date.

That commands and Python blocks run is looked at in test_docs_commands.py.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from gandefense import config, restoring
from gandefense.attacks.noise import NOISES
from gandefense.attacks.suite import NAMES
from gandefense.attacks.threats import THREATS, VIEWS
from gandefense.command_line import split_arguments
from gandefense.evaluation import checks, curve_checks, settings
from gandefense.evaluation.settings import EvaluateConfig
from gandefense.restorers.base import Restoration
from gandefense.training.classifier import ClassifierConfig
from gandefense.training.gan_config import GANConfig
from gandefense.training.joint import JointConfig
from gandefense.training.trn import TRNConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
OWN_PARTS, THREATS_PAGE = ROOT / "docs" / "your-own-parts.md", ROOT / "docs" / "threats-and-checks.md"
REPORT_PAGE = ROOT / "docs" / "reading-the-report.md"
API = runpy.run_path(str(ROOT / "tools" / "api_pages.py"))
SCHEMAS = {
    "evaluate": EvaluateConfig,
    "train_classifier": ClassifierConfig,
    "train_trn": TRNConfig,
    "train_gan": GANConfig,
    "train_joint": JointConfig,
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def commands(page: Path) -> list[str]:
    """Commands in `sh` blocks whose words can be checked without running them."""
    lines = [line.strip() for block in blocks(page, "sh") for line in block.splitlines()]
    known = [f"python tools/{name}.py " for name in (*SCHEMAS, "restore_images")]
    return [line for line in lines if line.startswith(tuple(known)) and "resume=" not in line and "my_package" not in line]


def rows(page: Path, first: str) -> list[list[str]]:
    """The rows of the table whose header begins with a word, as cells."""
    text = page.read_text(encoding="utf-8")
    table = text[text.index(f"\n| {first} |") :].split("\n\n")[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


def words(cells: list[str]) -> set[str]:
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def test_every_page_is_on_the_map() -> None:
    linked = set(re.findall(r"\]\(([\w./-]+)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert {str(page.relative_to(ROOT / "docs")) for page in PAGES} - {"index.md"} <= linked


@pytest.mark.parametrize(("page", "command"), [(page, line) for page in TEXTS for line in commands(page)])
def test_commands_are_understood(page: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    python, tool, *arguments = shlex.split(command)
    assert python == "python" and (ROOT / tool).is_file()
    name = Path(tool).stem
    if name == "restore_images":
        asked = runpy.run_path(str(ROOT / tool))["parser"]().parse_args(arguments)
        if "RUN_FOLDER" not in command:
            restoring.load(asked.restorer, asked.classifier)
        return
    path, overrides = split_arguments(arguments, "usage: python tools/x.py CONFIG\n")
    assert path is not None
    built = config.load(SCHEMAS[name], path, overrides)  # which refuses unknown keys and values of a wrong type
    if name == "evaluate" and "RUN_FOLDER" not in command:
        settings.check(built)


def test_every_kind_of_command_is_met() -> None:
    assert {shlex.split(line)[1] for page in PAGES for line in commands(page)} >= {
        "tools/evaluate.py",
        "tools/train_trn.py",
        "tools/restore_images.py",
    }


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:tools|configs|gandefense)/[\w/.-]+[\w/]", text))
    assert not [name for name in named if not (ROOT / name).exists()]
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        if file.startswith("https://"):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


def test_generated_pages_are_up_to_date() -> None:
    late = [str(path.relative_to(ROOT)) for path in API["out_of_date"]()]
    assert not late, f"the source has changed; refresh these pages with: {API['COMMAND']}"
    assert {path.name for path in (ROOT / "docs" / "api").iterdir()} == {f"{title}.md" for title in API["PAGES"]}


def test_every_config_and_every_key_is_explained() -> None:
    assert set(API["CONFIGS"]) == {schema.__name__ for schema in SCHEMAS.values()}
    source = API["Source"]()
    for name in API["CONFIGS"]:
        found = source.keys(name)
        unexplained = [key for key, _, _, about in found if not about]
        assert not unexplained, f"give each of these keys of {name} a comment in its class, then {API['COMMAND']}"
    built = config.to_dict(config.build(GANConfig, {}))
    assert [key for key, *_ in source.keys("GANConfig")] == flat(built), "as OmegaConf sees them"


def flat(values: dict, prefix: str = "") -> list[str]:
    """Nested keys with dots, in their order."""
    keys = []
    for key, value in values.items():
        keys += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return keys


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page, "yaml")], ids=lambda page: page.name)
def test_configs_in_the_text_are_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        settings.check(config.build(EvaluateConfig, yaml.safe_load(block)))


def test_fields_of_the_results_are_explained() -> None:
    results = json.loads((ROOT / "results" / "cifar10_joint.json").read_text(encoding="utf-8"))
    text = REPORT_PAGE.read_text(encoding="utf-8").split("## results.json", 1)[1]

    def explained(first: str) -> set[str]:
        table = text.split(f"{first}:\n\n", 1)[1].split("\n\n", 1)[0]
        return words([line.strip("|").split(" | ")[0] for line in table.splitlines()[2:]])

    # these results are older than "levels" and "trained_for"
    assert words([row[0] for row in rows(REPORT_PAGE, "field")]) == {*results, "levels", "trained_for"}
    assert explained("An entry of `rows`") == set(results["rows"][0])
    assert explained("An entry of `worst_case`") == set(results["worst_case"]["cifar10/gan"]["white_box"])
    assert explained("An entry of `detection`") == set(results["detection"]["cifar10/gan"])


def test_tables_name_what_the_package_knows() -> None:
    assert words([row[0] for row in rows(THREATS_PAGE, "threat")]) == set(THREATS)
    assert words([row[0] for row in rows(THREATS_PAGE, "view")]) == set(VIEWS)
    assert words([row[0] for row in rows(THREATS_PAGE, "name")]) == {*NAMES, *NOISES}
    assert words([row[0] for row in rows(OWN_PARTS, "field")]) == set(Restoration._fields)
    assert [row[0].strip("`") for row in rows(OWN_PARTS, "column")] == list(restoring.COLUMNS)


def test_every_check_is_explained() -> None:
    source = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (checks, curve_checks))
    known = set(re.findall(r'name = "(\w+)"', source)) | set(re.findall(r'finding\(\s*"(\w+)"', source))
    assert len(known) > 10
    assert words([row[0] for row in rows(THREATS_PAGE, "check")]) == known


RIVALS = ROOT / "results" / "rivals.md"


def test_the_defences_page_shows_the_tables_that_the_command_wrote() -> None:
    page = (ROOT / "docs" / "defences.md").read_text(encoding="utf-8")
    shown = 0
    for section in RIVALS.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, *lines = section.splitlines()
        if title in ("Pictures", "As the literature says?", "How it was made"):
            continue
        table = "\n".join(line for line in lines if line.startswith("|"))
        assert table.count("\n") >= 2 and table in page, title
        shown += 1
    assert shown >= 2


def test_figures_of_other_budgets_in_the_readme_are_those_of_the_results() -> None:
    made = json.loads((ROOT / "results" / "cifar10_budgets.json").read_text(encoding="utf-8"))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())

    def spoken(restorer: str) -> str:
        found = [row for row in made["rows"] if (row["restorer"], row["attack"]) == (restorer, "pgd")]
        first = [f"{100 * row['accuracy']:.1f}" for row in sorted(found, key=lambda row: row["eps"])]
        return f"{', '.join(first[:-1])} and {first[-1]} %"

    assert f"PGD-40 at 2, 4, 8, 12 and 16/255: TRN {spoken('cifar10/trn')}, the GAN {spoken('cifar10/gan')} (" in readme
    widest = max(
        (row["ci95"][1] - row["ci95"][0]) / 2 for row in made["rows"] if row["attack"] == "pgd" and row["accuracy"] > 0.5
    )
    assert f"± {100 * widest:.1f} points at most" in readme
    detected = {round(255 * entry["eps"]): entry["auroc"] for entry in made["detection"]["cifar10/trn"]["attacks"]}
    assert f"AUROC {detected[2]:.3f}, at 8/255 {detected[8]:.3f}" in readme
    assert min(detected, key=detected.get) == 2


def test_figures_of_unseen_attacks_in_the_readme_are_those_of_the_results() -> None:
    made = json.loads((ROOT / "results" / "cifar10_unseen.json").read_text(encoding="utf-8"))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = {(row["title"], row["threat"]): row for row in made["rows"] if row["restorer"] == "cifar10/trn"}

    def spoken(title: str, threat: str = "gray_box") -> str:
        row = rows[title, threat]
        return f"{100 * row['accuracy']:.1f} % [{100 * row['ci95'][0]:.1f}, {100 * row['ci95'][1]:.1f}]"

    said = (
        f"AutoAttack on its classifier: {spoken('autoattack')}; Square with 1,000 queries {spoken('square-1000')}; "
        f"PGD-20 of another classifier {spoken('pgd-20', 'black_box')}; DeepFool {spoken('deepfool-50')}; C&W {spoken('cw-30')} ("
    )
    assert said in readme
    order = [("autoattack", "gray_box"), ("square-1000", "gray_box"), ("pgd-20", "black_box")]
    order += [("deepfool-50", "gray_box"), ("cw-30", "gray_box")]
    alone = [f"{100 * rows[key]['undefended_accuracy']:.1f}" for key in order]
    assert f"the classifier alone {', '.join(alone[:-1])} and {alone[-1]} %)" in readme
    detected = {entry["title"]: entry["auroc"] for entry in made["detection"]["cifar10/trn"]["attacks"]}
    assert f"(AUROC {detected['deepfool-50']:.3f} and {detected['cw-30']:.3f})" in readme
    controls = [100 * row["accuracy"] for (title, _), row in rows.items() if title.endswith("(predicted)")]
    assert len(controls) == 5 and f"leave {min(controls):.1f} to {max(controls):.1f} % (n = 1,000" in readme


def test_figures_of_fashion_mnist_in_the_readme_are_those_of_the_results() -> None:
    made = json.loads((ROOT / "results" / "fashion_mnist_quick.json").read_text(encoding="utf-8"))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = {(row["title"], row["view"]): row for row in made["rows"] if row["restorer"] == "fashion_mnist/trn"}

    def spoken(title: str, view: str = "oblivious") -> str:
        row = rows[title, view]
        return f"{100 * row['accuracy']:.1f} % [{100 * row['ci95'][0]:.1f}, {100 * row['ci95'][1]:.1f}]"

    attacks = ("fgsm", "pgd-20", "mim-10")
    alone = "{:.1f}, {:.1f} and {:.1f} %".format(*(100 * rows[title, "oblivious"]["undefended_accuracy"] for title in attacks))
    bare = f"{100 * made['classifier']['accuracy']:.1f} %"
    clean = f"{100 * rows['clean', 'oblivious']['accuracy']:.1f} %"
    assert f"keeps {clean} of clean images right (its classifier alone {bare}), and at 8/255 " in readme
    assert f"at 8/255 {spoken('fgsm')} under FGSM" in readme
    assert f"{spoken('pgd-20')} under PGD-20 and {spoken('mim-10')} under MIM-10 (alone {alone})" in readme
    assert f"PGD-20 through `detached` leaves {spoken('pgd-20', 'detached')}" in readme
    assert any(check["name"] == "suspiciously_high" and check["fired"] for check in made["checks"])


def test_figures_of_another_victim_in_the_readme_are_those_of_the_results() -> None:
    made = json.loads((ROOT / "results" / "cifar10_other_victim.json").read_text(encoding="utf-8"))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = {(row["restorer"], row["title"]): row for row in made["rows"]}

    def spoken(restorer: str, title: str) -> str:
        row = rows[restorer, title]
        return f"{100 * row['accuracy']:.1f} % [{100 * row['ci95'][0]:.1f}, {100 * row['ci95'][1]:.1f}]"

    one, several = "cifar10/trn", "cifar10/trn-several"
    clean = {name: f"{100 * rows[name, 'clean']['accuracy']:.1f} %" for name in (one, several)}
    alone = f"{100 * made['classifier']['accuracy']:.1f} % without it"
    assert f"leaves clean images alone ({clean[one]} of them are right, {alone}) and undoes little: " in readme
    worst = {name: f"{100 * made['worst_case'][name]['gray_box']['accuracy']:.1f} % in the gray_box worst case" for name in clean}
    assert (
        f"undoes little: {spoken(one, 'pgd-40')} under PGD-40 at 8/255, {spoken(one, 'mim-20')} under MIM-20, {worst[one]}"
        in readme
    )
    control = spoken(several, "pgd-40 (predicted)")
    assert f"{clean[several]} clean, {spoken(several, 'pgd-40')} under PGD-40, {control} with the predicted label" in readme
    assert f"instead of the true one, {spoken(several, 'mim-20')} under MIM-20, {worst[several]} (n = 1,000" in readme
    assert set(made["trained_for"].values()) == {"cifar10/classifier"} and made["classifier"]["name"] == "cifar10/surrogate"


def test_figures_at_the_gans_levels_in_the_readme_are_those_of_the_results() -> None:
    text, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("results/gan-levels.md", "README.md"))
    section = text.split("## Which part helps\n")[1].split("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    assert table.count("\n") > 2 and table in readme
    made = json.loads((ROOT / "results" / "gan-levels.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "reproducing-the-papers.md").read_text(encoding="utf-8")
    noisy = [row["accuracy"] for row in made["levels"] if row["reading"] == "gaussian[-1,1]"]
    for column, said in (("cifar10/gan", "`cifar10/gan`: "), ("GAN + distilled classifier", "with a distilled classifier ")):
        assert said + ", ".join(f"{100 * row[column]['accuracy']:.1f}" for row in noisy) + " %" in page

    faces = json.loads((ROOT / "results" / "celeba128_levels.json").read_text(encoding="utf-8"))
    spoken = " ".join(readme.split())
    found = {(row["restorer"], row["threat"], row["attack"], row["labels"]): row for row in faces["rows"]}

    def share(restorer: str, threat: str, attack: str) -> str:
        row = found[restorer, threat, attack, "true"]
        assert row["n"] == 330
        return f"{100 * row['accuracy']:.1f} % [{', '.join(f'{100 * end:.1f}' for end in row['ci95'])}]"

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
    worse = [share(who, "black_box", "fgsm").split(" %")[0] for who in ("celeba128/gan", "none")]
    assert "({} and {} %)".format(*worse) in spoken
    known = json.loads((ROOT / "results" / "celeba128_white_box.json").read_text(encoding="utf-8"))["rows"]
    (row,) = [row for row in known if (row["restorer"], row["threat"]) == ("celeba128/gan", "white_box")]
    low, high = (f"{100 * end:.1f}" for end in row["ci95"])
    assert (
        f"differentiates the defence leaves {100 * row['accuracy']:.1f} % [{low}, {high}] at 8/255" in spoken and row["n"] == 100
    )


def test_figures_of_rivals_in_sentences_are_those_of_the_results_and_cards() -> None:
    made = json.loads((ROOT / "results" / "rivals.json").read_text(encoding="utf-8"))
    rows = {entry["name"]: entry for entry in (*made["restorers"], *made["classifiers"])}
    worst = max((entry["white_box_worst"] for entry in made["restorers"][1:]), key=lambda figure: figure["accuracy"])
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())

    def percent(figure: dict[str, float]) -> str:
        return f"{100 * figure['accuracy']:.1f} %"

    def spanned(figure: dict[str, float]) -> str:
        return f"{percent(figure)} [{', '.join(f'{100 * end:.1f}' for end in figure['ci95'])}]"

    gain = made["feature_denoising"]["gains"]["apgd"]
    low, high = (f"{100 * end:+.1f}".replace("-", "−") for end in gain["ci95"])
    assert f"keeps more than {spanned(worst)} in the white_box worst case" in readme
    assert f"denoiser {spanned(rows['cifar10/denoiser']['pgd'])} of PGD-20, JPEG {spanned(rows['jpeg']['pgd'])})" in readme
    distilled, robust = rows["cifar10/distilled-small"], rows["cifar10/pgd-small"]
    assert f"keeps {spanned(distilled['pgd'])} under PGD-20 and {spanned(distilled['autoattack'])} under AutoAttack" in readme
    assert f"keeps {spanned(robust['autoattack'])} there, at {percent(robust['clean']).removesuffix(' %')} % clean" in readme
    assert f"adds {100 * gain['mean']:+.1f} points [{low}, {high}]" in readme
    trained = ("trades-small", "alp-small", "adversarial-small", "fgsm-small")
    others = [spanned(rows[f"cifar10/{name}"]["autoattack"]) for name in trained]
    assert "TRADES {}, logit pairing {}, one step from a random start {}, FGSM training {}".format(*others) in readme


def test_figures_of_adversarial_training_are_those_of_the_results_and_the_card() -> None:
    made = json.loads((ROOT / "results" / "cifar10_at.json").read_text(encoding="utf-8"))
    card = json.loads((ROOT / "gandefense" / "weights" / "cifar10" / "classifier-at.json").read_text(encoding="utf-8"))
    rows = {row["title"]: row for row in made["rows"] if row["threat"] == "white_box"}
    clean = next(row for row in made["rows"] if row["attack"] == "none")

    def spanned(row: dict[str, Any]) -> str:
        return f"{100 * row['accuracy']:.1f} % [{', '.join(f'{100 * end:.1f}' for end in row['ci95'])}]"

    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    strongest = spanned(rows["autoattack"])
    assert f"keeps {spanned(rows['pgd-20'])} under PGD-20 and {strongest} under AutoAttack at 8/255" in readme
    assert f"with {spanned(clean)} of clean images right (n = {clean['n']:,}, seed {made['made']['seed']}" in readme
    assert f"({card['parameters']:,} parameters)" in readme
    page = " ".join((ROOT / "docs" / "adaptive.md").read_text(encoding="utf-8").split())
    assert f"it keeps {strongest} under AutoAttack" in page
    margin, plain = (f"{100 * rows[title]['accuracy']:.1f} %" for title in ("pgd-20 margin", "pgd-20"))
    assert f"the margin loss alone leaves {margin}, PGD-20 {plain}; clean {spanned(clean)}" in page
    before = json.loads((ROOT / "gandefense" / "weights" / "cifar10" / "classifier-at-one-step.json").read_text(encoding="utf-8"))
    earlier = {row["title"]: row for row in before["test"]["rows"]}
    assert f"keeps {spanned(earlier['autoattack'])}, clean {spanned(earlier['clean'])} (card" in page


def test_figures_of_jointly_trained_pairs_are_those_of_the_table() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    page = " ".join((ROOT / "docs" / "adaptive.md").read_text(encoding="utf-8").split())
    made = json.loads((ROOT / "results" / "adaptive.json").read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in made["defences"]}

    def spanned(figure: dict[str, Any]) -> str:
        return f"{100 * figure['accuracy']:.1f} [{', '.join(f'{100 * end:.1f}' for end in figure['ci95'])}]"

    def signed(share: float) -> str:
        return f"{100 * share:+.1f}".replace("-", "−")

    (control,) = (name for name in entries if name.endswith("cifar10_at_longer"))
    shown = {control: "it, trained on alone for 300 steps more"}
    low, high = (signed(end) for end in entries[control]["paired"]["cifar10/classifier-at"]["white_box"]["ci95"])
    gain = signed(entries[control]["paired"]["cifar10/classifier-at"]["white_box"]["gain"])
    assert f"has over it: {gain} points [{low}, {high}]" in page
    for name, entry in entries.items():
        own = entry.get("its_classifier")
        cells = [spanned(entry[key]) for key in ("clean", "gray_box", "black_box", "white_box")]
        cells += [spanned(own["white_box"]) if own else "–", f"{entry['images_per_second']:,.0f}"]
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
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    page = " ".join((ROOT / "docs" / "adaptive.md").read_text(encoding="utf-8").split())
    made = json.loads((ROOT / "results" / "adaptive-autoattack.json").read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in made["defences"]}

    def spanned(figure: dict[str, Any]) -> str:
        return f"{100 * figure['accuracy']:.1f} [{', '.join(f'{100 * end:.1f}' for end in figure['ci95'])}]"

    def signed(share: float) -> str:
        return f"{100 * share:+.1f}".replace("-", "−")

    bare, trn, gan = (entries[f"cifar10/{name}"] for name in ("classifier-at", "trn-robust", "gan-robust"))
    figures = [spanned(entry["white_box"]) for entry in (bare, trn, gan)]
    said = "leaves `cifar10/classifier-at` {}, `cifar10/trn-robust` {} and `cifar10/gan-robust` {} percent"
    assert said.format(*figures) in readme
    gains = []
    for entry in (trn, gan):
        found = entry["paired"]["cifar10/classifier-at"]["white_box"]
        low, high = found["ci95"]
        assert low < 0 < high  # neither a gain nor a loss
        gains.append(f"{signed(found['gain'])} [{signed(low)}, {signed(high)}]")
    assert f"{gains[0]} and {gains[1]} points over the classifier" in readme
    taken: dict[str, list[int]] = {}
    for entry in (bare, trn, gan):
        for row in entry["survivors"]:
            fell = row["tried"] - round(entry["clean"]["n"] * row["accuracy"])
            if row["view"] in ("detached", "oblivious"):
                taken.setdefault(row["title"], []).append(fell)
    assert f"APGD-CE of 100 steps takes {'{}, {} and {}'.format(*taken['apgd-ce-100'])} more" in page
    assert f"APGD-T {'{}, {} and {}'.format(*taken['apgd-t-100'])}, FAB-T and Square 0, 0 and 0" in page
    assert taken["fab-t-100"] == taken["square-1000"] == [0, 0, 0]
