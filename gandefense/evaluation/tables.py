"""From what happened to every image to the tables of results.json; no network is run here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gandefense.attacks.level import within_one_step
from gandefense.evaluation import metrics
from gandefense.evaluation.cells import ALSO, NO_RESTORER, Cell

LEAST_FOR_DETECTION = 10  # fewer attacked images say nothing about a detector
MISSING = "missing"  # stands where LPIPS would, on machines without its backbone


@dataclass
class Outcome:
    """What happened to every image of a cell; tensors (N,).

    Attributes:
        right: restorer and classifier together are right; where resubmitted, at the first of the passes.
        undefended: the classifier alone is right under the same attack, made against itself.
        bare_right: the classifier alone is right on the very images of this cell; under white_box these were made
            against the whole defence.
        changed: the attack changed the image.
        score: of the restorer's detector; None for no restorer.
        level: that the restorer estimates, NaN where it estimates none; None for no restorer.
        true_level: of the perturbation, see `attacks.level`.
        attacked: "psnr", "ssim" and, where known, "lpips" of the attacked against the clean image.
        restored: the same of the restored image.
        passes: (N, R) right at each of R resubmissions to a randomised defence; None where nothing is random.
        undefended_passes: the same of the classifier alone.
        zero_gradient: share of the loss gradient's entries that are exactly zero; None where nobody differentiates.
    """

    right: Tensor
    undefended: Tensor
    bare_right: Tensor
    changed: Tensor
    score: Tensor | None = None
    level: Tensor | None = None
    true_level: Tensor | None = None
    attacked: dict[str, Tensor] = field(default_factory=dict)
    restored: dict[str, Tensor] = field(default_factory=dict)
    zero_gradient: float | None = None
    passes: Tensor | None = None
    undefended_passes: Tensor | None = None

    @property
    def stands(self) -> Tensor:
        """Right (N,) however often an image is handed in."""
        return self.right if self.passes is None else self.passes.all(1)

    @property
    def undefended_stands(self) -> Tensor:
        """The same of the classifier alone."""
        return self.undefended if self.undefended_passes is None else self.undefended_passes.all(1)

    def success(self, cell: Cell) -> Tensor:
        """Whether the network that the attack of this cell was made against is wrong."""
        return ~self.right if cell.own else ~self.bare_right


Outcomes = dict[Cell, Outcome]


def rows(outcomes: Outcomes, seed: int) -> list[dict[str, Any]]:
    """The main table, one dictionary per cell."""
    table = []
    for cell, outcome in outcomes.items():
        undefended = mean_accuracy(outcome.undefended, outcome.undefended_passes)
        table.append(
            {
                "restorer": cell.restorer,
                **cell.identity(),
                "n": outcome.right.numel(),
                "tried": int(outcome.changed.sum()) if cell.survivors else outcome.right.numel(),
                "seed": seed,
                **mean_accuracy(outcome.right, outcome.passes),
                "resubmissions": 1 if outcome.passes is None else outcome.passes.shape[1],
                "resubmitted_accuracy": None if outcome.passes is None else outcome.stands.double().mean().item(),
                "undefended_accuracy": undefended["accuracy"],
                "undefended_ci95": undefended["ci95"],
                "mcnemar": None if cell.restorer == NO_RESTORER else metrics.mcnemar(outcome.right, outcome.undefended),
                "zero_gradient": outcome.zero_gradient,
            }
        )
    return table


def mean_accuracy(right: Tensor, passes: Tensor | None) -> dict[str, Any]:
    """Accuracy and interval: of flags (N,), or the mean over resubmissions (N, R) with the interval that N images allow."""
    if passes is None:
        return metrics.accuracy(right)
    share, count = passes.double().mean().item(), len(passes)
    return {"accuracy": share, "ci95": list(metrics.wilson_interval(share * count, count))}


def worst_cases(outcomes: Outcomes) -> dict[str, dict[str, Any]]:
    """Accuracy when an image counts only if it is right clean and under every attack that the attacker may choose.

    A white_box attacker may also ignore the defence or only query it, so that those attacks count for white_box too; `own` is
    the figure of the threat's own attacks alone, without those on survivors of other threats' attacks (None: there are no
    others). Noise is left out, because nobody chose it to do harm, and so are attacks within an L2 ball, whose budget is
    another one, and other threats' attacks beyond the largest budget of this threat's own; the titles left out are named. An
    image that is handed to a randomised defence several times must be right each time. "none" is the classifier alone, each
    attack made against itself, once.
    """
    result: dict[str, dict[str, Any]] = {}
    for restorer in dict.fromkeys(cell.restorer for cell in outcomes):
        mine = {cell: outcome for cell, outcome in outcomes.items() if cell.restorer == restorer}
        for threat in dict.fromkeys(cell.threat for cell in mine):
            if not any(cell.threat == threat and cell.counts for cell in mine):
                continue
            if restorer != NO_RESTORER:
                result.setdefault(restorer, {})[threat] = _worst_case(mine, threat, "stands")
            # Every restorer has met the same attacks on the classifier alone, so that any of them gives this entry.
            result.setdefault(NO_RESTORER, {})[threat] = _worst_case(mine, threat, "undefended_stands")
    return result


def standing(outcomes: Outcomes) -> dict[str, Tensor]:
    """Which images stand in each of `worst_cases`, (N,) bool by "restorer/threat", and which are right clean ("restorer/clean").

    The order is that of the test images.

    With it, two evaluations of the same images can be compared image by image.
    """
    found = {}
    for restorer, by_threat in worst_cases(outcomes).items():
        for threat in by_threat:
            bare = restorer == NO_RESTORER
            holder = next(cell.restorer for cell in outcomes if (bare or cell.restorer == restorer) and cell.threat == threat)
            mine = {cell: outcome for cell, outcome in outcomes.items() if cell.restorer == holder}
            kind = "undefended_stands" if bare else "stands"
            found[f"{restorer}/{threat}"] = _flags(mine, _chosen(mine, threat), kind)
            # Asked once, also of a randomised defence: the clean accuracy is no worst case.
            found[f"{restorer}/clean"] = _flags(mine, {}, "undefended" if bare else "right")
    return found


def _chosen(outcomes: Outcomes, threat: str) -> Outcomes:
    """The attacks that a threat's attacker may choose: the threat's own, and the others' up to the largest of its budgets."""
    limit = max(cell.spec.eps for cell in outcomes if cell.threat == threat and cell.counts)
    within = {cell: outcome for cell, outcome in outcomes.items() if cell.counts and cell.spec.eps <= limit}
    return {cell: outcome for cell, outcome in within.items() if cell.threat in ALSO[threat]}


