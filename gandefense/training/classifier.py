"""Training of a classifier, standard or adversarial, from top to bottom."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gandefense import classifiers, distributed
from gandefense.attacks.cache import fingerprint
from gandefense.attacks.noise import gaussian_signed
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import at_once, augmentation, batch_indices, batches, content_hash, to_float
from gandefense.errors import UserError
from gandefense.precision import autocast
from gandefense.training import adversarial, vaccination
from gandefense.training.adversarial import AdversarialConfig
from gandefense.training.adversarial_weights import perturbed_weights
from gandefense.training.batch_norm import synchronised
from gandefense.training.parts import check_parts, parts
from gandefense.training.run import check_finite, check_settings, open_run
from gandefense.training.soft_labels import DistillationConfig, last_layer, load_teacher, magnify, soft_labels
from gandefense.training.starting import begin_from
from gandefense.training.state import (
    Means,
    choose_device,
    exponential_average,
    one_cycle,
    require,
    seed_everything,
)
from gandefense.training.vaccination import JpegConfig


@dataclass
class OptimiserConfig:
    """SGD with a one-cycle learning rate."""

    batch_size: int = 256  # images per step, over all processes
    accumulate: int = 1  # pieces that a process cuts its share of a batch into; batch norm then sees one piece at a time
    epochs: float = 28  # passes over the training images
    learning_rate: float = 0.2  # peak, for batches of 256 and the mean loss
    momentum: float = 0.9  # of SGD, Nesterov
    weight_decay: float = 5e-4  # of weights, not of biases and norms
    warmup: float = 0.2  # fraction of the steps in which the learning rate rises
    label_smoothing: float = 0.1  # share of the label that is spread over all classes
    erase: float = 0.0  # probability of random erasing
    # largest level of Gaussian noise on the [-1, 1] scale, drawn uniformly from 0 for each image; 0: none. The noisy image takes
    # the clean one's place in the loss, adversarial ones included
    noise: float = 0.0
    ema_decay: float = 0.998  # of the weights that are kept in the end
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    jpeg: JpegConfig = field(default_factory=JpegConfig)


@dataclass
class ClassifierConfig:
    """tools/train_classifier.py"""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    architecture: str = "resnet11"  # a name in CLASSIFIERS of gandefense/classifiers/__init__.py
    start: str | None = None  # weights to start from: a run folder or safetensors file of fitting shapes; None: random
    train: OptimiserConfig = field(default_factory=OptimiserConfig)
    resume: str | None = None  # a run folder to go on with; on the command line, alone


def with_noise(images: Tensor, largest: float) -> Tensor:
    """Images (B, C, H, W) in [0, 1] under Gaussian noise, each at a level drawn uniformly from 0 to `largest` on [-1, 1]."""
    if largest == 0:
        return images
    return gaussian_signed(images, largest * torch.rand(len(images), 1, 1, 1, device=images.device))


@torch.no_grad()
def accuracy(network: nn.Module, images: datasets.Images, device: torch.device, batch_size: int = 500) -> float:
    """Fraction of images that a network in eval mode classifies correctly, in float32."""
    was_training = network.training
    batch_size = at_once(images.images.shape[-1], batch_size)  # fewer, where they are larger than 32×32
    network.eval()
    right = sum((network(batch).argmax(1) == labels).sum().item() for batch, labels in batches(images, batch_size, device))
    network.train(was_training)
    return right / len(images.labels)


def _objective(
    network: nn.Module,
    clean: Tensor,
    attacked: Tensor,
    labels: Tensor,
    attacks: AdversarialConfig,
    smoothing: float,
    share: float,
    device: torch.device,
    precision: str,
) -> Tensor:
    """A part's loss, weighed by its share of the batch."""
    with autocast(device, precision):
        return share * adversarial.loss(network, clean, attacked, labels, attacks, smoothing=smoothing)


def train(config: ClassifierConfig) -> Path:
    """Train a classifier and write it as model.safetensors into its run folder; under torchrun, by all processes together.

    Returns:
        The weights' path.

    Raises:
        UserError: bad data, config or checkpoint, or a loss that is no longer finite.
    """
    with distributed.processes(choose_device(config.run.device)) as device:
        return _train(config, device)


