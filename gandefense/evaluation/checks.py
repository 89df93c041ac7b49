"""Checks printed with every table: signs that an attack was too weak, or a claim too strong; each said in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.attacks.suite import MANY_STEPS, ONE_STEP, frozen
from gandefense.evaluation.settings import NO_RESTORER

ZERO_GRADIENT_LIMIT = 0.05  # more exact zeros than this blind an attack noticeably
FEW_IMAGES = 1000  # below this, 95 % intervals are wider than about ±3 points

Finding = dict[str, Any]  # "name", "fired", "text"
Figure = dict[str, Any]  # at least "accuracy" and "ci95"


def percent(share: float) -> str:
    """0.123 as "12.3 %"."""
    return f"{100 * share:.1f} %"


def _finding(name: str, fired: bool, text: str) -> Finding:
    return {"name": name, "fired": bool(fired), "text": text}


def clearly_above(first: Figure, second: Figure) -> bool:
    """Whether an accuracy lies above another beyond noise: Newcombe's 95 % interval of the difference excludes zero."""
    p, q = first["accuracy"], second["accuracy"]
    return p - q - math.hypot(p - first["ci95"][0], second["ci95"][1] - q) > 0


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
    return (gradient == 0).flatten(1).float().mean(1)


def static_rule(restorer: str, defended: Figure | None, bare: Figure | None) -> Finding:
    """(a) A defence must keep more than the classifier alone when the attacker knows it; both are worst cases."""
    name = "static_rule"
    if defended is None or bare is None:
        return _finding(name, False, f"{restorer}: no white_box attack was asked for, so whether it holds is not measured.")
    kept, alone = percent(defended["accuracy"]), percent(bare["accuracy"])
    said = f"{restorer} keeps {kept} under white_box where the classifier alone keeps {alone}"
    if clearly_above(defended, bare):
        return _finding(name, False, f"{said}: a gain beyond the intervals, as far as these attacks go.")
    return _finding(name, True, f"{said}: no gain that the intervals support.")


def one_step_beats_many(subject: str, one: Figure, many: Figure) -> Finding:
    """(b) One step of the same budget must not do more harm than many; figures also carry "title"."""
    after_one, after_many = percent(one["accuracy"]), percent(many["accuracy"])
    said = f"{subject}: {one['title']} leaves {after_one}, {many['title']} of the same eps {after_many}"
    if clearly_above(many, one):
        return _finding("one_step_beats_many", True, f"{said}: one step does more harm than many, a sign of masked gradients.")
    return _finding("one_step_beats_many", False, f"{said}: many steps do at least as much harm as one, as they should.")


def white_above_gray(restorer: str, white: Figure | None, gray: Figure | None) -> Finding:
    """(c) Attacks that know the defence must not do worse than those that ignore it; both are worst cases of their own."""
    name = "white_box_above_gray_box"
    if white is None or gray is None:
        return _finding(name, False, f"{restorer}: white_box and gray_box were not both asked for, so they are not compared.")
    knowing, ignoring = percent(white["accuracy"]), percent(gray["accuracy"])
    said = f"{restorer} keeps {knowing} under the white_box attacks and {ignoring} under the gray_box ones"
    if white["accuracy"] > gray["accuracy"]:
        return _finding(name, True, f"{said}: the white_box attacks were the weaker ones, so their figure is no bound.")
    return _finding(name, False, f"{said}: knowing the defence helps the attacker, as it should.")


def label_leaking(subject: str, true: Figure, control: Figure, clean: Figure) -> Finding:
    """(d) A perturbation made with the true label may tell a restorer that label; figures also carry "title"."""
    after_true, after_control = percent(true["accuracy"]), percent(control["accuracy"])
    said = f"{subject}: {true['title']} leaves {after_true}, the control {control['title']} {after_control}"
    if clearly_above(true, control):
        return _finding("label_leaking", True, f"{said}: the true label may leak through the perturbation.")
    if clearly_above(true, clean):
        clean_said = percent(clean["accuracy"])
        return _finding("label_leaking", True, f"{said}, clean images {clean_said}: an attack that helps leaks the true label.")
    return _finding("label_leaking", False, f"{said}: no sign that the true label leaks through the perturbation.")


def zero_gradients(restorer: str, view: str, share: float) -> Finding:
    """(e) Where the gradient is exactly zero, a gradient attack is blind."""
    said = f"{restorer}, view {view}: {percent(share)} of the loss gradient's entries are exactly zero"
    if share > ZERO_GRADIENT_LIMIT:
        return _finding("zero_gradients", True, f"{said}: attacks are blind there, so accuracy under this view is no bound.")
    return _finding("zero_gradients", False, f"{said}: the attacks had gradients to follow.")


def few_images(figures: list[Figure], count: int) -> Finding:
    """(f) How wide the intervals are, and whether there were few images."""
    widest = max((figure["ci95"][1] - figure["ci95"][0]) / 2 for figure in figures)
    said = f"{count} images: the widest 95 % interval is ± {100 * widest:.1f} points"
    if count < FEW_IMAGES:
        return _finding(
            "few_images", True, f"{said}; smaller differences mean nothing, and {FEW_IMAGES} images or more would tell."
        )
    return _finding("few_images", False, f"{said}.")


def run(results: dict[str, Any]) -> list[Finding]:
    """All checks on a results dictionary that has "rows" and "worst_case"."""
    rows, worst = results["rows"], results["worst_case"]
    restorers = [name for name in dict.fromkeys(row["restorer"] for row in rows) if name != NO_RESTORER]
    findings = []
    for restorer in restorers:
        mine = worst.get(restorer, {})
        findings.append(static_rule(restorer, mine.get("white_box"), worst.get(NO_RESTORER, {}).get("white_box")))
        own = {threat: entry["own"] for threat, entry in mine.items()}
        findings.append(white_above_gray(restorer, own.get("white_box"), own.get("gray_box")))
    findings += _steps(rows, restorers)
    findings += _leaks(rows)
    for row in _first_of(rows, lambda row: row["zero_gradient"] is not None, ("restorer", "view")):
        findings.append(zero_gradients(row["restorer"], row["view"], row["zero_gradient"]))
    findings.append(few_images(rows, rows[0]["n"]))
    return findings


def _first_of(rows: list[Figure], wanted: Callable[[Figure], bool], keys: tuple[str, ...]) -> list[Figure]:
    """The first wanted row for each combination of keys."""
    first: dict[tuple, Figure] = {}
    for row in rows:
        if wanted(row):
            first.setdefault(tuple(row[key] for key in keys), row)
    return list(first.values())


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
        usable = [row for row in group if row["labels"] == "true"]
        for one in usable:
            many = [row for row in usable if row["attack"] in MANY_STEPS and row["eps"] == one["eps"]]
            if one["attack"] in ONE_STEP and many:
                findings.append(one_step_beats_many(subject, one, min(many, key=lambda row: row["accuracy"])))
    return findings


def _leaks(rows: list[Figure]) -> list[Finding]:
    """Each control row against the row of the same attack with true labels."""
    same = ("restorer", "threat", "view", "attack", "eps", "steps", "step_size", "restarts")
    findings = []
    for control in rows:
        if control["labels"] == "true":
            continue
        clean = next(row for row in rows if row["restorer"] == control["restorer"] and row["attack"] == "none")
        for true in rows:
            if true["labels"] == "true" and all(true[key] == control[key] for key in same):
                subject = f"{control['restorer']}, {control['threat']} ({control['view']})"
                findings.append(label_leaking(subject, true, control, clean))
    return findings
