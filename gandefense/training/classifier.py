"""Training of a classifier, standard or adversarial, from top to bottom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense import classifiers, zoo
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import augmentation, batch_indices, batches, to_float
from gandefense.precision import autocast
from gandefense.training import adversarial
from gandefense.training.adversarial import AdversarialConfig
from gandefense.training.run import check_finite, check_settings, open_run
from gandefense.training.state import (
    Means,
    choose_device,
    exponential_average,
    one_cycle,
    require,
    seed_everything,
)
from gandefense.weights_io import fill, load_weights


@dataclass
class OptimiserConfig:
    """SGD with a one-cycle learning rate."""

    batch_size: int = 256
    epochs: float = 28
    learning_rate: float = 0.2  # peak, for batches of 256 and the mean loss
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.2  # fraction of the steps in which the learning rate rises
    label_smoothing: float = 0.1
    erase: float = 0.0  # probability of random erasing
    ema_decay: float = 0.998  # of the weights that are kept in the end
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)


@dataclass
class ClassifierConfig:
    """tools/train_classifier.py"""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    architecture: str = "resnet11"
    start: str | None = None  # weights to start from: a run folder or safetensors file of fitting shapes; None: random
    train: OptimiserConfig = field(default_factory=OptimiserConfig)
    resume: str | None = None


@torch.no_grad()
def accuracy(network: nn.Module, images: datasets.Images, device: torch.device, batch_size: int = 500) -> float:
    """Fraction of images that a network in eval mode classifies correctly, in float32."""
    was_training = network.training
    network.eval()
    right = sum((network(batch).argmax(1) == labels).sum().item() for batch, labels in batches(images, batch_size, device))
    network.train(was_training)
    return right / len(images.labels)


def train(config: ClassifierConfig) -> Path:
    """Train a classifier and write it as model.safetensors into its run folder.

    Returns:
        The weights' path.

    Raises:
        UserError: bad data, config or checkpoint, or a loss that is no longer finite.
    """
    options, attacks = config.train, config.train.adversarial
    device = choose_device(config.run.device)
    data = datasets.describe(config.data.name)
    check_settings(config.run)
    require(
        counts={"train.batch_size": options.batch_size},
        positive={"train.epochs": options.epochs, "train.learning_rate": options.learning_rate},
    )
    adversarial.check(options.adversarial)
    autocast(device, config.run.precision)
    seed_everything(config.run.seed)
    images = datasets.load(config.data, "train", seed=config.run.seed)
    validation = datasets.load(DataConfig(config.data.name, config.data.root, config.data.download), "validation")
    network = classifiers.build(config.architecture, data).to(device, memory_format=torch.channels_last)
    if config.start is not None:
        path = zoo.find(config.start)
        fill(network, load_weights(path)[0], source=path)
    average = exponential_average(network, options.ema_decay)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=True,
    )
    augment = augmentation(data.size, erase=options.erase)
    with open_run("classifier", config, config.run, config.resume) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"
        run.restore(network=network, average=average, optimiser=optimiser)

        batch_size = min(options.batch_size, len(images.labels))
        per_epoch = len(images.labels) // batch_size
        steps = max(1, round(options.epochs * per_epoch))
        bar = run.progress(steps, "step", "classifier")
        network.train()
        means = Means()
        for step in range(run.step, steps):
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * one_cycle(step, steps, options.warmup)
            chosen = batch_indices(len(images.labels), batch_size, step, config.run.seed)
            batch: Tensor = augment(to_float(images.images[chosen].to(device)))
            labels = images.labels[chosen].to(device)
            batch = batch.contiguous(memory_format=torch.channels_last)
            with autocast(device, config.run.precision):
                if attacks.method == "none":
                    loss = F.cross_entropy(network(batch).float(), labels, label_smoothing=options.label_smoothing)
                else:
                    attacked = adversarial.attacked_batch(network, batch, labels, attacks)
                    loss = F.cross_entropy(network(attacked).float(), labels, label_smoothing=options.label_smoothing)
                    if attacks.clean_weight > 0:
                        clean = F.cross_entropy(network(batch).float(), labels, label_smoothing=options.label_smoothing)
                        loss = attacks.clean_weight * clean + (1 - attacks.clean_weight) * loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            average.update_parameters(network)

            means.add(loss=loss)
            run.step = step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or run.step == steps:
                check_finite(means, run)
                images_seen = means.steps * batch_size
                run.log({**means.take(), "train/learning_rate": optimiser.param_groups[0]["lr"]}, images=images_seen)
            if run.step % per_epoch == 0 or run.step == steps:
                run.log({"validation/accuracy": accuracy(average.module, validation, device)})
                if attacks.method != "none" and run.step < steps:  # the last one is measured below
                    run.log(
                        {"validation/robust_accuracy": adversarial.robust_accuracy(average.module, validation, attacks, device)}
                    )
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()

        measured = {"validation_accuracy": accuracy(average.module, validation, device), "validation_n": len(validation.labels)}
        if attacks.method != "none":
            robust = adversarial.robust_accuracy(average.module, validation, attacks, device)
            run.log({"validation/robust_accuracy": robust})
            measured["validation_robust_accuracy"] = robust
        metadata = {
            "kind": "classifier",
            "adversarial": attacks.method,
            "architecture": config.architecture,
            "data": data.name,
            "measured": measured,
        }
        path = run.finish(average.module.state_dict(), metadata)
        print(f"validation accuracy {measured['validation_accuracy']:.4f} (n = {measured['validation_n']}); weights: {path}")
        return path