def _train(config: ClassifierConfig, device: torch.device) -> Path:
    options, attacks = config.train, config.train.adversarial
    data = datasets.describe(config.data)
    check_settings(config.run)
    require(
        counts={"train.batch_size": options.batch_size},
        positive={"train.epochs": options.epochs, "train.learning_rate": options.learning_rate},
        shares={"train.label_smoothing": options.label_smoothing, "train.momentum": options.momentum},
        not_negative={"train.weight_decay": options.weight_decay, "train.noise": options.noise},
    )
    adversarial.check(options.adversarial)
    vaccination.check(options.jpeg)
    if options.accumulate > 1 and attacks.awp.gamma > 0:
        raise UserError("train.adversarial.awp needs the whole batch at once; set train.accumulate=1")
    autocast(device, config.run.precision)
    seed_everything(config.run.seed)
    with distributed.first_before_others():
        images = datasets.load(config.data, "train", seed=config.run.seed)
        validation = datasets.load(config.data.whole(), "validation")
    check_parts(options.accumulate, {"train.batch_size": min(options.batch_size, len(images.labels))})
    network = classifiers.build(config.architecture, data).to(device, memory_format=torch.channels_last)
    begun = begin_from(config.start, network, config.resume)
    teacher = load_teacher(options.distillation, data, device)
    if options.distillation.temperature != 1:
        last_layer(network)  # a classifier that cannot be magnified says so before it is trained
    average = exponential_average(network, options.ema_decay)
    network = synchronised(network, device)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=options.momentum > 0,
    )
    augment = augmentation(data.size, flip=data.flips, erase=options.erase)
    made_from = {"the images": content_hash(images, validation), **begun}
    if teacher is not None:
        made_from["the teacher"] = fingerprint(teacher)
    with open_run("classifier", config, config.run, config.resume, made_from) as run:
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
            batch = vaccination.vaccinated(batch, options.jpeg).contiguous(memory_format=torch.channels_last)
            noisy = with_noise(batch, options.noise)
            gamma = attacks.awp.gamma if step >= attacks.awp.warmup * per_epoch else 0.0
            optimiser.zero_grad(set_to_none=True)
            mine = parts(batch_size, options.accumulate, device)
            for part in mine:
                shown, goals = noisy[part.rows], labels[part.rows]
                with part.drawing(), autocast(device, config.run.precision):
                    attacked = adversarial.attacked_batch(network, shown, goals, attacks)
                    targets = goals
                    if teacher is not None:  # it is asked about the image without the noise
                        targets = soft_labels(teacher, batch[part.rows], options.distillation.teacher_temperature)
                terms = (network, shown, attacked, targets, attacks)
                objective = partial(_objective, *terms, options.label_smoothing, part.share, device, config.run.precision)
                with perturbed_weights(network, objective, gamma):
                    loss = objective()
                    loss.backward()
                means.add(ends_step=part is mine[-1], loss=loss)
            distributed.sum_gradients(network)
            optimiser.step()
            average.update_parameters(network)

            run.step = step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or run.step == steps:
                check_finite(means, run)
                images_seen = means.steps * batch_size
                run.log({**means.take(), "train/learning_rate": optimiser.param_groups[0]["lr"]}, images=images_seen)
            if run.step % per_epoch == 0 or run.step == steps:
                if distributed.is_first():
                    run.log({"validation/accuracy": accuracy(average.module, validation, device)})
                    if attacks.method != "none" and run.step < steps:  # the last one is measured below
                        robust = adversarial.robust_accuracy(average.module, validation, attacks, device)
                        run.log({"validation/robust_accuracy": robust})
                distributed.barrier()
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()

        trained = deepcopy(average.module)  # the checkpoint keeps the unmagnified one, for another resume
        magnify(trained, options.distillation.temperature)
        if distributed.is_first():
            measured = {
                "validation_accuracy": accuracy(trained, validation, device),
                "validation_n": len(validation.labels),
            }
            if attacks.method != "none":
                # Unmagnified: a temperature saturates the softmax, and the attack's gradients with it.
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
            path = run.finish(trained.state_dict(), metadata)
            print(f"validation accuracy {measured['validation_accuracy']:.4f} (n = {measured['validation_n']}); weights: {path}")
        distributed.barrier()
        return run.folder / "model.safetensors"
