"""What evaluations of a small CIFAR-10 are asked for in tests, and what of their results does not depend on the clock."""

from __future__ import annotations

import copy
from typing import Any

LIMIT = 24
GRAY = [  # wide budgets, because the small data set's classes lie far apart
    {"attack": "fgsm", "eps": "48/255"},
    {"attack": "pgd", "eps": "48/255", "steps": 3},
    {"attack": "gaussian[-1,1]", "eps": 0.2},
]
WHITE = {"views": ["straight_through", "detached"], "attacks": [{"attack": "pgd", "eps": "48/255", "steps": 2}]}
FULL = {
    "gray_box": [{"attack": "fgsm", "eps": "48/255"}, {"attack": "apgd-ce", "eps": "48/255", "steps": 3, "survivors": True}],
    "white_box": {
        "views": ["straight_through", "detached", "exact", "smooth"],
        "attacks": [
            {"attack": "pgd", "eps": "24/255", "steps": 2, "views": ["detached"]},
            {"attack": "pgd", "eps": "24/255", "steps": 2, "loss": "joint", "views": ["straight_through", "detached"]},
            {"attack": "apgd-dlr", "eps": "24/255", "steps": 3, "survivors": True},
        ],
    },
    "curves": {"eps": [0, "24/255"], "steps": [1, 3], "eot": [1, 2], "images": 7, "attack": {"attack": "pgd", "steps": 2}},
}


def without_timings(results: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on when or how fast it was made."""
    kept = copy.deepcopy(results)
    for part in ("cost", "made"):
        del kept[part]
    return kept
