"""What a defence costs: speed, parameters, memory, passes of the classifier."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gandefense.restorers.base import DefendedClassifier

LEAST_SECONDS = 1.0  # speed is measured over at least this long …
LEAST_REPEATS = 3  # … and at least this many batches


def parameters(module: nn.Module, without: nn.Module | None = None) -> int:
    """The number of parameters of a module, those it shares with another left out."""
    shared = {id(parameter) for parameter in without.parameters()} if without is not None else set()
    return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in shared)


@contextmanager
def counted_passes(classifier: nn.Module) -> Iterator[dict[str, int]]:
    """Count the images that pass forward and backward through a classifier while the context is open."""
    counts = {"forward": 0, "backward": 0}

    def backward(gradient: Tensor) -> None:
        counts["backward"] += len(gradient)

    def forward(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        counts["forward"] += len(logits)
        if logits.requires_grad:
            logits.register_hook(backward)  # called once for every backward pass that starts at these logits

    handle = classifier.register_forward_hook(forward)
    try:
        yield counts
    finally:
        handle.remove()


def measure(defended: DefendedClassifier, images: Tensor) -> dict[str, Any]:
    """Cost of restorer and classifier together on one batch of clean images (B, C, H, W), after a warm-up.

    Returns:
        "images_per_second", the circumstances it was measured in, "parameters" of the restorer alone,
        "classifier_parameters", "forward_passes" and "backward_passes" of the classifier per image, and
        "peak_memory_bytes" (None on a CPU, where torch does not know it).
    """
    device = images.device
    with torch.no_grad(), counted_passes(defended.classifier) as counts:
        defended(images)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    repeats, start = 0, time.perf_counter()
    while repeats < LEAST_REPEATS or time.perf_counter() - start < LEAST_SECONDS:
        with torch.no_grad():
            defended(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        repeats += 1
    seconds = time.perf_counter() - start
    return {
        "images_per_second": repeats * len(images) / seconds,
        "batch_size": len(images),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "parameters": parameters(defended.restorer, without=defended.classifier),
        "classifier_parameters": parameters(defended.classifier),
        "forward_passes": counts["forward"] / len(images),
        "backward_passes": counts["backward"] / len(images),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }
