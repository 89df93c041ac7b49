"""Training APE-GAN's generator against its discriminator on cached FGSM images, from top to bottom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from gandefense import zoo
from gandefense.attacks.cache import AttackedSetConfig, attacked_set, fingerprint, plan, provenance
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, to_float
from gandefense.precision import autocast
from gandefense.restorers.baselines.ape_gan import (
    ADVERSARIAL_WEIGHT,
    MSE_WEIGHT,
    APEDiscriminator,
    APEGANRestorer,
    APEGenerator,
    discriminator_loss,
    generator_loss,
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


@dataclass
class APEGANNetworkConfig:
    """The networks, see APEGenerator and APEDiscriminator."""

    width: int = 64  # of the generator
    discriminator_width: int = 64


@dataclass
class APEGANTrainConfig:
    """Losses and optimisers: Adam with β1 = 0.5 for both networks, as published."""

    steps: int = 1000  # of the discriminator
    generator_steps: int = 2  # of the generator after each one of the discriminator, on the same images
    batch_size: int = 32
    mse_weight: float = MSE_WEIGHT  # ξ1, of the mean squared pixel error (scale 0 to 1)
    adversarial_weight: float = ADVERSARIAL_WEIGHT  # ξ2, of −log D(G(x'))
    learning_rate: float = 2e-4  # peak; the publication's is constant, ours falls to 0 in the end
    warmup: int = 0
    ema_decay: float = 0.998  # of the generator that is kept in the end; ours


@dataclass
class APEGANConfig:
    """tools/train_baseline.py with `baseline: ape_gan`"""

    baseline: str = "ape_gan"
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    classifier: str = "cifar10/classifier"  # zoo name, run folder or safetensors file; its FGSM images are trained on
    attacked: AttackedSetConfig = field(default_factory=lambda: AttackedSetConfig(attacks=["fgsm"]))
    validation_rows: int = 1536  # validation images attacked at 8/255, to watch the training by
    network: APEGANNetworkConfig = field(default_factory=APEGANNetworkConfig)
    train: APEGANTrainConfig = field(default_factory=APEGANTrainConfig)
    resume: str | None = None


def train(config: APEGANConfig) -> Path:
    """Train APE-GAN and write its generator as model.safetensors into its run folder.

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
            "train.generator_steps": options.generator_steps,
            "train.batch_size": options.batch_size,
            "validation_rows": config.validation_rows,
            "network.width": config.network.width,
            "network.discriminator_width": config.network.discriminator_width,
        },
        positive={"train.learning_rate": options.learning_rate},
    )
    autocast(device, config.run.precision)
    plan(config.attacked)
    seed_everything(config.run.seed)
    shape = {"channels": data.channels, "width": config.network.width}
    network = APEGenerator(**shape).to(device, memory_format=torch.channels_last)
    discriminator = APEDiscriminator(channels=data.channels, size=data.size, width=config.network.discriminator_width)
    discriminator = discriminator.to(device, memory_format=torch.channels_last)
    classifier = zoo.load_classifier(config.classifier).to(device, memory_format=torch.channels_last)
    zoo.try_out(config.classifier, classifier, data, device)
    images = datasets.load(config.data, "train", seed=config.run.seed)
    validation = datasets.load(config.data.whole(), "validation")
    average = exponential_average(network, options.ema_decay)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate, betas=(0.5, 0.999))
    discriminator_optimiser = torch.optim.Adam(discriminator.parameters(), lr=options.learning_rate, betas=(0.5, 0.999))
    made_from = provenance(classifier, images, validation)
    with open_run("ape_gan", config, config.run, config.resume, made_from) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"

        place = {"device": device, "root": config.data.root}
        attacked = attacked_set(classifier, images, config.attacked, **place, name=f"{data.name}-train")
        small = AttackedSetConfig(rows=config.validation_rows, budgets=[8 / 255], seed=1, precision="float32")
        held_out = attacked_set(classifier, validation, small, **place, name=f"{data.name}-validation")

        run.restore(
            network=network,
            average=average,
            optimiser=optimiser,
            discriminator=discriminator,
            discriminator_optimiser=discriminator_optimiser,
        )
        restorer = APEGANRestorer(average.module).eval()

        bar = run.progress(options.steps, "step", "ape_gan")
        means = Means()
        network.train()
        discriminator.train()
        for step in range(run.step, options.steps):
            for group in (*optimiser.param_groups, *discriminator_optimiser.param_groups):
                group["lr"] = options.learning_rate * warm_cosine(step, options.steps, options.warmup)
            rows = batch_indices(len(attacked), options.batch_size, step, config.run.seed)
            clean = to_float(images.images[attacked.source[rows]].to(device)).contiguous(memory_format=torch.channels_last)
            batch = attacked.rows(rows).to(device).contiguous(memory_format=torch.channels_last)

            # The discriminator: clean images are real, restored ones fake.
            discriminator.requires_grad_(True)
            with autocast(device, config.run.precision):
                with torch.no_grad():
                    restored = network(batch)
                real, fake = discriminator(clean), discriminator(restored)
                loss_discriminator = discriminator_loss(real, fake)
            discriminator_optimiser.zero_grad(set_to_none=True)
            loss_discriminator.backward()
            discriminator_optimiser.step()

            # The generator: near the clean image, and taken for one by the discriminator.
            discriminator.requires_grad_(False)
            for _ in range(options.generator_steps):
                with autocast(device, config.run.precision):
                    restored = network(batch)
                    fake = discriminator(restored)
                loss = generator_loss(
                    restored, clean, fake, mse_weight=options.mse_weight, adversarial_weight=options.adversarial_weight
                )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                average.update_parameters(network)

            means.add(
                loss=loss,
                loss_discriminator=loss_discriminator,
                pixel_error=(restored.float() - clean).abs().mean() * 255,
                taken_for_real=(fake > 0).float().mean(),  # restored images that the discriminator takes for clean ones
            )
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
            "kind": "ape_gan",
            "data": data.name,
            "classifier": config.classifier,
            "classifier_fingerprint": fingerprint(classifier),
            "network": shape,
            "measured": validate(restorer, classifier, held_out, validation, device),
        }
        path = run.finish(average.module.state_dict(), metadata)
        print(f"{readable(metadata['measured'])}; weights: {path}")
        return path
