"""How fast attacks are made, and what they add to the gradients that they cannot do without."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gandefense.attacks.suite import AttackSpec, attack
from gandefense.benchmark.settings import Row
from gandefense.benchmark.subjects import Subjects
from gandefense.benchmark.timing import Effort, interleaved

PART = "attacks"
STEPS = 20
GRADIENTS = 5  # measured at a time, so that what is compared takes seconds too


def measure(subjects: Subjects, effort: Effort, *, steps: int = STEPS) -> list[Row]:
    """FGSM, PGD and APGD-CE on the classifier; the ratio's denominator is `steps` × one forward and backward pass."""
    classifier, images, labels = subjects.classifier, subjects.images, subjects.labels
    specs = [AttackSpec("fgsm"), AttackSpec("pgd", steps=steps), AttackSpec("apgd-ce", steps=steps)]

    def gradient() -> torch.Tensor:
        for _ in range(GRADIENTS):
            point = images.detach().requires_grad_(True)
            (found,) = torch.autograd.grad(F.cross_entropy(classifier(point), labels, reduction="sum"), point)
        return found

    compared = {spec.title(): lambda spec=spec: attack(classifier, images, labels, spec).images for spec in specs}
    times = interleaved({"gradient": gradient, **compared}, subjects.device, effort)
    one = times["gradient"].combined(lambda value: value / GRADIENTS)
    count = len(images)
    rows = [Row(PART, "one input gradient", one.median, count)]
    for spec in specs:
        needed = 1 if spec.attack == "fgsm" else steps
        least = one.combined(lambda value, needed=needed: needed * value)
        mine = times[spec.title()]
        rows.append(Row(PART, spec.title(), mine.median, count, mine.ratio(least), f"its {needed} input gradient(s)"))
    return rows
