"""LAD, latent adversarial defence (Zhou, Tsang, Yin 2019, arXiv:1907.07001): a classifier, trained from top to bottom.

Latent codes of training images are moved along the normal of a support vector machine's boundary, towards the other
classes, and decoded; the classifier learns the clean images and the decoded ones, which keep their labels. In the
publication an attention weighs the latent features, and a generator decodes; here it is a plain linear machine and an
autoencoder's decoder. No image of it is ever attacked through a classifier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gandefense import classifiers
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import at_once, augmentation, batch_indices, batches, content_hash, to_float
from gandefense.errors import UserError
from gandefense.precision import autocast
from gandefense.training.baselines.latent_boundary import AutoEncoder, Boundaries
from gandefense.training.classifier import accuracy
from gandefense.training.run import Run, check_finite, check_settings, open_run
from gandefense.training.state import (
    Means,
    current_device,
    exponential_average,
    require,
    seed_everything,
    warm_cosine,
)

SCHEDULES = ("random", "annealed")


@dataclass
class LADAutoEncoderConfig:
    """Phase 1, the autoencoder, see AutoEncoder; Adam on the mean squared pixel error."""

    width: int = 32
    features: int = 32
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 2e-3  # peak
    warmup: int = 50


@dataclass
class LADBoundaryConfig:
    """Phase 2, the boundaries in latent space, see Boundaries."""

    images: int = 10_000  # training images that they are fitted to
    steps: int = 300  # of full-batch Adam
    penalty: float = 0.01  # of ‖w‖²/2, against the mean hinge loss


@dataclass
class LADTrainConfig:
    """Phase 3, the classifier: cross-entropy of clean images and, weighed, of decoded ones; SGD."""

    steps: int = 1000
    batch_size: int = 128  # clean images
    decoded_share: float = 0.5  # of a batch's images are also moved, decoded and learnt in that form
    decoded_weight: float = 0.5  # of the decoded images' loss; the clean ones' has the rest
    schedule: str = "random"  # amounts: random (uniform up to `magnitude`) or annealed (all the same, rising to it)
    # Largest amount, see Boundaries.moved: 1 takes a typical image to its class's boundary. Linear boundaries lie near in so
    # many dimensions: on CIFAR-10, 2 changes decoded pixels by a root mean square of 0.6/255, 16 by 4.5/255.
    magnitude: float = 16.0
    learning_rate: float = 0.1  # peak
    momentum: float = 0.9  # Nesterov
    weight_decay: float = 5e-4
    warmup: int = 100
    label_smoothing: float = 0.1
    ema_decay: float = 0.99  # of the weights that are kept in the end


@dataclass
class LADConfig:
    """tools/train_baseline.py with `baseline: lad`"""

    baseline: str = "lad"
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    architecture: str = "resnet9_narrow"  # a name in CLASSIFIERS of gandefense/classifiers/__init__.py
    autoencoder: LADAutoEncoderConfig = field(default_factory=LADAutoEncoderConfig)
    boundary: LADBoundaryConfig = field(default_factory=LADBoundaryConfig)
    train: LADTrainConfig = field(default_factory=LADTrainConfig)
    resume: str | None = None


def amounts(options: LADTrainConfig, step: int, labels: Tensor) -> Tensor:
    """How far each image of a batch (B,) is moved at a step, in units of its class's reach: (B,)."""
    if options.schedule == "annealed":
        return torch.full(labels.shape, options.magnitude * (step + 1) / options.steps, device=labels.device)
    return options.magnitude * torch.rand(labels.shape, device=labels.device)


