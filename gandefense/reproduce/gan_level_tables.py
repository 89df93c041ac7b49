"""The tables of tools/reproduce.py gan-levels and gan-celeba, from the figures that `gan_levels` put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gandefense.evaluation.wording import UNKNOWN, Table, interval, number, percent, pixels, shown_name

if TYPE_CHECKING:
    from gandefense.reproduce.gan_levels import GANLevelsConfig

# Tables 3 (CIFAR-10) and 4 (CelebA) of Haque & Kang 2021, as printed: neither norm, range nor steps are given there, and the
# rivals' figures are not said to be their authors' or measured. Table 4's rival stands there as "CelebANet".
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "cifar10": [
        {"attack": None, "level": 0.2, "none": 0.482, "ours": 0.936, "rivals": {"MagNet": 0.792, "DDSA": 0.895}},
        {"attack": None, "level": 0.3, "none": 0.374, "ours": 0.894, "rivals": {"MagNet": 0.688, "DDSA": 0.853}},
        {"attack": None, "level": 0.4, "none": 0.268, "ours": 0.871, "rivals": {"MagNet": 0.564, "DDSA": 0.816}},
    ],
    "celeba": [
        {"attack": "FGSM", "level": 0.3, "none": 0.624, "ours": 0.927, "rivals": {"CelebANet": 0.912}},
        {"attack": "PGD", "level": 0.3, "none": 0.597, "ours": 0.936, "rivals": {"CelebANet": 0.923}},
    ],
}
STUDENT = ("distilled classifier", "GAN + distilled classifier")  # columns beside those of networks
RESTORED = ("ISMN only", "one round", "all rounds")  # columns of the quality table, in the order of `gan_levels.parts_of`
GOALS = {"true": "true label", "predicted": "predicted label", "random_target": "random other class"}


def shown_eps(attack: str, eps: float) -> str:
    """A level as it is, a small budget of a searched attack as "8/255"."""
    return f"{eps:g}" if attack.startswith("gaussian") or eps >= 0.1 else pixels(eps)


def level_table(rows: list[dict[str, Any]], published: list[dict[str, Any]], names: list[str], config: GANLevelsConfig) -> Table:
    """Every reading at every level, every threat; below, what was published."""
    header = ["reading of “level”", "level", "threat", *(shown_name(name) for name in names), "published rivals"]
    lines = []
    for row in rows:
        level = UNKNOWN if row["level"] is None else f"{row['level']:g}"
        threat = row["threat"] or UNKNOWN
        if row["threat"] in ("black_box", "white_box"):
            threat += f", {row['view']}"
        lines.append([row["reading"], level, threat, *(interval(row["accuracy"].get(name)) for name in names), UNKNOWN])
    for entry in published:
        about = f"published, {entry['attack'] or 'reading not given'}"
        own = {names[0]: percent(entry["none"]), (STUDENT[1] if STUDENT[1] in names else names[-1]): percent(entry["ours"])}
        rivals = ", ".join(f"{name} {percent(share)}" for name, share in entry["rivals"].items())
        lines.append([about, f"{entry['level']:g}", "not given", *(own.get(name, UNKNOWN) for name in names), rivals])
    note = (
        f"Accuracy before {config.classifier}, 95 % intervals. gray_box: made against the classifier, ignorant of the restorer. "
        "black_box: examples of another classifier. white_box: the attacker differentiates the restorer too; its column for the "
        "classifier alone is the same attack on the classifier alone. Noise is nobody's attack and has no threat but the first. "
        "The columns of the distilled classifier are attacks against that one. "
        "Restorers as they stand: an image that a detector rejects counts as what the classifier says of it. The lines "
        "“published” are the paper's own figures, with its own classifier and without its reading; the last column holds those "
        "of its rivals."
    )
    return Table("levels", "Attack levels", note, header, lines)


def control_table(rows: list[dict[str, Any]], names: list[str]) -> Table:
    """FGSM with the true label and without it."""
    header = ["level", "the attacker's loss is that of the", *(shown_name(name) for name in names)]
    lines = [
        [f"{row['level']:g}", GOALS[row["labels"]], *(interval(row["accuracy"].get(name)) for name in names)] for row in rows
    ]
    note = (
        "One step from the true label's loss can write that label into the image (label leaking, Kurakin et al. 2017): a "
        "restorer trained on such images then reads it. Accuracy that is much higher under the true label than under the others "
        "is leaked. FGSM, gray_box."
    )
    return Table("controls", "FGSM: is the label leaked?", note, header, lines)


def rounds_table(rows: list[dict[str, Any]], probes: list[str]) -> Table:
    """How many rounds help."""
    header = ["rounds, at most", *probes]
    lines = [[str(row["rounds"]), *(interval(row["accuracy"][name]) for name in probes)] for row in rows]
    note = "The same networks, gray_box; an image leaves the loop as soon as it passes and two versions agree."
    return Table("rounds", "How many rounds help", note, header, lines)


def parts_table(rows: list[dict[str, Any]], probes: list[str], *, has_student: bool) -> Table:
    """Which part helps."""
    lines = [[row["part"], *(interval(row["accuracy"][name]) for name in probes)] for row in rows]
    note = (
        "Gray_box: every attack is made against the classifier that the line has. Lines with the same classifier have the same "
        "detector and threshold; a GAN defence that brings its distilled classifier brings its own detector, too. "
    )
    if not has_student:
        note += "No distilled classifier was named (student=RUN_FOLDER), so its lines are missing."
    return Table("parts", "Which part helps", note, ["part", *probes], lines)


def quality_table(rows: list[dict[str, Any]]) -> Table:
    """Attacked and restored against clean images."""
    kinds = ("attacked", *RESTORED)
    header = ["attack", *(f"PSNR {kind}" for kind in kinds), *(f"LPIPS {kind}" for kind in kinds)]
    lines = []
    for row in rows:
        psnr = [number(row.get(kind, {}).get("psnr"), 2) for kind in kinds]
        lpips = [number(row.get(kind, {}).get("lpips"), 4) for kind in kinds]
        lines.append([row["attack"], *psnr, *lpips])
    note = "Against the clean image, mean over the images that the attack changed: PSNR in dB, higher is nearer; LPIPS, lower is."
    return Table("quality", "How near to the clean image", note, header, lines)
