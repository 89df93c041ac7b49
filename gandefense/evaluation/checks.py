"""Checks printed with every table: signs that an attack was too weak, or a claim too strong; each said in words."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.attacks.suite import MANY_STEPS, ONE_STEP, frozen
from gandefense.evaluation import curve_checks
from gandefense.evaluation.cells import NO_RESTORER
from gandefense.evaluation.curve_checks import Figure, Finding, finding
from gandefense.evaluation.metrics import clearly_above
from gandefense.evaluation.wording import gain, percent, pixels

ZERO_GRADIENT_LIMIT = 0.05  # more exact zeros than this blind an attack noticeably
FEW_IMAGES = 1000  # below this, 95 % intervals are wider than about ±3 points
LEVEL = 0.05  # of McNemar's test
SUSPICIOUS = 0.15  # what a standard classifier keeps in the worst white_box case, and a broken defence does not
TELLING_EPS = 4 / 255  # of smaller budgets a standard classifier survives some


def zero_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Share of exact zeros in the cross-entropy's gradient, image by image.

    Args:
        network: images → logits (B, K), what an attacker differentiates.
        images: (B, C, H, W) in [0, 1].
        labels: (B,) int64.

    Returns:
        (B,) in [0, 1]; 1 where the gradient does not exist at all.
    """
    with frozen(network), torch.enable_grad():
        point = images.detach().clone().requires_grad_(True)
        loss = F.cross_entropy(network(point).float(), labels, reduction="sum")
        if not loss.requires_grad:  # the network cut the graph
            return torch.ones(len(images), device=images.device)
        (gradient,) = torch.autograd.grad(loss, point, allow_unused=True)
    if gradient is None:
        return torch.ones(len(images), device=images.device)
    return ((gradient == 0) | ~gradient.isfinite()).flatten(1).float().mean(1)


def static_rule(restorer: str, defended: Figure | None, bare: Figure | None) -> Finding:
    """A defence must keep more than the classifier alone when the attacker knows it; both are worst cases.

    McNemar's test decides where `defended` carries it, because both met the same images; else the intervals do.
    """
    name = "static_rule"
    if defended is None or bare is None:
        return finding(
            name, False, f"{restorer}: no white_box attack counts towards a worst case, so whether it holds is not measured."
        )
    kept, alone = percent(defended["accuracy"]), percent(bare["accuracy"])
    said = f"{restorer} keeps {kept} under white_box where the classifier alone keeps {alone}"
    tested = defended.get("mcnemar")
    if tested is None:
        held, by = clearly_above(defended, bare), "the intervals support"
    else:
        held, by = defended["accuracy"] > bare["accuracy"] and tested["p"] < LEVEL, "McNemar's test supports"
        said += f" ({gain(defended, bare['accuracy'])})"
    if held:
        return finding(name, False, f"{said}: a gain that {by}, as far as these attacks go.")
    return finding(name, True, f"{said}: no gain that {by}.")


def one_step_beats_many(subject: str, one: Figure, many: Figure) -> Finding:
    """One step of the same budget must not do more harm than many; figures also carry "title"."""
    after_one, after_many = percent(one["accuracy"]), percent(many["accuracy"])
    said = f"{subject}: {one['title']} leaves {after_one}, {many['title']} of the same eps {after_many}"
    if clearly_above(many, one):
        return finding("one_step_beats_many", True, f"{said}: one step does more harm than many, a sign of masked gradients.")
    return finding("one_step_beats_many", False, f"{said}: many steps do at least as much harm as one, as they should.")


def comparable(ignorant: Figure | None, white: Figure | None) -> bool:
    """Whether both worst cases were measured, and who knows the defence had no smaller a budget, where they tell theirs."""
    if ignorant is None or white is None:
        return False
    return "eps" not in ignorant or "eps" not in white or ignorant["eps"] <= white["eps"]


def white_above_gray(restorer: str, white: Figure | None, gray: Figure | None) -> Finding:
    """Attacks that know the defence must not do worse than those that ignore it; both are worst cases of their own."""
    name = "white_box_above_gray_box"
    if white is None or gray is None:
        return finding(name, False, f"{restorer}: white_box has no worst case of the budget of gray_box to compare.")
    knowing, ignoring = percent(white["accuracy"]), percent(gray["accuracy"])
    said = f"{restorer} keeps {knowing} under the white_box attacks and {ignoring} under the gray_box ones"
    if white["accuracy"] > gray["accuracy"]:
        return finding(name, True, f"{said}: the white_box attacks were the weaker ones, so their figure is no bound.")
    if white["accuracy"] == gray["accuracy"]:
        return finding(name, False, f"{said}: on these images knowing the defence made no difference to the attacker.")
    return finding(name, False, f"{said}: knowing the defence helps the attacker, as it should.")


