"""Training Defense-GAN's generator: a Wasserstein GAN with gradient penalty on clean images alone, from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gandefense import zoo
from gandefense.attacks.cache import AttackedSet, AttackedSetConfig, attacked_set, fingerprint, provenance
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import batch_indices, to_float
from gandefense.precision import autocast
from gandefense.restorers.baselines.defense_gan import DefenseGANRestorer, ImageGenerator, LatentSearch, he_initialisation
from gandefense.training.baselines.looking import grid, score_threshold
from gandefense.training.run import Run, check_finite, check_settings, open_run
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
class DefenseGANNetworkConfig:
    """The networks, see ImageGenerator and Critic."""

    latent: int = 64  # numbers that an image is made from
    width: int = 32  # of the generator
    critic_width: int = 32


@dataclass
class SearchConfig:
    """The search that restores, see LatentSearch. It takes no part in the training; a run's weights file keeps it."""

    steps: int = 30  # L; 200 as published
    restarts: int = 2  # R; 10 as published for MNIST, 2 for CelebA
    rate: float = 10.0  # of gradient descent, as published; the last fifth of the steps has a tenth of it
    momentum: float = 0.7  # as published
    fixed_starts: bool = False  # the same starts for every image and every time; published: new random ones
    truncated: int = 5  # steps that the view `detached` differentiates


@dataclass
class DefenseGANTrainConfig:
    """Losses and optimisers: Adam with β = (0.5, 0.9), as published."""

    steps: int = 2000  # of the generator; 200,000 as published
    critic_steps: int = 5  # of the critic before each one of the generator, on images of their own; 5 as published
    batch_size: int = 50  # as published
    penalty: float = 10.0  # λ, weight of the gradient penalty
    learning_rate: float = 1e-4  # peak; the publication's is constant, ours falls to 0 in the end
    warmup: int = 0
    ema_decay: float = 0.998  # of the generator that is kept in the end; ours


