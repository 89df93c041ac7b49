"""Where the time of a training step goes: data, attack, maps, networks; and how near it comes to the hardware's peak."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.attacks.cache import AttackedSet, AttackedSetConfig, attacked_set
from gandefense.attacks.level import perturbation_level
from gandefense.attacks.noise import gaussian_signed
from gandefense.attacks.random_step import random_step
from gandefense.attacks.suite import frozen
from gandefense.benchmark.settings import Row
from gandefense.benchmark.subjects import Subjects
from gandefense.benchmark.timing import Effort, flops, interleaved, synchronise
from gandefense.data.batches import Images, to_float
from gandefense.precision import autocast, resolve
from gandefense.restorers.cached_maps import CachedMaps, cached_maps
from gandefense.restorers.discriminator import Discriminator, discriminator_loss, generator_loss
from gandefense.restorers.gan import GANNetworks
from gandefense.restorers.gradient_maps import GradientMaps
from gandefense.restorers.trn import TwoStreamRestorationNetwork
from gandefense.training.distillation import distillation
from gandefense.training.gan_config import GANConfig
from gandefense.training.state import exponential_average
from gandefense.training.trn import TRNConfig
from gandefense.zoo import describe

PART = "training"
OMITTED = {  # what a step of the training loop does and the one measured here does not
    "TRN": "left out: guidance by logits, class ramp, learning rate's schedule, sums for the log",
    "GAN": "left out: sparsity loss, guidance by logits, class ramp, replay, update of the code's bias, a student of its own "
    "(the defended classifier stands in), R1 penalty, leaving clean images out of the fakes, learning rate's schedule, sums for "
    "the log",
}
MATMUL = {"cuda": 8192, "cpu": 1024}  # size of the square matrices whose product sets the peak


@dataclass
class Stages:
    """Seconds of every stage of a step, step by step."""

    device: torch.device
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside to a stage."""
        synchronise(self.device)
        start = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)


@dataclass
class Cached:
    """A small attacked set with its gradient maps on disk, as the training loops read them, and what a row of it cost."""

    images: Images
    attacked: AttackedSet
    maps: CachedMaps
    goals: Tensor
    attack_seconds: float
    maps_seconds: float


def _cached(subjects: Subjects, folder: str, precision: str) -> Cached:
    device, classes = subjects.device, len(subjects.data.classes)
    count = len(subjects.images)
    pixels = (subjects.images * 255).round().byte().cpu().contiguous()
    images = Images(pixels, subjects.labels.cpu(), torch.arange(count))
    options = AttackedSetConfig(rows=count, precision=precision)
    start = time.perf_counter()
    attacked = attacked_set(subjects.classifier, images, options, device=device, root=folder, name="benchmark")
    between = time.perf_counter()
    maps = cached_maps(subjects.classifier, attacked, classes, device=device, precision=precision)
    end = time.perf_counter()
    with torch.no_grad():
        goals = subjects.classifier(subjects.images).float().cpu()
    return Cached(images, attacked, maps, goals, (between - start) / count, (end - between) / count)


def trn_step(subjects: Subjects, cached: Cached, precision: str, network_options: dict) -> Callable[[Stages], None]:
    """One step of gandefense.training.trn on cached rows, stage by stage."""
    device, classifier, options = subjects.device, subjects.classifier, TRNConfig().train
    network = TwoStreamRestorationNetwork(**network_options).to(device, memory_format=torch.channels_last)
    average = exponential_average(network, options.ema_decay)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-6)
    rows = torch.randperm(len(cached.attacked))

    def step(stages: Stages) -> None:
        with stages.stage("data"):
            source = cached.attacked.source[rows]
            clean, goal = to_float(cached.images.images[source].to(device)), cached.goals[source].to(device)
        with stages.stage("attack (read from the cache)"):
            batch = cached.attacked.rows(rows, device).contiguous(memory_format=torch.channels_last)
        with stages.stage("maps (read from the cache)"):
            made, log_norms = cached.maps.rows(rows, device)
            gradients = GradientMaps(made.contiguous(memory_format=torch.channels_last), log_norms)
        with stages.stage("network"), autocast(device, precision):
            restored = network(batch, gradients)
        with stages.stage("classifier"), autocast(device, precision):
            logits = classifier(restored.contiguous(memory_format=torch.channels_last)).float()
        with stages.stage("backward"):
            pixel_loss = (restored.float() - clean).abs().mean()
            loss = options.pixel_weight * pixel_loss + options.class_weight * distillation(logits, goal)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        with stages.stage("optimiser and average"):
            nn.utils.clip_grad_norm_(network.parameters(), options.gradient_clip)
            optimiser.step()
            average.update_parameters(network)

    return step