def black_beats_white(restorer: str, black: Figure | None, white: Figure | None) -> Finding:
    """Who knows the defence must do at least as much harm as who only queries it; both are worst cases of their own."""
    name = "black_box_beats_white_box"
    if black is None or white is None:
        return finding(name, False, f"{restorer}: white_box has no worst case of the budget of black_box to compare.")
    asking, knowing = percent(black["accuracy"]), percent(white["accuracy"])
    said = f"{restorer} keeps {asking} under the black_box attacks and {knowing} under the white_box ones"
    if clearly_above(white, black):
        return finding(name, True, f"{said}: who has no gradients does more harm, a sign that the gradients are masked.")
    return finding(name, False, f"{said}: the black_box attacks do no more harm, as it should be.")


def suspiciously_high(restorer: str, white: Figure, *, adversarial: bool) -> Finding:
    """A standard classifier behind a restorer that no attack breaks has more likely hidden its gradients than held.

    Args:
        restorer: its name.
        white: worst white_box case, with "eps" where it is known.
        adversarial: the classifier was trained on attacked images, which can explain what it keeps.
    """
    name = "suspiciously_high"
    said = f"{restorer} keeps {percent(white['accuracy'])} in its worst white_box case"
    if white["accuracy"] <= SUSPICIOUS:
        return finding(name, False, f"{said}: not suspiciously high.")
    if adversarial:
        return finding(name, False, f"{said}: its classifier was trained adversarially, which can explain that.")
    if white.get("eps", TELLING_EPS) < TELLING_EPS:
        return finding(name, False, f"{said}: the budget, {pixels(white['eps'])}, is too small to be suspicious.")
    return finding(
        name,
        True,
        f"{said}: suspiciously high for a standard classifier. Nothing that was tried broke it, but its gradients may be "
        "masked in a way that these attacks do not get around.",
    )


def randomised(restorer: str, rows: list[Figure], *, random: bool) -> Finding:
    """Where a defence is random, one figure is one draw, an attack must average (EOT), and an attacker may try again."""
    name = "randomised"
    if not random:
        return finding(name, False, f"{restorer}: several passes over the same images agree, so it is taken to be deterministic.")
    mine = [row for row in rows if row["restorer"] == restorer]
    samples = max((row.get("eot_samples") or 1 for row in mine if row["threat"] == "white_box"), default=1)
    said = f"{restorer} is random: passes over the same images differ"
    if samples > 1:
        said += f"; white_box attacks averaged gradients over up to {samples} draws (EOT)"
    else:
        said += "; no white_box attack averaged gradients over draws (EOT), so that their figures are no bound"
    tried = [row for row in mine if row.get("resubmitted_accuracy") is not None and row["attack"] != "none"]
    if tried:
        row = max(tried, key=lambda row: row["accuracy"] - row["resubmitted_accuracy"])
        said += (
            f"; where the worst of {row['resubmissions']} submissions counts, {percent(row['accuracy'])} under {row['title']} "
            f"({row['threat']}, {row['view']}) become {percent(row['resubmitted_accuracy'])}"
        )
    return finding(name, True, f"{said}.")


def probabilities(classifier: str, *, are: bool) -> Finding:
    """A classifier that gives probabilities gets its softmax twice from every attack, which flattens the loss."""
    name = "probabilities"
    if are:
        return finding(
            name,
            True,
            f"{classifier} gives what look like probabilities, not logits: attacks take the softmax of them again, which "
            "flattens their loss; give logits.",
        )
    return finding(name, False, f"{classifier} gives logits, as attacks expect.")


def other_classifier(restorer: str, classifier: str, trained_for: str | None) -> Finding:
    """A restorer may be specific to the classifier that it was trained for; `trained_for` is that one, None if it is this one."""
    name = "other_classifier"
    if trained_for is None:
        return finding(name, False, f"{restorer} stands before {classifier}, for which it was trained.")
    return finding(
        name,
        True,
        f"{restorer} was trained for {trained_for} and stands before {classifier}: these figures say how far it carries over, "
        f"not what it does for a classifier of its own; train it for {classifier} before you judge it there.",
    )


def label_leaking(subject: str, true: Figure, control: Figure, clean: Figure) -> Finding:
    """A perturbation made with the true label may tell a restorer that label; figures also carry "title"."""
    after_true, after_control = percent(true["accuracy"]), percent(control["accuracy"])
    said = f"{subject}: {true['title']} leaves {after_true}, the control {control['title']} {after_control}"
    if clearly_above(true, control):
        return finding("label_leaking", True, f"{said}: the true label may leak through the perturbation.")
    if clearly_above(true, clean):
        clean_said = percent(clean["accuracy"])
        return finding("label_leaking", True, f"{said}, clean images {clean_said}: an attack that helps leaks the true label.")
    return finding("label_leaking", False, f"{said}: no sign that the true label leaks through the perturbation.")


def zero_gradients(restorer: str, view: str, share: float) -> Finding:
    """Where the gradient is exactly zero, a gradient attack is blind."""
    said = f"{restorer}, view {view}: {percent(share)} of the loss gradient's entries are exactly zero"
    if share > ZERO_GRADIENT_LIMIT:
        return finding("zero_gradients", True, f"{said}: attacks are blind there, so accuracy under this view is no bound.")
    return finding("zero_gradients", False, f"{said}: the attacks had gradients to follow.")