def _flags(outcomes: Outcomes, chosen: Outcomes, kind: str) -> Tensor:
    """Right clean and under every chosen attack (N,); `kind` names the flags of an Outcome that count."""
    clean = next(outcome for cell, outcome in outcomes.items() if cell.spec is None)
    return metrics.worst_case([getattr(outcome, kind) for outcome in (clean, *chosen.values())])


def _worst_case(outcomes: Outcomes, threat: str, kind: str) -> dict[str, Any]:
    """One entry of `worst_cases`; `kind` names the flags of an Outcome that count."""
    clean = next(outcome for cell, outcome in outcomes.items() if cell.spec is None)
    # Survivors of a threat that includes others have met those others' attacks first, whose harm is not its own.
    mixed = len(ALSO[threat]) > 1
    own = {cell: outcome for cell, outcome in outcomes.items() if cell.threat == threat and cell.counts}
    own = {cell: outcome for cell, outcome in own.items() if not (cell.survivors and mixed)}
    chosen = _chosen(outcomes, threat)
    others = [cell for cell in outcomes if cell.threat in ALSO[threat] and cell.spec and cell not in chosen]
    views = kind == "stands"
    names = []
    for cell in chosen:
        viewed = cell.threat == "black_box" or (views and cell.threat == "white_box")
        names.append(f"{cell.view}: {cell.title}" if viewed else cell.title)

    def figure(cells: Outcomes) -> dict[str, Any]:
        return metrics.accuracy(_flags(outcomes, cells, kind))

    both = [_flags(outcomes, chosen, which) for which in ("stands", "undefended_stands")]
    compared = {"mcnemar": metrics.mcnemar(*both)} if views else {}

    return {
        **figure(chosen),
        **compared,
        "own": {**figure(own), "eps": max(cell.spec.eps for cell in own)} if own else None,
        "n": clean.right.numel(),
        "eps": max(cell.spec.eps for cell in chosen if cell.threat == threat),
        "left_out": [f"{cell.title} {cell.spec.eps:g}" for cell in others],
        "attacks": list(dict.fromkeys(names)),
    }


