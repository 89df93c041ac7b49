"""Gradient maps against the naive loop, the floor that arithmetic sets, and one backward pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.benchmark.settings import Row
from gandefense.benchmark.subjects import Subjects
from gandefense.benchmark.timing import Effort, Work, flops, interleaved, peak_memory
from gandefense.precision import autocast, resolve
from gandefense.restorers.gradient_maps import loss_gradients

PART = "maps"
NAIVE_TARGET, FLOOR_TARGET, AGREEMENT = 0.60, 1.30, 1e-5


def naive(classifier: nn.Module, images: Tensor, classes: int) -> Tensor:
    """∂ CE(f(x), k)/∂x (B, K, C, H, W) by a forward and a backward pass for every label k."""
    gradients = []
    for k in range(classes):
        point = images.detach().requires_grad_(True)
        labels = torch.full((len(images),), k, device=images.device)
        loss = F.cross_entropy(classifier(point).float(), labels, reduction="sum")
        gradients.append(torch.autograd.grad(loss, point)[0])
    return torch.stack(gradients, dim=1)


def works(classifier: nn.Module, images: Tensor, classes: int, precision: str) -> dict[str, Work]:
    """What is compared: the naive loop, ours, ours for three labels, a forward pass, and one with a backward pass."""
    device = images.device

    def within(work: Work) -> Work:
        def run() -> object:
            with autocast(device, precision):
                return work()

        return run

    def forward() -> Tensor:
        return classifier(images.detach().requires_grad_(True))

    def top() -> Tensor:
        return loss_gradients(classifier, images, top_k=min(3, classes))

    return {
        "naive": within(lambda: naive(classifier, images, classes)),
        "ours": within(lambda: loss_gradients(classifier, images)),
        "top_3": within(top),
        "forward": within(forward),
        "one": within(lambda: naive(classifier, images, 1)),
    }


def measure(subjects: Subjects, effort: Effort, precision: str) -> list[Row]:
    """The rows, in float32 and, where the device computes in it, in bf16."""
    rows = []
    for kind in dict.fromkeys(["float32", resolve(subjects.device, precision)]):
        rows += _measure(subjects, effort, kind)
    return rows


def _measure(subjects: Subjects, effort: Effort, precision: str) -> list[Row]:
    classifier, images, classes = subjects.classifier, subjects.images, len(subjects.data.classes)
    compared = works(classifier, images, classes, precision)
    reference = compared["naive"]()
    difference = ((compared["ours"]() - reference).abs().max() / reference.abs().max()).item()
    memory = {name: peak_memory(compared[name], subjects.device) for name in ("naive", "ours")}
    operations = {name: flops(work) for name, work in compared.items()}
    times = interleaved(compared, subjects.device, effort)
    floor = times["forward"].combined(lambda forward, one: forward + classes * max(one - forward, 0.0), times["one"])
    floor_operations = operations["forward"] + classes * (operations["one"] - operations["forward"])
    count, kind = len(images), f", {precision}"
    ours = times["ours"]
    return [
        Row(PART, f"naive loop, {classes} × (forward + backward){kind}", times["naive"].median, count, memory=memory["naive"]),
        Row(
            *(PART, f"gradient maps{kind}", ours.median, count, ours.ratio(times["naive"]), "naive loop"),
            target=("at most", NAIVE_TARGET) if precision == "float32" else None,
            memory=memory["ours"],
        ),
        Row(
            *(PART, f"gradient maps{kind}", None, count, ours.ratio(floor)),
            ratio_to=f"1 forward + {classes} input-backward passes, in time",
            target=("at most", FLOOR_TARGET) if precision == "float32" else None,
        ),
        Row(
            *(PART, f"gradient maps{kind}", None, count, operations["ours"] / floor_operations),
            ratio_to=f"1 forward + {classes} input-backward passes, in operations",
            note=f"{operations['ours'] / count / 1e9:.3g} GFLOP an image; naive {operations['naive'] / count / 1e9:.3g}",
        ),
        Row(PART, f"gradient maps{kind}", None, count, ours.ratio(times["one"]), "one forward and one backward pass"),
        Row(
            *(PART, f"gradient maps of the 3 most probable labels{kind}", times["top_3"].median, count),
            ratio=times["top_3"].ratio(ours),
            ratio_to=f"those of all {classes}",
        ),
        Row(
            *(PART, f"largest difference from the naive loop{kind}", None, count, difference, "its largest gradient"),
            target=("at most", AGREEMENT) if precision == "float32" else None,
        ),
    ]
