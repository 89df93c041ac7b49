"""TRN and the GAN defence against a diffusion purifier and a latent search, in images a second."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gandefense.benchmark.rivals import DIFFUSION_STEPS, DiffusionUNet
from gandefense.benchmark.settings import Row
from gandefense.benchmark.subjects import Subjects
from gandefense.benchmark.timing import Effort, Times, Work, flops, interleaved, peak_memory
from gandefense.restorers.baselines.defense_gan import DefenseGANRestorer, ImageGenerator, LatentSearch, descend
from gandefense.restorers.gan import GANRestorer

PART = "restorers"
SEARCH_STEPS, SEARCH_RESTARTS = 200, 10  # of Defense-GAN's latent search, L and R (Samangouei et al. 2018)
SEARCH_LATENT, SEARCH_WIDTH = 128, 64  # of its generator, as the authors'
MEASURED_STEPS = 1  # of the 100 diffusion steps, …
SEARCHED_STEPS = 2  # … and of the 200 search steps; the rest cost the same
CPU_BATCHES = (4, 16)  # images that the rivals are tried with on a CPU; a GPU gets the whole batch
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
TRIAL = Effort(3, 4.0)  # of choosing a rival's batch and layout
TARGET = 100.0


def whole_search(one: float, several: float) -> float:
    """Cost of a whole search, in seconds or operations.

    Args:
        one: cost of a search of one step, with the passes at the end that choose the best restart and make its image.
        several: cost of SEARCHED_STEPS steps alone.
    """
    return one + (SEARCH_STEPS - 1) * several / SEARCHED_STEPS


def rival_batches(images: Tensor) -> list[int]:
    """Images in a batch that a rival is tried with, out of images (B, C, H, W)."""
    if images.device.type == "cuda":
        return [len(images)]
    return sorted({min(size, len(images)) for size in CPU_BATCHES})


def quickest(works: dict[str, Work], counts: dict[str, int], device: torch.device, effort: Effort = TRIAL) -> tuple[str, str]:
    """The work with the most images a second in a short trial, and a sentence with the figures of all.

    Args:
        works: by name.
        counts: images that each of them works on.
        device: where.
        effort: how long to try.
    """
    if len(works) == 1:
        (only,) = works
        return only, only
    times = interleaved(works, device, effort)
    speeds = {name: counts[name] / times[name].median for name in works}
    best = max(speeds, key=speeds.__getitem__)
    figures = ", ".join(f"{name}: {speed:.3g}/s" for name, speed in speeds.items())
    return best, f"{best}, the best of a trial of the measured steps ({figures})"


def _diffusion(unet: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        for step in range(MEASURED_STEPS):
            images = images - 0.01 * unet(images, torch.full((len(images),), DIFFUSION_STEPS - step, device=images.device))
    return images


def _search_steps(generator: ImageGenerator, images: Tensor) -> Tensor:
    """SEARCHED_STEPS steps of all restarts, as DefenseGANRestorer takes them; without what follows the search."""
    goals = images.repeat_interleave(SEARCH_RESTARTS, dim=0)
    starts = torch.randn(len(goals), SEARCH_LATENT, device=images.device) / SEARCH_LATENT**0.5
    return descend(generator, goals, starts, LatentSearch(steps=SEARCHED_STEPS, restarts=SEARCH_RESTARTS))


def flag_above(restorer: GANRestorer, limit: float) -> None:
    """Let a GAN defence flag what scores above a limit, whichever of its detectors does the flagging."""
    restorer.threshold = limit
    if restorer.detector is not None:
        restorer.detector.threshold = limit


def measure(subjects: Subjects, effort: Effort) -> list[Row]:
    """Restoring alone, without the classifier that sees the restored images; all in float32."""
    device, images = subjects.device, subjects.images
    sizes, shape = rival_batches(images), {"channels": images.shape[1], "size": images.shape[-1]}
    unet = DiffusionUNet(channels=images.shape[1]).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    counts = {f"batch {size}": size for size in sizes}
    trials = {name: (lambda size=size: _diffusion(unet, images[:size])) for name, size in counts.items()}
    chosen, diffusion_note = quickest(trials, counts, device)
    diffused = images[: counts[chosen]]

    generator = ImageGenerator(**shape, latent=SEARCH_LATENT, width=SEARCH_WIDTH).to(device).eval().requires_grad_(False)
    options = {f"batch {size}, {layout}": (size, layout) for size in sizes for layout in LAYOUTS}
    generators = {layout: copy.deepcopy(generator).to(memory_format=kept) for layout, kept in LAYOUTS.items()}
    trials = {
        name: (lambda size=size, layout=layout: _search_steps(generators[layout], images[:size]))
        for name, (size, layout) in options.items()
    }
    chosen, search_note = quickest(trials, {name: size for name, (size, _) in options.items()}, device)
    searched, generator = images[: options[chosen][0]], generators[options[chosen][1]]
    one_step = DefenseGANRestorer(generator, LatentSearch(steps=1, restarts=SEARCH_RESTARTS)).to(device).eval()

    always, never = copy.deepcopy(subjects.gan.restorer), copy.deepcopy(subjects.gan.restorer)
    for restorer, limit in ((always, float("-inf")), (never, float("inf"))):
        flag_above(restorer, limit)

    def restore(restorer: nn.Module, batch: Tensor = images) -> Tensor:
        with torch.no_grad():
            return restorer(batch).images

    compared = {
        "classifier": lambda: subjects.classifier(images).argmax(1),
        "trn": lambda: restore(subjects.trn.restorer),
        "gan": lambda: restore(always),
        "gan_passed": lambda: restore(never),
        "diffusion": lambda: _diffusion(unet, diffused),
        "search_one": lambda: restore(one_step, searched),
        "search_steps": lambda: _search_steps(generator, searched),
    }
    names = ("classifier", "trn", "gan", "gan_passed")
    memory = {name: peak_memory(compared[name], device) for name in names}
    operations = {name: flops(compared[name]) / len(images) for name in names}
    operations["diffusion"] = flops(compared["diffusion"]) / len(diffused) * DIFFUSION_STEPS / MEASURED_STEPS
    times = interleaved(compared, device, effort)
    image = {name: times[name].combined(lambda value: value / len(images)) for name in names}
    per_diffusion = times["diffusion"].combined(lambda value: value / len(diffused) * DIFFUSION_STEPS / MEASURED_STEPS)
    per_search = times["search_one"].combined(
        lambda one, several: whole_search(one, several) / len(searched), times["search_steps"]
    )

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
            note=f"U-Net of {parameters:.1f} million random parameters; {MEASURED_STEPS} step measured, multiplied; "
            f"{diffusion_note}",
        ),
        Row(
            *(PART, f"latent search, {SEARCH_STEPS} steps × {SEARCH_RESTARTS} restarts", per_search.median, 1),
            note=f"random weights; {SEARCHED_STEPS} steps measured and multiplied, final passes measured once; {search_note}",
        ),
    ]
