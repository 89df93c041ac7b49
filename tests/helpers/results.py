"""A results dictionary with everything that an evaluation can fill in; its figures are made up."""

from __future__ import annotations

import functools
from typing import Any

import torch

from gandefense.evaluation import checks, metrics, plots

N, CURVE_N = 1000, 200
TRN, GAN, RANDOM = "cifar10/trn", "cifar10/gan", "runs/00007-random_resize"
EPS = 8 / 255

# title → what is not usual about the attack
ATTACKS: dict[str, dict[str, Any]] = {
    "clean": {"attack": "none", "eps": 0.0, "steps": 0, "loss": None},
    "fgsm": {"attack": "fgsm", "steps": 1},
    "pgd-20": {"attack": "pgd", "steps": 20},
    "pgd-20 (predicted)": {"attack": "pgd", "steps": 20, "labels": "predicted"},
    "mim-10": {"attack": "mim", "steps": 10},
    "gaussian[-1,1]": {"attack": "gaussian[-1,1]", "norm": "noise", "eps": 0.2, "steps": 0},
    "square-5000": {"attack": "square", "queries": 5000, "steps": 0},
    "pgd-50": {"attack": "pgd", "steps": 50, "restarts": 5},
    "pgd-50 margin": {"attack": "pgd", "steps": 50, "loss": "margin"},
    "pgd-100 joint": {"attack": "pgd", "steps": 100, "loss": "joint"},
    "autoattack": {"attack": "autoattack", "steps": 100, "survivors": True},
}
# (threat, view, title) → images right of 1000: the classifier alone, TRN, GAN, the random defence
RIGHT = {
    ("gray_box", "oblivious", "clean"): (919, 917, 905, 884),
    ("gray_box", "oblivious", "fgsm"): (66, 751, 612, 401),
    ("gray_box", "oblivious", "pgd-20"): (0, 825, 721, 522),
    ("gray_box", "oblivious", "pgd-20 (predicted)"): (11, 816, 715, 519),
    ("gray_box", "oblivious", "mim-10"): (0, 615, 569, 388),
    ("gray_box", "oblivious", "gaussian[-1,1]"): (301, 542, 806, 355),
    ("black_box", "transfer: cifar10/surrogate", "pgd-20"): (214, 803, 744, 603),
    ("black_box", "query", "square-5000"): (31, 402, 388, 577),
    ("white_box", "straight_through", "pgd-50"): (0, 171, 406, 210),
    ("white_box", "detached", "pgd-50"): (0, 3, 0, 122),
    ("white_box", "detached", "pgd-50 margin"): (0, 5, 2, 118),
    ("white_box", "detached", "pgd-100 joint"): (0, 61, 33, 190),
    ("white_box", "exact", "autoattack"): (0, 2, 0, 96),
}
WORST = {"gray_box": (0, 554, 525, 371), "black_box": (19, 398, 380, 541), "white_box": (0, 2, 0, 88)}


def figure(right: int, count: int = N) -> dict[str, Any]:
    """Accuracy with its interval."""
    return {"accuracy": right / count, "ci95": list(metrics.wilson_interval(right, count))}


def _mcnemar(defended: int, bare: int) -> dict[str, Any]:
    """McNemar's test where ten images of each are right in the one only, and the rest in both as far as possible."""
    swapped = min(10, defended, bare, N - max(defended, bare))
    flags = torch.arange(N)
    return metrics.mcnemar((flags >= swapped) & (flags < swapped + defended), flags < bare)


def _identity(threat: str, view: str, title: str, restorer: str) -> dict[str, Any]:
    usual = {"norm": "linf", "eps": EPS, "restarts": 1, "labels": "true", "loss": "ce", "queries": None, "survivors": False}
    averaged = restorer == RANDOM and threat == "white_box"
    identity = {**usual, "step_size": 2 / 255, "eot_samples": 10 if averaged else 1, **ATTACKS[title]}
    return {"threat": threat, "view": view, "title": f"{title} eot-10" if averaged else title, **identity}


def _rows() -> list[dict[str, Any]]:
    rows = []
    for place, restorer in enumerate((TRN, GAN, RANDOM), start=1):
        for (threat, view, title), right in RIGHT.items():
            alone, again = figure(right[0]), restorer == RANDOM
            row = {"restorer": restorer, **_identity(threat, view, title, restorer), "n": N, "seed": 0, **figure(right[place])}
            row |= {"undefended_accuracy": alone["accuracy"], "undefended_ci95": alone["ci95"]}
            row |= {"mcnemar": _mcnemar(right[place], right[0]), "resubmissions": 10 if again else 1}
            row |= {"resubmitted_accuracy": 0.7 * right[place] / N if again else None}
            row["zero_gradient"] = {"straight_through": 0.001, "detached": 0.002, "exact": 0.09}.get(view)
            rows.append(row)
    return rows


def _worst_cases() -> dict[str, Any]:
    worst: dict[str, Any] = {}
    for place, restorer in enumerate(("none", TRN, GAN, RANDOM)):
        for threat, right in WORST.items():
            entry = {
                **figure(right[place]),
                "own": figure(right[place]),
                "n": N,
                "eps": EPS,
                "left_out": [],
                "attacks": ["pgd-20"],
            }
            if restorer != "none":
                entry["mcnemar"] = _mcnemar(right[place], right[0])
            worst.setdefault(restorer, {})[threat] = entry
    return worst


def _curve(key: str, values: list[float], right: list[int], view: str, title: str) -> dict[str, Any]:
    points = [{key: value, **figure(count, CURVE_N)} for value, count in zip(values, right, strict=True)]
    return {"title": title, "view": view, "n": CURVE_N, "points": points}