@dataclass
class DefenseGANConfig:
    """tools/train_baseline.py with `baseline: defense_gan`"""

    baseline: str = "defense_gan"
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    classifier: str = "cifar10/classifier"  # whom it defends; the training never asks it, only the validation does
    validation_rows: int = 192  # validation images attacked at 8/255, to watch the training by; each needs a search
    network: DefenseGANNetworkConfig = field(default_factory=DefenseGANNetworkConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    train: DefenseGANTrainConfig = field(default_factory=DefenseGANTrainConfig)
    false_positive_rate: float = 0.05  # of the detection threshold
    threshold_images: int = 512  # validation images that the threshold is chosen on; each needs a search
    resume: str | None = None


class Critic(nn.Module):
    """Three strided convolutions and a linear layer, without normalisation: images (B, C, H, W) in [0, 1] → scores (B,).

    Args:
        channels: of the image.
        size: height and width of the image.
        width: channels at half the resolution, doubled twice.
    """

    def __init__(self, *, channels: int, size: int, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, width, 5, stride=2, padding=2), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, 2 * width, 5, stride=2, padding=2), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(2 * width, 4 * width, 5, stride=2, padding=2), nn.LeakyReLU(0.2)),
        )
        self.score = nn.Linear(4 * width * (-(-size // 8)) ** 2, 1)
        he_initialisation(self)

    def forward(self, images: Tensor) -> Tensor:
        """Scores; higher means more like a real image."""
        return self.score(self.features(images).flatten(1)).squeeze(1)


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Mean of (‖∇ critic(x̂)‖₂ − 1)² at random points x̂ between real and fake images (Gulrajani et al. 2017, eq. 3).

    Args:
        critic: images → scores (B,).
        real: (B, C, H, W).
        fake: of the same shape, without a graph.
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = torch.lerp(real, fake, share).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Every look at the training begins its searches at the same random starts, and leaves the training's own draws alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


@torch.no_grad()
def look(
    run: Run, restorer: DefenseGANRestorer, latents: Tensor, attacked: AttackedSet, images: datasets.Images, device: torch.device
) -> None:
    """Generated images of fixed latents, and the grid that every restorer has, in TensorBoard."""
    run.grid("validation/generated", list(restorer.generator(latents).split(12)))
    grid(run, restorer, attacked, images, device)


def train(config: DefenseGANConfig) -> Path:
    """Train Defense-GAN and write its generator as model.safetensors into its run folder.

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
            "train.critic_steps": options.critic_steps,
            "train.batch_size": options.batch_size,
            "validation_rows": config.validation_rows,
            "threshold_images": config.threshold_images,
            "network.latent": config.network.latent,
            "network.width": config.network.width,
            "network.critic_width": config.network.critic_width,
        },
        positive={"train.learning_rate": options.learning_rate, "train.penalty": options.penalty},
        fractions={"false_positive_rate": config.false_positive_rate},
    )
    autocast(device, config.run.precision)
    search = LatentSearch(**asdict(config.search))
    seed_everything(config.run.seed)
    shape = {"channels": data.channels, "size": data.size, "latent": config.network.latent, "width": config.network.width}
    generator = ImageGenerator(**shape).to(device, memory_format=torch.channels_last)
    critic = Critic(channels=data.channels, size=data.size, width=config.network.critic_width)
    critic = critic.to(device, memory_format=torch.channels_last)
    looked_at = torch.randn(48, config.network.latent).to(device)
    classifier = zoo.load_classifier(config.classifier).to(device, memory_format=torch.channels_last)
    zoo.try_out(config.classifier, classifier, data, device)
    images = datasets.load(config.data, "train", seed=config.run.seed)
    validation = datasets.load(config.data.whole(), "validation")
    judged = validation.rows(slice(config.threshold_images))
    average = exponential_average(generator, options.ema_decay)
    optimiser = torch.optim.Adam(generator.parameters(), lr=options.learning_rate, betas=(0.5, 0.9))
    critic_optimiser = torch.optim.Adam(critic.parameters(), lr=options.learning_rate, betas=(0.5, 0.9))
    made_from = provenance(classifier, images, validation)
    with open_run("defense_gan", config, config.run, config.resume, made_from) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"

        small = AttackedSetConfig(rows=config.validation_rows, budgets=[8 / 255], seed=1, precision="float32")
        held_out = attacked_set(
            classifier, validation, small, device=device, root=config.data.root, name=f"{data.name}-validation"
        )
        run.restore(generator=generator, average=average, optimiser=optimiser, critic=critic, critic_optimiser=critic_optimiser)
        restorer = DefenseGANRestorer(average.module, search).to(device).eval()

        bar = run.progress(options.steps, "step", "defense_gan")
        means = Means()
        for step in range(run.step, options.steps):
            for group in (*optimiser.param_groups, *critic_optimiser.param_groups):
                group["lr"] = options.learning_rate * warm_cosine(step, options.steps, options.warmup)

            # The critic: clean images score high, generated ones low, with a slope of 1 between them.
            critic.requires_grad_(True)
            chosen = batch_indices(len(images.labels), options.batch_size * options.critic_steps, step, config.run.seed)
            parts = chosen.split(options.batch_size)
            for part in parts:
                real = to_float(images.images[part].to(device)).contiguous(memory_format=torch.channels_last)
                with autocast(device, config.run.precision):
                    with torch.no_grad():
                        fake = generator(torch.randn(len(real), config.network.latent, device=device)).float()
                    real_score, fake_score = critic(real).float().mean(), critic(fake).float().mean()
                penalty = gradient_penalty(critic, real, fake)  # a second derivative: in float32
                loss = fake_score - real_score + options.penalty * penalty
                critic_optimiser.zero_grad(set_to_none=True)
                loss.backward()
                critic_optimiser.step()
                means.add(
                    share=1 / len(parts),
                    ends_step=False,
                    loss=loss,
                    wasserstein=real_score - fake_score,
                    gradient_penalty=penalty,
                )

            # The generator: generated images score high.
            critic.requires_grad_(False)
            with autocast(device, config.run.precision):
                fake = generator(torch.randn(options.batch_size, config.network.latent, device=device))
                generator_loss = -critic(fake.contiguous(memory_format=torch.channels_last)).float().mean()
            optimiser.zero_grad(set_to_none=True)
            generator_loss.backward()
            optimiser.step()
            average.update_parameters(generator)

            means.add(loss_generator=generator_loss)
            run.step = step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or run.step == options.steps:
                check_finite(means, run)
                images_seen = means.steps * len(chosen)
                run.log(means.take(), images=images_seen)
            if run.step % config.run.image_every == 0 or run.step == options.steps:
                with same_draws(device):
                    run.log(validate(restorer, classifier, held_out, validation, device))
                    look(run, restorer, looked_at, held_out, validation, device)
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()

        with same_draws(device):
            measured = validate(restorer, classifier, held_out, validation, device)
            threshold = score_threshold(restorer, judged, config.false_positive_rate, device)
        metadata = {
            "kind": "defense_gan",
            "data": data.name,
            "classifier": config.classifier,
            "classifier_fingerprint": fingerprint(classifier),
            "network": shape,
            "search": asdict(search),
            "threshold": threshold,
            "measured": measured,
        }
        path = run.finish(average.module.state_dict(), metadata)
        print(f"{readable(metadata['measured'])}; weights: {path}")
        return path