def detection(outcomes: Outcomes, validation: dict[str, Tensor], rates: list[float]) -> dict[str, Any]:
    """How well each restorer's score tells attacked images from clean ones.

    Clean test images stand against those attacked test images that the attack changed and with which it had success.
    Thresholds come from validation images alone. `accuracy` is given four ways over all images of the attack: with
    nothing ("none"), with the detector alone, the restorer alone, and both; a flagged image counts as right there if the
    attack changed it, and as wrong if it is clean or came back as it was.

    Args:
        outcomes: of all cells.
        validation: restorer → scores of clean validation images.
        rates: false-positive rates to choose thresholds for.
    """
    result = {}
    for restorer, scores in validation.items():
        mine = {cell: outcome for cell, outcome in outcomes.items() if cell.restorer == restorer}
        clean = next(outcome for cell, outcome in mine.items() if cell.spec is None)
        thresholds = {f"{rate:g}": metrics.threshold(scores, rate) for rate in rates}
        entries = []
        for cell, outcome in mine.items():
            if cell.spec is None or cell.survivors:
                continue
            met = outcome.score[outcome.changed & outcome.success(cell)]
            enough = len(met) >= LEAST_FOR_DETECTION
            entries.append(
                {
                    **cell.identity(),
                    "n": len(met),
                    "auroc": metrics.auroc(clean.score, met) if enough else None,
                    "roc": metrics.roc(clean.score, met) if enough else None,
                    "tpr": {rate: metrics.share_above(met, limit) if enough else None for rate, limit in thresholds.items()},
                    "accuracy": {rate: _four_ways(outcome, limit, attacked=True) for rate, limit in thresholds.items()},
                }
            )
        result[restorer] = {
            "validation_n": len(scores),
            "thresholds": thresholds,
            "n_clean": len(clean.score),
            "false_positive_rate": {rate: metrics.share_above(clean.score, limit) for rate, limit in thresholds.items()},
            "clean_accuracy": {rate: _four_ways(clean, limit, attacked=False) for rate, limit in thresholds.items()},
            "attacks": entries,
        }
    return result


def levels(outcomes: Outcomes) -> dict[str, list[dict[str, Any]]]:
    """How well each restorer that estimates attack levels does: over changed images, or over all where nothing attacked."""
    result: dict[str, list[dict[str, Any]]] = {}
    for cell, outcome in outcomes.items():
        if outcome.level is None or cell.survivors or outcome.level.isnan().any():
            continue
        which = torch.ones_like(outcome.changed) if cell.spec is None else outcome.changed
        if not which.any():
            continue
        estimated, true = outcome.level[which], outcome.true_level[which]
        near = metrics.accuracy(within_one_step(estimated, true))
        entry = {**cell.identity(), "n": int(which.sum()), "true": true.double().mean().item()}
        entry |= {"estimated": estimated.double().mean().item(), "within_one_step": near["accuracy"], "ci95": near["ci95"]}
        result.setdefault(cell.restorer, []).append(entry)
    return result


def _four_ways(outcome: Outcome, limit: float, *, attacked: bool) -> dict[str, float]:
    flagged = outcome.score.double() > limit

    hostile = outcome.changed if attacked else torch.zeros_like(flagged)

    def mean(right: Tensor, detector: bool) -> float:
        counted = right if not detector else torch.where(hostile, right | flagged, right & ~flagged)
        return counted.double().mean().item()

    return {
        "none": mean(outcome.bare_right, False),
        "detector": mean(outcome.bare_right, True),
        "restorer": mean(outcome.right, False),
        "both": mean(outcome.right, True),
    }


def restoration(outcomes: Outcomes, *, lpips: bool) -> dict[str, list[dict[str, Any]]]:
    """Mean PSNR, SSIM and LPIPS against the clean image, of attacked and of restored images, over changed images.

    The entry for clean images says what the restorer does to images that need none of it; it has no `attacked` figures.
    """
    result: dict[str, list[dict[str, Any]]] = {}
    for cell, outcome in outcomes.items():
        if cell.restorer == NO_RESTORER or cell.survivors:
            continue
        which = torch.ones_like(outcome.changed) if cell.spec is None else outcome.changed
        attacked = None if cell.spec is None else _means(outcome.attacked, which, lpips)
        restored = _means(outcome.restored, which, lpips)
        entry = {**cell.identity(), "n": int(which.sum()), "attacked": attacked, "restored": restored}
        result.setdefault(cell.restorer, []).append(entry)
    return result


def _means(values: dict[str, Tensor], which: Tensor, lpips: bool) -> dict[str, Any]:
    means: dict[str, Any] = {
        name: values[name][which].double().mean().item() if which.any() else None
        for name in ("psnr", "ssim", "lpips")
        if name in values
    }
    if not lpips:
        means["lpips"] = MISSING
    return means


def curve(cells: list[Cell], passes: list[Tensor], what: str) -> dict[str, Any]:
    """One curve for results.json.

    Args:
        cells: its points.
        passes: flags (N, R) of each point, right at each resubmission.
        what: "eps", "steps" or "eot", the setting that differs between the points.
    """
    name = {"eot": "samples"}.get(what, what)
    points = [
        {name: getattr(cell.spec, what), **mean_accuracy(flags[:, 0], flags)} for cell, flags in zip(cells, passes, strict=True)
    ]
    title = cells[0].spec.attack if what == "steps" else cells[0].title
    fixed = {} if what == "eps" else {"eps": cells[0].spec.eps}
    return {"title": title, "view": cells[0].view, **fixed, "n": len(passes[0]), "points": points}


def json_ready(value: Any) -> Any:
    """The same containers with tuples as lists and numbers that JSON has no word for (NaN, infinities) as None."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