def _curves() -> dict[str, Any]:
    budgets = [value / 255 for value in (0, 1, 2, 4, 8, 16, 32, 64, 128)]
    eps = {
        "none": [184, 96, 31, 3, 0, 0, 0, 0, 0],
        TRN: [183, 150, 98, 20, 1, 0, 0, 0, 0],
        GAN: [181, 140, 77, 12, 0, 0, 0, 0, 0],
        RANDOM: [177, 160, 121, 77, 31, 12, 44, 61, 52],  # rises again, and stays above chance
    }
    steps = {
        "none": [20, 4, 0, 0, 0, 0],
        TRN: [152, 60, 14, 3, 1, 1],
        GAN: [142, 90, 33, 10, 2, 0],
        RANDOM: [150, 99, 70, 44, 33, 14],
    }
    found: dict[str, Any] = {}
    for name in eps:
        view = "oblivious" if name == "none" else "detached"
        found[name] = {
            "eps": _curve("eps", budgets, eps[name], view, "pgd-20"),
            "steps": _curve("steps", [1, 2, 5, 10, 20, 100], steps[name], view, "pgd"),
        }
    found[RANDOM]["eot"] = _curve("samples", [1, 2, 5, 10, 20, 50], [61, 52, 41, 31, 28, 27], "detached", "pgd-20")
    return found


def _four_ways(bare: int, right: int) -> dict[str, float]:
    return {"none": bare / N, "detector": min(1.0, bare / N + 0.6), "restorer": right / N, "both": min(1.0, right / N + 0.5)}


def _detection() -> dict[str, Any]:
    found: dict[str, Any] = {}
    random = torch.Generator().manual_seed(0)
    for place, restorer in enumerate((TRN, GAN), start=1):
        clean, entries = torch.randn(N, generator=random), []
        limits = {rate: metrics.threshold(clean, float(rate)) for rate in ("0.01", "0.05")}
        for number, ((threat, view, title), right) in enumerate(RIGHT.items()):
            if title in ("clean", "autoattack"):  # an attack on survivors tells nothing of a detector
                continue
            count = N - right[place if threat == "white_box" or view == "query" else 0]
            scores = torch.randn(count, generator=random) + (0.4 if "joint" in title else 4.5 - 0.3 * number)
            few = title == "fgsm"  # as where an attack has hardly any success
            entry = {**_identity(threat, view, title, restorer), "n": 4 if few else count}
            entry |= {"auroc": None if few else metrics.auroc(clean, scores), "roc": None if few else metrics.roc(clean, scores)}
            entry["tpr"] = {rate: None if few else metrics.share_above(scores, limit) for rate, limit in limits.items()}
            entry["accuracy"] = {rate: _four_ways(right[0], right[place]) for rate in limits}
            entries.append(entry)
        found[restorer] = {
            "validation_n": N,
            "thresholds": limits,
            "n_clean": N,
            "false_positive_rate": {"0.01": 0.009, "0.05": 0.046},
            "clean_accuracy": {rate: {"none": 0.919, "detector": 0.874, "restorer": 0.917, "both": 0.873} for rate in limits},
            "attacks": entries,
        }
    return found


def _restoration() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for restorer in (TRN, GAN):
        for threat, view, title in (key for key in RIGHT if key[2] != "autoattack"):
            attacked = None if title == "clean" else {"psnr": 32.0, "ssim": 0.947, "lpips": 0.021}
            restored = {"psnr": 36.1 if attacked else 76.08, "ssim": 0.98, "lpips": 0.009}
            entry = {**_identity(threat, view, title, restorer), "n": N, "attacked": attacked, "restored": restored}
            found.setdefault(restorer, []).append(entry)
    return found


def _cost() -> dict[str, Any]:
    shared = {"batch_size": 100, "device": "cpu", "threads": 2, "classifier_parameters": 1941546, "peak_memory_bytes": None}
    figures = {"none": (1812.4, 0, 1, 0), TRN: (114.0, 120515, 2, 10), GAN: (558.4, 3593577, 1, 0), RANDOM: (1790.2, 0, 1, 0)}
    return {
        name: {**shared, "images_per_second": speed, "parameters": size, "forward_passes": forward, "backward_passes": backward}
        for name, (speed, size, forward, backward) in figures.items()
    }


def complete() -> dict[str, Any]:
    """A new results dictionary, checks included."""
    results: dict[str, Any] = {
        "schema": 1,
        "data": {"name": "cifar10", "split": "test", "file": None, "n": N, "seed": 0, "validation_n": N, "classes": 10},
        "classifier": {"name": "cifar10/classifier", "parameters": 1941546, "probabilities": False, **figure(919)},
        "rows": _rows(),
        "worst_case": _worst_cases(),
        "curves": _curves(),
        "detection": _detection(),
        "restoration": _restoration(),
        "randomised": {TRN: False, GAN: False, RANDOM: True},
        "cost": _cost(),
    }
    results["checks"] = checks.run(results)
    results["made"] = {
        "command": "tools/evaluate.py configs/evaluate/cifar10_full.yaml output=runs/full",
        "output": "runs/full",
        "versions": {"python": "3.11.7", "torch": "2.8.0", "gandefense": "0.1.0"},
        "weights": {"cifar10/classifier": "02e794b3" * 8, TRN: "32a927db" * 8},
        "seed": 0,
        "date": "2030-01-01T12:00:00+00:00",
        "seconds": 8510.9,
        "config": {"data": {"name": "cifar10", "limit": N}, "restorers": [TRN, GAN, RANDOM]},
    }
    return results


@functools.cache  # drawing takes seconds
def drawn() -> list[plots.Plot]:
    """The plots of `complete`."""
    return plots.draw(complete())
