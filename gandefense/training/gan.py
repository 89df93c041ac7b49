"""Training the GAN defence: a distilled student, then ISMN, perturbation classifier, generator and discriminator together."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gandefense import classifiers, zoo
from gandefense.attacks.cache import AttackedSetConfig, attacked_set, fingerprint, plan
from gandefense.attacks.noise import gaussian_signed
from gandefense.attacks.random_step import perturbation_level, random_step
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import augmentation, batch_indices, to_float
from gandefense.errors import UserError
from gandefense.precision import autocast
from gandefense.restorers.discriminator import Discriminator, discriminator_loss, generator_loss, r1_penalty
from gandefense.restorers.gan import GANNetworks, GANRestorer
from gandefense.training.classifier import accuracy
from gandefense.training.distillation import StudentConfig, clean_logits, distillation, student_step
from gandefense.training.gan_validation import choose_threshold, grids, validate
from gandefense.training.run import check_finite, check_settings, open_run
from gandefense.training.state import (
    Means,
    choose_device,
    exponential_average,
    require,
    seed_everything,
    warm_cosine,
)
from gandefense.weights_io import save_weights


@dataclass
class GANNetworkConfig:
    """The networks, see GANNetworks and Discriminator."""

    ismn: str = "full"  # full, or paper: the tables to the letter
    norm: str = "group"  # see layers.NORMS
    width: int = 24  # generator's channels at full resolution
    discriminator_width: int = 32


@dataclass
class LossConfig:
    """Weights of phase 2's losses."""

    pixel: float = 150.0  # mean absolute error of the regenerated image
    cleaned: float = 50.0  # mean absolute error of the ISMN's output, our reading of eq. (3)
    classifier: float = 0.4  # KL between the defended classifier's answers on clean and on regenerated images
    student: float = 0.1  # cross-entropy through the distilled classifier, towards the teacher's class for the clean image
    class_ramp: int = 400  # steps over which the two weights above grow from 0
    adversarial: float = 0.02  # non-saturating GAN loss
    r1: float = 0.1  # gradient penalty of the discriminator on clean images (Mescheder et al. 2018)
    r1_every: int = 16  # steps between two penalties; the weight is multiplied by it
    lpips: float = 0.0  # perceptual loss; off at 32×32, where AlexNet's first layer leaves 7×7 positions; for 64 pixels and up
    sparsity: float = 0.5  # mean of the sparsity map on clean images: where nothing is perturbed the map should be empty
    code_rate: float = 0.1  # DDSA's sparsity rate: how fast the code's bias follows its target activation of 0.1
    detection: float = 1.0  # cross-entropy of "attacked or not"
    level: float = 5.0  # mean absolute error of the attack level


@dataclass
class GANTrainConfig:
    """Phase 2: what a batch is made of, and the optimisers."""

    steps: int = 5000
    batch_size: int = 128
    learning_rate: float = 1.5e-3  # peak, Adam; ISMN, perturbation classifier, generator
    discriminator_rate: float = 2e-4  # Adam with β₁ = 0
    warmup: int = 100
    noise_share: float = 0.25  # of a batch: Gaussian noise, level uniform in (0, noise_level]
    noise_level: float = 0.5  # on the [-1, 1] scale
    random_step_share: float = 0.05  # of a batch: eq. (2), a random vector plus a randomised gradient step
    replay_share: float = 0.06  # of a batch: earlier regenerated images, so that a second round does no harm
    ema_decay: float = 0.998
    gradient_clip: float = 5.0


@dataclass
class LoopConfig:
    """The detect → clean → regenerate loop at test time, see GANRestorer."""

    rounds: int = 2
    tolerance: float = 4 / 255
    false_positive_rate: float = 0.05  # of the detection threshold, on validation images


