"""Training DDSA's sparse denoising autoencoder by minimum over maximum, on clean images alone, from top to bottom."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gandefense import zoo
from gandefense.attacks.cache import AttackedSetConfig, attacked_set, fingerprint, provenance
from gandefense.attacks.suite import frozen
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, pieces, to_float
from gandefense.precision import autocast
from gandefense.restorers.baselines.ddsa import DDSARestorer, SparseAutoEncoder, worst_perturbation
from gandefense.training.baselines.looking import grid, score_threshold
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


@dataclass
class DDSANetworkConfig:
    """The autoencoder, see SparseAutoEncoder."""

    width: int = 32
    features: int = 9
    code: int = 1024
    target: float = 0.1  # µ, the mean activation of every number of the code


@dataclass
class DDSATrainConfig:
    """min over the network of max over the perturbation of J(x, f(x')), plus J(x, f(x)); J = mean (x − f(x'))²."""

    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 2e-3  # peak, Adam
    warmup: int = 100
    eps: float = 8 / 255  # of the inner PGD
    attack_steps: int = 3  # of the inner PGD; each costs a forward and a backward pass
    sparsity_rate: float = 5.0  # β: the code's bias moves by β times the learning rate times (µ̂ − µ)
    ema_decay: float = 0.998
    gradient_clip: float = 5.0  # norm


@dataclass
class DDSAConfig:
    """tools/train_baseline.py with `baseline: ddsa`"""

    baseline: str = "ddsa"
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    classifier: str = "cifar10/classifier"  # whom it defends; the training never asks it, only the validation does
    validation_rows: int = 1536  # validation images attacked at 8/255, to watch the training by
    network: DDSANetworkConfig = field(default_factory=DDSANetworkConfig)
    train: DDSATrainConfig = field(default_factory=DDSATrainConfig)
    false_positive_rate: float = 0.05  # of the detection threshold, on validation images
    resume: str | None = None


@torch.no_grad()
def reconstruction_rms(restorer: DDSARestorer, validation: datasets.Images, device: torch.device) -> float:
    """Root mean square error of reconstructed clean validation images, in units of 1/255."""
    squares = torch.cat([restorer(part).score.double().square() for part in pieces(validation.images, 256, device)])
    return squares.mean().sqrt().item()


def train(config: DDSAConfig) -> Path:
    """Train DDSA and write it as model.safetensors into its run folder.

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
        counts={
            "train.steps": options.steps,
            "train.batch_size": options.batch_size,
            "train.attack_steps": options.attack_steps,
            "validation_rows": config.validation_rows,
            "network.width": config.network.width // 2,
            "network.features": config.network.features,
            "network.code": config.network.code,
        },
        positive={
            "train.learning_rate": options.learning_rate,
            "train.eps": options.eps,
            "network.target": config.network.target,
        },
        fractions={"false_positive_rate": config.false_positive_rate},
    )
    autocast(device, config.run.precision)
    seed_everything(config.run.seed)
    shape = {"channels": data.channels, "size": data.size, **asdict(config.network)}
    network = SparseAutoEncoder(**shape).to(device)
    classifier = zoo.load_classifier(config.classifier).to(device, memory_format=torch.channels_last)
    zoo.try_out(config.classifier, classifier, data, device)
    images = datasets.load(config.data, "train", seed=config.run.seed)
    validation = datasets.load(config.data.whole(), "validation")
    average = exponential_average(network, options.ema_decay)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    made_from = provenance(classifier, images, validation)
    with open_run("ddsa", config, config.run, config.resume, made_from) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"

        small = AttackedSetConfig(rows=config.validation_rows, budgets=[8 / 255], seed=1, precision="float32")
        held_out = attacked_set(
            classifier, validation, small, device=device, root=config.data.root, name=f"{data.name}-validation"
        )
        run.restore(network=network, average=average, optimiser=optimiser)
        restorer = DDSARestorer(average.module).eval()

        bar = run.progress(options.steps, "step", "ddsa")
        means = Means()
        network.train()
        for step in range(run.step, options.steps):
            chosen = batch_indices(len(images.labels), options.batch_size, step, config.run.seed)
            clean = to_float(images.images[chosen].to(device))
            with autocast(device, config.run.precision):
                with frozen(network):  # in eval mode: the search must not move the code's running mean
                    attacked = worst_perturbation(network, clean, eps=options.eps, steps=options.attack_steps)
                attacked_loss = F.mse_loss(network(attacked), clean)
                clean_loss = F.mse_loss(network(clean), clean)
            loss = attacked_loss + clean_loss

            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * warm_cosine(step, options.steps, options.warmup)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), options.gradient_clip)
            optimiser.step()
            network.code.update_bias(optimiser.param_groups[0]["lr"] * options.sparsity_rate)
            average.update_parameters(network)

            rms = {"attacked_error": attacked_loss.sqrt() * 255, "clean_error": clean_loss.sqrt() * 255}
            means.add(loss=loss, **rms, mean_activation=network.code.mean_activation.mean())
            run.step = step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or run.step == options.steps:
                check_finite(means, run)
                images_seen = means.steps * len(clean)
                run.log(means.take(), images=images_seen)
            if run.step % config.run.image_every == 0 or run.step == options.steps:
                run.log(validate(restorer, classifier, held_out, validation, device))
                run.log({"validation/clean_error": reconstruction_rms(restorer, validation, device)})
                grid(run, restorer, held_out, validation, device)
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()

        measured = validate(restorer, classifier, held_out, validation, device)
        metadata = {
            "kind": "ddsa",
            "data": data.name,
            "classifier": config.classifier,
            "classifier_fingerprint": fingerprint(classifier),
            "network": shape,
            "threshold": score_threshold(restorer, validation, config.false_positive_rate, device),
            "measured": {**measured, "validation/clean_error": reconstruction_rms(restorer, validation, device)},
        }
        path = run.finish(average.module.state_dict(), metadata)
        print(f"{readable(metadata['measured'])}; weights: {path}")
        return path
