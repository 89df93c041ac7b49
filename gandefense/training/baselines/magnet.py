"""Training MagNet's autoencoders on clean images, and its thresholds on clean validation images, from top to bottom."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from gandefense import zoo
from gandefense.attacks.cache import AttackedSetConfig, attacked_set, fingerprint, provenance
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, pieces, to_float
from gandefense.precision import autocast
from gandefense.restorers.baselines.magnet import (
    DetectorConfig,
    MagNetRestorer,
    build_autoencoders,
    check_detectors,
    drop_threshold,
)
from gandefense.training.baselines.looking import grid
from gandefense.training.run import check_finite, check_settings, open_run
from gandefense.training.state import (
    Means,
    current_device,
    exponential_average,
    readable,
    require,
    seed_everything,
    warm_cosine,
)
from gandefense.training.trn import validate


def _detectors() -> list[DetectorConfig]:
    """Reconstruction error of either autoencoder, divergence at two temperatures on the reformer's output."""
    return [
        DetectorConfig("l2", 0, drop_rate=0.005),
        DetectorConfig("l1", 1, drop_rate=0.005),
        DetectorConfig("jsd", 0, temperature=10.0, drop_rate=0.01),
        DetectorConfig("jsd", 0, temperature=40.0, drop_rate=0.01),
    ]


@dataclass
class MagNetNetworkConfig:
    """The autoencoders, see AutoEncoder; the first is the reformer."""

    structures: list[list[str]] = field(default_factory=lambda: [["3"], ["3", "average", "3"]])
    activation: str = "sigmoid"


@dataclass
class MagNetTrainConfig:
    """Mean squared error of denoising; the authors: Adam at 1e-3, batches of 256, 100 epochs (400 on CIFAR-10)."""

    steps: int = 6000
    batch_size: int = 16
    learning_rate: float = 3e-2  # peak, Adam; above the authors' 1e-3, because the steps are far fewer
    warmup: int = 100
    noise: float = 0.025  # standard deviation of the Gaussian noise on the input, on the [0, 1] scale
    activity_weight: float = 1e-9  # of the sum of squared hidden activations
    ema_decay: float = 0.998


@dataclass
class MagNetConfig:
    """tools/train_baseline.py with `baseline: magnet`"""

    baseline: str = "magnet"
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    classifier: str = "cifar10/classifier"  # zoo name, run folder or safetensors file; the divergence detectors ask it
    validation_rows: int = 1536  # validation images attacked at 8/255, to watch the training by
    network: MagNetNetworkConfig = field(default_factory=MagNetNetworkConfig)
    detectors: list[DetectorConfig] = field(default_factory=_detectors)
    train: MagNetTrainConfig = field(default_factory=MagNetTrainConfig)
    resume: str | None = None


@torch.no_grad()
def choose_thresholds(restorer: MagNetRestorer, validation: datasets.Images, device: torch.device) -> list[float]:
    """One threshold a detector, by its drop rate on clean validation images; never below 1e-12, where score is a quotient."""
    marks = torch.cat([restorer.marks(part).cpu() for part in pieces(validation.images, 256, device)])
    return [
        max(1e-12, drop_threshold(column, detector.drop_rate))
        for column, detector in zip(marks.unbind(1), restorer.detectors, strict=True)
    ]


def train(config: MagNetConfig) -> Path:
    """Train MagNet and write it as model.safetensors into its run folder.

    Returns:
        The weights' path.

    Raises:
        UserError: bad data, config or checkpoint, or a loss that is no longer finite.
    """
    options = config.train
    device = current_device(config.run.device)
    data = datasets.describe(config.data)
    check_settings(config.run)
    require(
        counts={"train.steps": options.steps, "train.batch_size": options.batch_size, "validation_rows": config.validation_rows},
        positive={"train.learning_rate": options.learning_rate},
    )
    check_detectors(config.detectors, len(config.network.structures))
    autocast(device, config.run.precision)
    seed_everything(config.run.seed)
    shape = {"channels": data.channels, **asdict(config.network)}
    autoencoders = build_autoencoders(**shape).to(device, memory_format=torch.channels_last)
    classifier = zoo.load_classifier(config.classifier).to(device, memory_format=torch.channels_last)
    zoo.try_out(config.classifier, classifier, data, device)
    images = datasets.load(config.data, "train", seed=config.run.seed)
    validation = datasets.load(config.data.whole(), "validation")
    average = exponential_average(autoencoders, options.ema_decay)
    optimiser = torch.optim.Adam(autoencoders.parameters(), lr=options.learning_rate)
    made_from = provenance(classifier, images, validation)
    with open_run("magnet", config, config.run, config.resume, made_from) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"

        small = AttackedSetConfig(rows=config.validation_rows, budgets=[8 / 255], seed=1, precision="float32")
        held_out = attacked_set(
            classifier, validation, small, device=device, root=config.data.root, name=f"{data.name}-validation"
        )
        run.restore(autoencoders=autoencoders, average=average, optimiser=optimiser)
        restorer = MagNetRestorer(average.module, classifier, config.detectors).eval()

        bar = run.progress(options.steps, "step", "magnet")
        means = Means()
        for step in range(run.step, options.steps):
            chosen = batch_indices(len(images.labels), options.batch_size, step, config.run.seed)
            clean = to_float(images.images[chosen].to(device)).contiguous(memory_format=torch.channels_last)
            noisy = (clean + options.noise * torch.randn_like(clean)).clamp(0, 1)
            with autocast(device, config.run.precision):
                made, activities = zip(*(autoencoder.with_activity(noisy) for autoencoder in autoencoders), strict=True)
            errors = torch.stack([F.mse_loss(reconstruction, clean) for reconstruction in made])
            # The autoencoders share no weight: summing their losses trains each as if alone.
            loss = errors.sum() + options.activity_weight * torch.stack(activities).sum()

            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * warm_cosine(step, options.steps, options.warmup)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            average.update_parameters(autoencoders)

            rms = {f"pixel_error_{number}": error.sqrt() * 255 for number, error in enumerate(errors)}
            means.add(loss=loss, **rms)
            run.step = step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or run.step == options.steps:
                check_finite(means, run)
                images_seen = means.steps * len(clean)
                run.log(means.take(), images=images_seen)
            if run.step % config.run.image_every == 0 or run.step == options.steps:
                run.log(validate(restorer, classifier, held_out, validation, device))
                grid(run, restorer, held_out, validation, device)
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()

        thresholds = choose_thresholds(restorer, validation, device)
        metadata = {
            "kind": "magnet",
            "data": data.name,
            "classifier": config.classifier,
            "classifier_fingerprint": fingerprint(classifier),
            "network": shape,
            "detectors": [asdict(detector) for detector in config.detectors],
            "thresholds": thresholds,
            "measured": validate(restorer, classifier, held_out, validation, device),
        }
        path = run.finish(average.module.state_dict(), metadata)
        print(f"{readable(metadata['measured'])}; weights: {path}")
        return path
