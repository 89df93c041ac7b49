"""TRN and the GAN defence against a diffusion purifier and a latent search, in images a second."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from gandefense.benchmark.rivals import (
    DIFFUSION_STEPS,
    SEARCH_RESTARTS,
    SEARCH_STEPS,
    DiffusionUNet,
    LatentGenerator,
    search_latents,
)
from gandefense.benchmark.settings import Row
from gandefense.benchmark.subjects import Subjects
from gandefense.benchmark.timing import Effort, Times, flops, interleaved, peak_memory

PART = "restorers"
MEASURED_STEPS = 1  # of the 100 diffusion steps, …
SEARCHED_STEPS = 2  # … and of the 200 search steps; the rest cost the same
DIFFUSION_BATCH = 4  # images on a CPU, where a larger batch gains nothing
TARGET = 100.0


def measure(subjects: Subjects, effort: Effort) -> list[Row]:
    """Restoring alone, without the classifier that sees the restored images; all in float32."""
    device, images = subjects.device, subjects.images
    few = images if device.type == "cuda" else images[:DIFFUSION_BATCH]
    unet = DiffusionUNet(channels=images.shape[1]).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    generator = LatentGenerator(channels=images.shape[1]).to(device).eval().requires_grad_(False)
    always, never = copy.deepcopy(subjects.gan.restorer), copy.deepcopy(subjects.gan.restorer)
    always.threshold, never.threshold = float("-inf"), float("inf")

    @torch.no_grad()
    def diffusion() -> Tensor:
        x = few
        for step in range(MEASURED_STEPS):
            x = x - 0.01 * unet(x, torch.full((len(x),), DIFFUSION_STEPS - step, device=device))
        return x

    def search() -> Tensor:
        return search_latents(generator, few, steps=SEARCHED_STEPS, restarts=SEARCH_RESTARTS)

    def restore(restorer: torch.nn.Module) -> Tensor:
        with torch.no_grad():
            return restorer(images).images

    compared = {
        "classifier": lambda: subjects.classifier(images).argmax(1),
        "trn": lambda: restore(subjects.trn.restorer),
        "gan": lambda: restore(always),
        "gan_passed": lambda: restore(never),
        "diffusion": diffusion,
        "search": search,
    }
    names = ("classifier", "trn", "gan", "gan_passed")
    memory = {name: peak_memory(compared[name], device) for name in names}
    operations = {name: flops(compared[name]) / len(images) for name in names}
    operations["diffusion"] = flops(diffusion) / len(few) * DIFFUSION_STEPS / MEASURED_STEPS
    times = interleaved(compared, device, effort)
    image = {name: times[name].combined(lambda value: value / len(images)) for name in names}
    per_diffusion = times["diffusion"].combined(lambda value: value / len(few) * DIFFUSION_STEPS / MEASURED_STEPS)
    per_search = times["search"].combined(lambda value: value / len(few) * SEARCH_STEPS / SEARCHED_STEPS)

    def row(name: str, title: str, other: Times, ratio_to: str, target: float | None = None, note: str = "") -> Row:
        return Row(
            *(PART, title, times[name].median, len(images), other.ratio(image[name]), ratio_to),
            target=None if target is None else ("at least", target),
            memory=memory[name],
            note=note,
        )

    rounds = subjects.gan.restorer.rounds
    against = "images/s of the diffusion purifier"
    times_more = f"{operations['diffusion'] / operations['trn']:.0f} × fewer operations"
    parameters = sum(parameter.numel() for parameter in unet.parameters()) / 1e6
    return [
        Row(PART, "classifier alone", times["classifier"].median, len(images), memory=memory["classifier"]),
        row("trn", "TRN", per_diffusion, against, TARGET, times_more),
        row("gan", f"GAN, every image flagged ({rounds} rounds)", per_diffusion, against, TARGET),
        row("gan_passed", "GAN, no image flagged", per_diffusion, against),
        row("trn", "TRN", per_search, "images/s of the latent search"),
        row("gan", f"GAN, every image flagged ({rounds} rounds)", per_search, "images/s of the latent search"),
        Row(
            *(PART, f"diffusion purifier, {DIFFUSION_STEPS} steps", per_diffusion.median, 1),
            note=f"U-Net of {parameters:.1f} million random parameters; {MEASURED_STEPS} step measured, multiplied",
        ),
        Row(
            *(PART, f"latent search, {SEARCH_STEPS} steps × {SEARCH_RESTARTS} restarts", per_search.median, 1),
            note=f"random weights; {SEARCHED_STEPS} steps measured, multiplied",
        ),
    ]