@torch.no_grad()
def encoded(autoencoder: AutoEncoder, images: datasets.Images, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latent codes (N, n) and labels (N,) of images."""
    size = at_once(images.images.shape[-1], 500)
    pairs = [(autoencoder.encode(batch), labels) for batch, labels in batches(images, size, device)]
    return torch.cat([codes for codes, _ in pairs]), torch.cat([labels for _, labels in pairs])


@torch.no_grad()
def look(run: Run, autoencoder: AutoEncoder, boundaries: Boundaries, images: datasets.Images, device: torch.device) -> None:
    """A fixed grid in TensorBoard: clean · reconstructed · moved by 1 (at the boundary) · by 4 · by 16."""
    clean, labels = to_float(images.images[:12].to(device)), images.labels[:12].to(device)
    codes = autoencoder.encode(clean)
    run.grid(
        "validation/clean_moved_by_0_1_4_16",
        [clean, *(autoencoder.decode(boundaries.moved(codes, labels, amount)) for amount in (0.0, 1.0, 4.0, 16.0))],
    )


def train(config: LADConfig) -> Path:
    """Train a classifier by LAD and write it as model.safetensors into its run folder.

    Returns:
        The weights' path.

    Raises:
        UserError: bad data, config or checkpoint, or a loss that is no longer finite.
    """
    options, first = config.train, config.autoencoder
    device = current_device(config.run.device)
    data = datasets.describe(config.data)
    check_settings(config.run)
    require(
        counts={
            "train.steps": options.steps,
            "train.batch_size": options.batch_size,
            "autoencoder.steps": first.steps,
            "autoencoder.batch_size": first.batch_size,
            "autoencoder.width": first.width,
            "autoencoder.features": first.features,
            "boundary.images": config.boundary.images,
            "boundary.steps": config.boundary.steps,
        },
        positive={
            "train.learning_rate": options.learning_rate,
            "train.magnitude": options.magnitude,
            "autoencoder.learning_rate": first.learning_rate,
            "boundary.penalty": config.boundary.penalty,
        },
        fractions={"train.decoded_weight": options.decoded_weight},
        shares={"train.momentum": options.momentum},
        not_negative={"train.weight_decay": options.weight_decay},
    )
    if not 0 < options.decoded_share <= 1:
        raise UserError(f"train.decoded_share must be above 0 and at most 1, got {options.decoded_share}")
    if options.schedule not in SCHEDULES:
        raise UserError(f"unknown train.schedule {options.schedule!r}; known: {', '.join(SCHEDULES)}")
    autocast(device, config.run.precision)
    seed_everything(config.run.seed)
    network = classifiers.build(config.architecture, data).to(device, memory_format=torch.channels_last)
    autoencoder = AutoEncoder(channels=data.channels, size=data.size, width=first.width, features=first.features)
    autoencoder = autoencoder.to(device, memory_format=torch.channels_last)
    boundaries = Boundaries(len(data.classes), torch.Size(autoencoder.shape).numel()).to(device)
    images = datasets.load(config.data, "train", seed=config.run.seed)
    validation = datasets.load(config.data.whole(), "validation")
    average = exponential_average(network, options.ema_decay)
    autoencoder_optimiser = torch.optim.Adam(autoencoder.parameters(), lr=first.learning_rate)
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=options.momentum > 0,
    )
    augment = augmentation(data.size, flip=data.flips)
    with open_run("lad", config, config.run, config.resume, {"the images": content_hash(images, validation)}) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"
        run.restore(
            autoencoder=autoencoder,
            autoencoder_optimiser=autoencoder_optimiser,
            boundaries=boundaries,
            network=network,
            average=average,
            optimiser=optimiser,
        )
        bar = run.progress(first.steps + options.steps, "step", "lad")

        # Phase 1: the autoencoder.
        means = Means()
        for step in range(run.step, first.steps):
            chosen = batch_indices(len(images.labels), first.batch_size, step, config.run.seed)
            clean = to_float(images.images[chosen].to(device)).contiguous(memory_format=torch.channels_last)
            with autocast(device, config.run.precision):
                loss = F.mse_loss(autoencoder(clean), clean)
            for group in autoencoder_optimiser.param_groups:
                group["lr"] = first.learning_rate * warm_cosine(step, first.steps, first.warmup)
            autoencoder_optimiser.zero_grad(set_to_none=True)
            loss.backward()
            autoencoder_optimiser.step()

            means.add(loss=loss, error=loss.sqrt() * 255)
            run.step = step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or run.step == first.steps:
                check_finite(means, run)
                images_seen = means.steps * len(clean)
                run.log(means.take("autoencoder/"), images=images_seen)
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()
        autoencoder.eval().requires_grad_(False)

        # Phase 2: the boundaries; later a checkpoint has them.
        if run.step == first.steps:
            some = images.rows(slice(config.boundary.images))
            boundaries.fit(*encoded(autoencoder, some, device), steps=config.boundary.steps, penalty=config.boundary.penalty)
        codes, labels = encoded(autoencoder, validation, device)
        boundary_accuracy = (boundaries.distances(codes).argmax(1) == labels).float().mean().item()

        # Phase 3: the classifier, on clean images and on decoded ones.
        network.train()
        for step in range(run.step - first.steps, options.steps):
            chosen = batch_indices(len(images.labels), options.batch_size, step, config.run.seed)
            clean = augment(to_float(images.images[chosen].to(device)))
            labels = images.labels[chosen].to(device)
            count = max(1, round(options.decoded_share * len(labels)))
            with torch.no_grad(), autocast(device, config.run.precision):
                codes = autoencoder.encode(clean[:count]).float()
                decoded = autoencoder.decode(boundaries.moved(codes, labels[:count], amounts(options, step, labels[:count])))
            with autocast(device, config.run.precision):
                logits = network(torch.cat([clean, decoded]).contiguous(memory_format=torch.channels_last)).float()
            clean_logits, decoded_logits = logits[: len(labels)], logits[len(labels) :]
            clean_loss = F.cross_entropy(clean_logits, labels, label_smoothing=options.label_smoothing)
            decoded_loss = F.cross_entropy(decoded_logits, labels[:count], label_smoothing=options.label_smoothing)
            loss = (1 - options.decoded_weight) * clean_loss + options.decoded_weight * decoded_loss

            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * warm_cosine(step, options.steps, options.warmup)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            average.update_parameters(network)

            means.add(
                loss=loss,
                clean_loss=clean_loss,
                decoded_loss=decoded_loss,
                clean_accuracy=(clean_logits.argmax(1) == labels).float().mean(),
                decoded_accuracy=(decoded_logits.argmax(1) == labels[:count]).float().mean(),
            )
            run.step = first.steps + step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or step + 1 == options.steps:
                check_finite(means, run)
                images_seen = means.steps * len(labels)
                run.log(means.take(), images=images_seen)
            if run.step % config.run.image_every == 0 or step + 1 == options.steps:
                right = accuracy(average.module, validation, device)
                run.log({"validation/accuracy": right, "validation/boundary_accuracy": boundary_accuracy})
                look(run, autoencoder, boundaries, validation, device)
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()

        measured = {
            "validation_accuracy": accuracy(average.module, validation, device),
            "validation_n": len(validation.labels),
            "boundary_accuracy": boundary_accuracy,  # of the linear machines alone, on the validation images' codes
        }
        metadata = {
            "kind": "classifier",
            "adversarial": "none",
            "latent": "lad",
            "architecture": config.architecture,
            "data": data.name,
            "measured": measured,
        }
        path = run.finish(average.module.state_dict(), metadata)
        print(f"validation accuracy {measured['validation_accuracy']:.4f} (n = {measured['validation_n']}); weights: {path}")
        return path
