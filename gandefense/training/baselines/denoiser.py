"""Training the image-only denoiser on cached attacked images, guided by the classifier, from top to bottom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gandefense import zoo
from gandefense.attacks.cache import AttackedSetConfig, attacked_set, fingerprint, plan, provenance
from gandefense.attacks.suite import frozen
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, to_float
from gandefense.errors import UserError
from gandefense.precision import autocast
from gandefense.restorers.baselines.denoiser import DenoiserRestorer, DenoisingUNet
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

GUIDES = ("logits", "features", "pixels")


@dataclass
class DenoiserNetworkConfig:
    """The network, see DenoisingUNet."""

    widths: list[int] = field(default_factory=lambda: [16, 32, 64])
    norm: str = "group"


@dataclass
class DenoiserTrainConfig:
    """Loss and optimiser."""

    guide: str = "logits"  # what the denoised image must agree in with the clean one: logits (LGD), features (FGD) or pixels
    pixel_weight: float = 0.0  # of the mean absolute pixel error (scale 0 to 1) beside that; 0 as published
    steps: int = 800
    batch_size: int = 64
    learning_rate: float = 2e-3  # peak, Adam
    warmup: int = 100
    ema_decay: float = 0.998
    gradient_clip: float = 5.0  # norm


@dataclass
class DenoiserConfig:
    """tools/train_baseline.py with `baseline: denoiser`"""

    baseline: str = "denoiser"
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    classifier: str = "cifar10/classifier"  # zoo name, run folder or safetensors file
    attacked: AttackedSetConfig = field(default_factory=AttackedSetConfig)
    validation_rows: int = 1536  # validation images attacked at 8/255, to watch the training by
    network: DenoiserNetworkConfig = field(default_factory=DenoiserNetworkConfig)
    train: DenoiserTrainConfig = field(default_factory=DenoiserTrainConfig)
    false_positive_rate: float = 0.05  # of the detection threshold, on validation images
    resume: str | None = None


def guidance(guide: str, classifier: nn.Module, images: Tensor) -> Tensor:
    """What the denoised image is compared by, (B, n) for images (B, C, H, W) in [0, 1].

    "features" are what the classifier's last linear layer reads, "logits" what it answers; "pixels" are the image itself.

    Raises:
        UserError: an unknown guide, or features asked of a classifier without a linear layer.
    """
    if guide not in GUIDES:
        raise UserError(f"unknown train.guide {guide!r}; known: {', '.join(GUIDES)}")
    if guide == "pixels":
        return images.flatten(1)
    if guide == "logits":
        return classifier(images).float()
    heads = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise UserError("train.guide=features needs a classifier that ends in a linear layer; use logits")
    seen: list[Tensor] = []
    handle = heads[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        classifier(images)
    finally:
        handle.remove()
    return seen[-1].float().flatten(1)


def train(config: DenoiserConfig) -> Path:
    """Train the denoiser and write it as model.safetensors into its run folder.

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
        fractions={"false_positive_rate": config.false_positive_rate},
    )
    autocast(device, config.run.precision)
    plan(config.attacked)
    seed_everything(config.run.seed)
    shape = {"channels": data.channels, "widths": list(config.network.widths), "norm": config.network.norm}
    network = DenoisingUNet(**shape).to(device, memory_format=torch.channels_last)
    classifier = zoo.load_classifier(config.classifier).to(device, memory_format=torch.channels_last)
    zoo.try_out(config.classifier, classifier, data, device)
    with torch.no_grad():  # an unknown guide is refused before any work
        guidance(options.guide, classifier, torch.zeros(1, data.channels, data.size, data.size, device=device))
    images = datasets.load(config.data, "train", seed=config.run.seed)
    validation = datasets.load(config.data.whole(), "validation")
    average = exponential_average(network, options.ema_decay)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    made_from = provenance(classifier, images, validation)
    with open_run("denoiser", config, config.run, config.resume, made_from) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"

        place = {"device": device, "root": config.data.root}
        attacked = attacked_set(classifier, images, config.attacked, **place, name=f"{data.name}-train")
        small = AttackedSetConfig(rows=config.validation_rows, budgets=[8 / 255], seed=1, precision="float32")
        held_out = attacked_set(classifier, validation, small, **place, name=f"{data.name}-validation")

        run.restore(network=network, average=average, optimiser=optimiser)
        restorer = DenoiserRestorer(average.module).eval()

        bar = run.progress(options.steps, "step", "denoiser")
        means = Means()
        with frozen(classifier):
            for step in range(run.step, options.steps):
                rows = batch_indices(len(attacked), options.batch_size, step, config.run.seed)
                source = attacked.source[rows]
                clean = to_float(images.images[source].to(device)).contiguous(memory_format=torch.channels_last)
                batch = attacked.rows(rows).to(device).contiguous(memory_format=torch.channels_last)

                with autocast(device, config.run.precision):
                    with torch.no_grad():
                        goal = guidance(options.guide, classifier, clean)
                    restored = network(batch).contiguous(memory_format=torch.channels_last)
                    guided = guidance(options.guide, classifier, restored)
                guide_loss = (guided.float() - goal.float()).abs().mean()
                pixel_loss = (restored.float() - clean).abs().mean()
                loss = guide_loss + options.pixel_weight * pixel_loss

                for group in optimiser.param_groups:
                    group["lr"] = options.learning_rate * warm_cosine(step, options.steps, options.warmup)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), options.gradient_clip)
                optimiser.step()
                average.update_parameters(network)

                means.add(loss=loss, pixel_error=pixel_loss * 255, guide_loss=guide_loss)
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

        metadata = {
            "kind": "denoiser",
            "data": data.name,
            "classifier": config.classifier,
            "classifier_fingerprint": fingerprint(classifier),
            "network": shape,
            "threshold": score_threshold(restorer, validation, config.false_positive_rate, device),
            "measured": validate(restorer, classifier, held_out, validation, device),
        }
        path = run.finish(average.module.state_dict(), metadata)
        print(f"{readable(metadata['measured'])}; weights: {path}")
        return path