def gan_step(subjects: Subjects, cached: Cached, precision: str, network_options: dict) -> Callable[[Stages], None]:
    """One step of gandefense.training.gan's second phase on cached rows, stage by stage, without what OMITTED names."""
    device, classifier, options, weights = subjects.device, subjects.classifier, GANConfig().train, GANConfig().loss
    networks = GANNetworks(**network_options).to(device, memory_format=torch.channels_last)
    size = {"channels": network_options["channels"], "size": network_options["size"]}
    discriminator = Discriminator(**size).to(device, memory_format=torch.channels_last)
    average = exponential_average(networks, options.ema_decay)
    optimiser = torch.optim.Adam(networks.parameters(), lr=1e-6)
    discriminator_optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-6)
    rows = torch.randperm(len(cached.attacked))
    noisy = round(options.noise_share * len(rows))
    stepped = noisy + max(1, round(options.random_step_share * len(rows)))

    def step(stages: Stages) -> None:
        with stages.stage("data"):
            source = cached.attacked.source[rows]
            clean, goal = to_float(cached.images.images[source].to(device)), cached.goals[source].to(device)
            labels = cached.images.labels[source].to(device)
        with stages.stage("attack (cache, noise, random step)"):
            batch = cached.attacked.rows(rows, device)
            batch[:noisy] = gaussian_signed(clean[:noisy], options.noise_level * torch.rand(noisy, 1, 1, 1, device=device))
            batch[noisy:stepped] = random_step(classifier, clean[noisy:stepped], labels[noisy:stepped], 8 / 255)
            batch = batch.contiguous(memory_format=torch.channels_last)
            level = perturbation_level(batch, clean)
            is_attacked = (level > 0.5 / 255).float()
        discriminator.requires_grad_(False)
        with stages.stage("network"), autocast(device, precision):
            made = networks(batch)
            regenerated = made.regenerated.contiguous(memory_format=torch.channels_last)
        with stages.stage("classifier, student, discriminator"), autocast(device, precision):
            logits, student_logits = classifier(regenerated).float(), classifier(regenerated).float()
            score = discriminator(regenerated)
        with stages.stage("backward"):
            loss = (
                weights.pixel * (made.regenerated - clean).abs().mean()
                + weights.cleaned * (made.cleaned - clean).abs().mean()
                + weights.classifier * distillation(logits, goal)
                + weights.student * F.cross_entropy(student_logits, labels)
                + weights.adversarial * generator_loss(score)
                + weights.detection * F.binary_cross_entropy_with_logits(made.logit, is_attacked)
                + weights.level * (made.level - level).abs().mean()
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        with stages.stage("optimiser and average"):
            nn.utils.clip_grad_norm_(networks.parameters(), options.gradient_clip)
            optimiser.step()
            average.update_parameters(networks)
        with stages.stage("discriminator's own step"):
            discriminator.requires_grad_(True)
            fake = torch.cat([made.regenerated.detach()[::2], batch[1::2]]).contiguous(memory_format=torch.channels_last)
            with autocast(device, precision):
                total = discriminator_loss(discriminator(clean), discriminator(fake))
            discriminator_optimiser.zero_grad(set_to_none=True)
            total.backward()
            discriminator_optimiser.step()

    return step


def measure(subjects: Subjects, effort: Effort, names: tuple[str, str], precision: str) -> list[Row]:
    """Shares of a step's time by stage, what a cached row costs once, and the fraction of the matrix product's peak.

    Args:
        subjects: see there; a step's batch is as large as `images`.
        effort: how long to measure.
        names: the TRN and the GAN defence whose networks' shapes are trained.
        precision: of training.
    """
    device = subjects.device
    precision = resolve(device, precision)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, frozen(subjects.classifier):
        cached = _cached(subjects, folder, precision)
        makers = {"TRN": trn_step, "GAN": gan_step}
        kinds = zip(makers.items(), names, strict=True)
        steps = {kind: make(subjects, cached, precision, describe(name)["network"]) for (kind, make), name in kinds}
        stages = {kind: Stages(device) for kind in steps}
        operations = {kind: flops(lambda step=step: step(Stages(device))) for kind, step in steps.items()}
        size = MATMUL[device.type]
        kind_of_number = torch.bfloat16 if precision == "bf16" else torch.float32
        matrix = torch.randn(size, size, device=device, dtype=kind_of_number)
        works = {kind: (lambda kind=kind: steps[kind](stages[kind])) for kind in steps}
        times = interleaved({**works, "matmul": lambda: matrix @ matrix}, device, effort)
        count = len(cached.attacked)
        peak = times["matmul"].combined(lambda value: 2 * size**3 / value)
        for kind, found in stages.items():
            whole = times[kind]
            done = whole.combined(lambda value, kind=kind: operations[kind] / value)
            speed = f"{operations[kind] / whole.median / 1e9:.0f} of {peak.median / 1e9:.0f} GFLOP/s"
            rows.append(
                Row(
                    *(PART, f"{kind} step, {precision}", whole.median, count, done.ratio(peak)),
                    ratio_to=f"operations/s of a matrix product of {size}",
                    note=f"{speed}; {OMITTED[kind]}",
                )
            )
            for stage, values in found.seconds.items():
                measured = type(whole)(tuple(values[1:]))  # the first step warmed up
                rows.append(Row(PART, f"{kind}: {stage}", measured.median, count, measured.ratio(whole), f"the {kind} step"))
        options = TRNConfig()
        uses = options.train.steps * options.train.batch_size / options.attacked.rows
        per_image = times["TRN"].median / count
        for what, seconds in (("an attacked image", cached.attack_seconds), ("its gradient maps", cached.maps_seconds)):
            rows.append(
                Row(
                    *(PART, f"making {what}, once", seconds, 1, seconds / uses / per_image, "the TRN step, an image"),
                    note=f"shared by {uses:.1f} uses in a training with the default config",
                )
            )
    del cached  # its files are gone
    return rows