@dataclass
class GANConfig:
    """tools/train_gan.py"""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    classifier: str = "cifar10/classifier"  # the defended classifier, and the student's teacher
    student: str = "same"  # the student's architecture; "same": the teacher's, started from its weights
    attacked: AttackedSetConfig = field(default_factory=AttackedSetConfig)
    validation_rows: int = 1536  # validation images attacked at 8/255, to watch the training by
    network: GANNetworkConfig = field(default_factory=GANNetworkConfig)
    distil: StudentConfig = field(default_factory=StudentConfig)
    train: GANTrainConfig = field(default_factory=GANTrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    resume: str | None = None


def train(config: GANConfig) -> Path:
    """Train the GAN defence and write it as model.safetensors (and student.safetensors) into its run folder.

    Returns:
        The weights' path.

    Raises:
        UserError: bad data, config or checkpoint, or a loss that is no longer finite.
    """
    options, weights = config.train, config.loss
    device = choose_device(config.run.device)
    data = datasets.describe(config.data.name)
    check_settings(config.run)
    require(
        counts={
            "train.steps": options.steps,
            "train.batch_size": options.batch_size,
            "distil.batch_size": config.distil.batch_size,
            "loss.r1_every": weights.r1_every,
            "loop.rounds": config.loop.rounds,
            "validation_rows": config.validation_rows,
        },
        positive={"train.learning_rate": options.learning_rate, "distil.temperature": config.distil.temperature},
        fractions={"loop.false_positive_rate": config.loop.false_positive_rate},
    )
    if options.noise_share + options.random_step_share + options.replay_share > 1:
        raise UserError("train.noise_share, random_step_share and replay_share together exceed 1")
    autocast(device, config.run.precision)
    plan(config.attacked)
    seed_everything(config.run.seed)
    lpips = _lpips(device) if weights.lpips > 0 else None
    teacher = zoo.load_classifier(config.classifier).to(device, memory_format=torch.channels_last)
    teacher_kind = zoo.describe(config.classifier).get("architecture")  # None for a user's own module
    images = datasets.load(config.data, "train", seed=config.run.seed)
    validation = datasets.load(DataConfig(config.data.name, config.data.root, config.data.download), "validation")
    student_kind = teacher_kind if config.student == "same" else config.student
    zoo.try_out(config.classifier, teacher, data, device)
    student = copy.deepcopy(teacher) if config.student == "same" else classifiers.build(student_kind, data)
    student = student.to(device, memory_format=torch.channels_last)
    shape = {
        "channels": data.channels,
        "size": data.size,
        "ismn": config.network.ismn,
        "width": config.network.width,
        "norm": config.network.norm,
    }
    networks = GANNetworks(**shape).to(device, memory_format=torch.channels_last)
    discriminator = Discriminator(channels=data.channels, size=data.size, width=config.network.discriminator_width)
    discriminator = discriminator.to(device, memory_format=torch.channels_last)
    average = exponential_average(networks, options.ema_decay)
    student_optimiser = torch.optim.SGD(student.parameters(), lr=config.distil.learning_rate, momentum=0.9, weight_decay=5e-4)
    optimiser = torch.optim.Adam(networks.parameters(), lr=options.learning_rate, betas=(0.9, 0.99))
    discriminator_optimiser = torch.optim.Adam(discriminator.parameters(), lr=options.discriminator_rate, betas=(0.0, 0.99))
    with open_run("gan", config, config.run, config.resume) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"

        place = {"device": device, "root": config.data.root}
        attacked = attacked_set(teacher, images, config.attacked, **place, name=f"{data.name}-train")
        small = AttackedSetConfig(rows=config.validation_rows, budgets=[8 / 255], seed=1, precision="float32")
        held_out = attacked_set(teacher, validation, small, **place, name=f"{data.name}-validation")

        run.restore(
            student=student,
            student_optimiser=student_optimiser,
            networks=networks,
            average=average,
            optimiser=optimiser,
            discriminator=discriminator,
            discriminator_optimiser=discriminator_optimiser,
        )
        restorer = GANRestorer(average.module, rounds=config.loop.rounds, tolerance=config.loop.tolerance).eval()
        bar = run.progress(config.distil.steps + options.steps, "step", "gan")

        # Phase 1: teacher → student.
        augment = augmentation(data.size)
        student.train()
        means = Means()
        for step in range(run.step, config.distil.steps):
            chosen = batch_indices(len(images.labels), config.distil.batch_size, step, config.run.seed)
            clean = augment(to_float(images.images[chosen].to(device))).contiguous(memory_format=torch.channels_last)
            for group in student_optimiser.param_groups:
                group["lr"] = config.distil.learning_rate * warm_cosine(step, config.distil.steps, warmup=50)
            with autocast(device, config.run.precision):
                loss = student_step(config.distil, student, teacher, clean)
            student_optimiser.zero_grad(set_to_none=True)
            loss.backward()
            student_optimiser.step()
            means.add(loss=loss)
            run.step = step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or run.step == config.distil.steps:
                check_finite(means, run)
                images_seen = means.steps * len(clean)
                run.log(means.take("student/"), images=images_seen)
            if run.step == config.distil.steps:
                run.log({"student/validation_accuracy": accuracy(student, validation, device)})
            if run.checkpoint_due() or run.step == config.distil.steps:
                check_finite(means, run)
                run.save()
        student.eval().requires_grad_(False)
        teacher.requires_grad_(False)

        # Phase 2: ISMN, perturbation classifier and generator against the discriminator.
        networks.train()
        goals = clean_logits(teacher, images, device, config.run.precision)
        replay_images, replay_clean, replay_goal = (run.extra.get(name) for name in ("images", "clean", "goal"))
        for step in range(run.step - config.distil.steps, options.steps):
            rows = batch_indices(len(attacked), options.batch_size, step, config.run.seed)
            source = attacked.source[rows]
            clean, labels = to_float(images.images[source].to(device)), images.labels[source].to(device)
            goal = goals[source].to(device)
            batch = attacked.rows(rows).to(device)
            noisy = round(options.noise_share * len(batch))
            stepped = noisy + round(options.random_step_share * len(batch))
            replayed = stepped + round(options.replay_share * len(batch))
            # A batch's first images get other perturbations than the cached ones: noise, eq. (2), earlier regenerations.
            levels = options.noise_level * torch.rand(noisy, 1, 1, 1, device=device)
            batch[:noisy] = gaussian_signed(clean[:noisy], levels)
            batch[noisy:stepped] = random_step(teacher, clean[noisy:stepped], labels[noisy:stepped], 8 / 255)
            if replay_images is not None:
                batch[stepped:replayed], clean[stepped:replayed] = replay_images.to(device), replay_clean.to(device)
                goal[stepped:replayed] = replay_goal.to(device)
            level = perturbation_level(batch, clean)
            is_attacked = (level > 0.5 / 255).float()
            judged = torch.ones_like(level)
            judged[stepped:replayed] = 0  # whether a regenerated image passes is what the loop asks, not what it is taught
            batch = batch.contiguous(memory_format=torch.channels_last)

            discriminator.requires_grad_(False)
            with autocast(device, config.run.precision):
                made = networks(batch)
                regenerated = made.regenerated.contiguous(memory_format=torch.channels_last)
                logits, student_logits = teacher(regenerated).float(), student(regenerated).float()
                right_label = goal.argmax(1)
                fake_score = discriminator(regenerated)
            ramp = min(1.0, step / max(1, weights.class_ramp))
            losses = {
                "pixel": weights.pixel * (made.regenerated - clean).abs().mean(),
                "cleaned": weights.cleaned * (made.cleaned - clean).abs().mean(),
                "classifier": ramp * weights.classifier * distillation(logits, goal),
                "student": ramp * weights.student * F.cross_entropy(student_logits, right_label),
                "adversarial": weights.adversarial * generator_loss(fake_score),
                "sparsity": weights.sparsity * (made.sparsity.mean((1, 2, 3)) * (1 - is_attacked)).mean(),
                "detection": weights.detection
                * (F.binary_cross_entropy_with_logits(made.logit, is_attacked, reduction="none") * judged).mean(),
                "level": weights.level * (made.level - level).abs().mean(),
            }
            if lpips is not None:
                losses["lpips"] = weights.lpips * lpips(made.regenerated.float() * 2 - 1, clean * 2 - 1).mean()
            loss = torch.stack(list(losses.values())).sum()
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * warm_cosine(step, options.steps, options.warmup)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(networks.parameters(), options.gradient_clip)
            optimiser.step()
            networks.ismn.encoder.code.update_bias(optimiser.param_groups[0]["lr"] * weights.code_rate)
            average.update_parameters(networks)

            # The discriminator's mix: clean images are real, regenerated and attacked ones are fake.
            discriminator.requires_grad_(True)
            # Every other image of each, because the batch's order tells how an image was perturbed.
            fake = torch.cat([made.regenerated.detach()[::2], batch[1::2]])
            counts = torch.cat([judged[::2], is_attacked[1::2]]) > 0
            fake = fake[counts] if counts.any() else fake
            with autocast(device, config.run.precision):
                real_score = discriminator(clean.contiguous(memory_format=torch.channels_last))
                discriminator_total = discriminator_loss(
                    real_score, discriminator(fake.contiguous(memory_format=torch.channels_last))
                )
            penalty = torch.zeros((), device=device)
            if step % weights.r1_every == 0:
                penalty = r1_penalty(discriminator, clean)
            discriminator_optimiser.zero_grad(set_to_none=True)
            (discriminator_total + weights.r1 * weights.r1_every * penalty).backward()
            discriminator_optimiser.step()

            size = replayed - stepped
            if size:
                replay_images, replay_clean = made.regenerated.detach()[-size:].float().cpu(), clean[-size:].cpu()
                replay_goal = goal[-size:].cpu()
                run.extra = {"images": replay_images, "clean": replay_clean, "goal": replay_goal}
            run.step = config.distil.steps + step + 1
            bar.update()
            means.add(
                loss=loss,
                **{f"loss_{name}": value for name, value in losses.items()},
                loss_discriminator=discriminator_total,
                loss_r1=penalty * weights.r1_every,
                discriminator_real=real_score.mean(),
                discriminator_fake=fake_score.mean(),
                pixel_error=(made.regenerated - clean).abs().mean() * 255,
                accuracy=((logits.argmax(1) == labels).float() * judged).sum() / judged.sum().clamp(min=1),
                code_activation=networks.ismn.encoder.code.mean_activation.mean(),
            )
            if run.step % config.run.log_every == 0 or step + 1 == options.steps:
                check_finite(means, run)
                images_seen = means.steps * len(batch)
                run.log(means.take(), images=images_seen)
            if run.step % config.run.image_every == 0 or step + 1 == options.steps:
                restorer.threshold = choose_threshold(average.module, validation, config.loop.false_positive_rate, device)
                run.log(validate(restorer, teacher, held_out, validation, device))
                grids(run, restorer, held_out, validation, device)
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()

        restorer.threshold = choose_threshold(average.module, validation, config.loop.false_positive_rate, device)
        measured = validate(restorer, teacher, held_out, validation, device)
        metadata = {
            "kind": "gan",
            "data": data.name,
            "classifier": config.classifier,
            "classifier_fingerprint": fingerprint(teacher),
            "network": shape,
            "loop": {"threshold": restorer.threshold, "rounds": config.loop.rounds, "tolerance": config.loop.tolerance},
            "measured": measured,
        }
        card = {"kind": "classifier", "architecture": student_kind, "data": data.name}
        card |= {"distilled_from": config.classifier, "config": {"distil": asdict(config.distil)}}
        save_weights(run.folder / "student.safetensors", student.state_dict(), card)
        path = run.finish(average.module.state_dict(), metadata)
        print(f"{measured}; weights: {path}")
        return path


def _lpips(device: torch.device) -> nn.Module:
    from gandefense.evaluation.metrics import lpips_network

    network = lpips_network()
    if network is None:
        raise UserError("loss.lpips > 0 needs LPIPS's AlexNet weights; set GANDEFENSE_LPIPS_BACKBONE, or loss.lpips=0")
    return network.to(device)