def few_images(figures: list[Figure], count: int) -> Finding:
    """How wide the intervals are, and whether there were few images."""
    widest = max((figure["ci95"][1] - figure["ci95"][0]) / 2 for figure in figures)
    said = f"{count} images: the widest 95 % interval is ± {100 * widest:.1f} points"
    if count < FEW_IMAGES:
        return finding(
            "few_images", True, f"{said}; smaller differences mean nothing, and {FEW_IMAGES} images or more would tell."
        )
    return finding("few_images", False, f"{said}.")


def run(results: dict[str, Any]) -> list[Finding]:
    """All checks on a results dictionary that has "rows" and "worst_case"; what it lacks is not checked."""
    rows, worst, classifier = results["rows"], results["worst_case"], results.get("classifier", {})
    restorers = [name for name in dict.fromkeys(row["restorer"] for row in rows) if name != NO_RESTORER]
    findings = []
    if results.get("randomised", {}).get(NO_RESTORER):
        findings.append(randomised(NO_RESTORER, rows, random=True))
    for restorer in restorers:
        mine = worst.get(restorer, {})
        findings.append(static_rule(restorer, mine.get("white_box"), worst.get(NO_RESTORER, {}).get("white_box")))
        white = (mine.get("white_box") or {}).get("own")
        like = {threat: entry["own"] for threat, entry in mine.items() if comparable(entry["own"], white)}
        findings.append(white_above_gray(restorer, white, like.get("gray_box")))
        if "black_box" in mine:
            findings.append(black_beats_white(restorer, like.get("black_box"), white))
        if "white_box" in mine:
            adversarial = classifier.get("adversarial", False)
            findings.append(suspiciously_high(restorer, mine["white_box"], adversarial=adversarial))
        if restorer in results.get("trained_for", {}):
            findings.append(other_classifier(restorer, classifier["name"], results["trained_for"][restorer]))
        if restorer in results.get("randomised", {}):
            findings.append(randomised(restorer, rows, random=results["randomised"][restorer]))
    if "probabilities" in classifier:
        findings.append(probabilities(classifier["name"], are=classifier["probabilities"]))
    # One that attacks only what others left counts their harm as its own, so that it is compared with none.
    whole = [row for row in rows if not row.get("survivors", False)]
    findings += _steps(whole, restorers)
    findings += _leaks(whole)
    findings += curve_checks.run(results.get("curves", {}), results.get("data", {}).get("classes"))
    blind: dict[tuple[str, str], float] = {}  # the blindest attack of each view tells
    for row in rows:
        if row["zero_gradient"] is not None:
            which = (row["restorer"], row["view"])
            blind[which] = max(blind.get(which, 0.0), row["zero_gradient"])
    findings += [zero_gradients(restorer, view, share) for (restorer, view), share in blind.items()]
    findings.append(few_images(rows, rows[0]["n"]))
    return findings


def _steps(rows: list[Figure], restorers: list[str]) -> list[Finding]:
    """Each one-step attack against the strongest of many steps: on the classifier alone, and on each view of a defence.

    Gray-box rows of a defence are left out: those attacks were made against the classifier, and a restorer may well find
    one step harder to undo without hiding any gradient.
    """
    # the classifier alone, as rows of its own
    alone = [
        {**row, "accuracy": row["undefended_accuracy"], "ci95": row["undefended_ci95"]}
        for row in rows
        if row["restorer"] == rows[0]["restorer"] and row["threat"] == "gray_box"
    ]
    groups = [("the classifier alone", alone)]
    for restorer in restorers:
        white = [row for row in rows if row["restorer"] == restorer and row["threat"] == "white_box"]
        for view in dict.fromkeys(row["view"] for row in white):
            groups.append((f"{restorer}, view {view}", [row for row in white if row["view"] == view]))
    findings = []
    for subject, group in groups:
        # a joint attack spends part of its budget on the detector
        usable = [row for row in group if row["labels"] == "true" and row.get("loss") != "joint"]
        for one in usable:
            many = [row for row in usable if row["attack"] in MANY_STEPS and row["eps"] == one["eps"]]
            if one["attack"] in ONE_STEP and many:
                findings.append(one_step_beats_many(subject, one, min(many, key=lambda row: row["accuracy"])))
    return findings


def _leaks(rows: list[Figure]) -> list[Finding]:
    """Each control row against the row of the same attack with true labels."""
    same = ("restorer", "threat", "view", "attack", "eps", "steps", "step_size", "restarts", "loss", "eot_samples", "queries")
    findings = []
    for control in rows:
        if control["labels"] == "true":
            continue
        clean = next(row for row in rows if row["restorer"] == control["restorer"] and row["attack"] == "none")
        for true in rows:
            if true["labels"] == "true" and all(true.get(key) == control.get(key) for key in same):
                subject = f"{control['restorer']}, {control['threat']} ({control['view']})"
                findings.append(label_leaking(subject, true, control, clean))
    return findings
