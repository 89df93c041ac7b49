"""MagNet's own accounting beside ours: a rejected adversarial image counts as right, a rejected clean one as wrong.

Meng & Chen (2017) published accuracies counted so. It is the column "both" of the evaluator's four-way accounting, for any
restorer with a detector; ours, "restorer", never credits a rejection.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gandefense.errors import UserError


def accuracy_with_rejection(right: Tensor, rejected: Tensor, *, attacked: bool) -> float:
    """The authors' definition: 1 − (passed and wrong)/N on attacked images, (passed and right)/N on clean ones.

    Args:
        right: the reformed image is classified rightly, (N,) bool.
        rejected: some detector rejects the image, (N,) bool.
        attacked: whether all of these images are adversarial, or none is.
    """
    counted = ~(~rejected & ~right) if attacked else ~rejected & right
    return counted.double().mean().item()


def own_accounting(results: dict[str, Any], restorer: str, rate: float | None = None) -> list[dict[str, Any]]:
    """A restorer's accuracies counted both ways, clean images first, then attack by attack.

    Attacked images that the attack left as they were count as clean here, as everywhere in the evaluator; the authors
    counted them as attacked.

    Args:
        results: of an evaluation (results.json).
        restorer: its name there.
        rate: the false-positive rate that the threshold was chosen for; None takes the largest one evaluated. MagNet's own
            thresholds come to a little less than the sum of its detectors' drop rates.

    Returns:
        One entry an attack: "threat", "view", "title", "ours" (rejections do not count) and "own".

    Raises:
        UserError: no such restorer or rate in the results.
    """
    found = results.get("detection", {}).get(restorer)
    if found is None:
        raise UserError(f"these results say nothing of a detector of {restorer!r}")
    rates = list(found["thresholds"])
    key = max(rates, key=float) if rate is None else f"{rate:g}"
    if key not in rates:
        raise UserError(f"these results have no threshold at a false-positive rate of {key}; they have {', '.join(rates)}")
    clean = {"threat": "gray_box", "view": "oblivious", "title": "clean", "accuracy": found["clean_accuracy"]}
    return [
        {
            **{name: entry[name] for name in ("threat", "view", "title")},
            "ours": entry["accuracy"][key]["restorer"],
            "own": entry["accuracy"][key]["both"],
        }
        for entry in [clean, *found["attacks"]]
    ]
