"""Training the GAN defence in three phases, each of which goes on where it was stopped.

1. `distil`: teacher → student, with adversarial training. 2. `train`: ISMN, perturbation classifier and generator against the
discriminator. 3. `adapt`: the student on what the finished restorer hands it; off by default.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gandefense import classifiers, distributed, zoo
from gandefense.attacks.cache import AttackedSetConfig, attacked_set, fingerprint, plan, provenance
from gandefense.data import datasets
from gandefense.data.batches import augmentation, batch_indices, to_float
from gandefense.errors import UserError
from gandefense.evaluation.metrics import LPIPS_SMALLEST, lpips_network
from gandefense.precision import autocast
from gandefense.restorers.discriminator import Discriminator, discriminator_loss, generator_loss, r1_penalty
from gandefense.restorers.gan import GANNetworks, GANRestorer
from gandefense.training.batch_norm import synchronised
from gandefense.training.classifier import accuracy
from gandefense.training.distillation import clean_logits, distillation, student_step
from gandefense.training.gan_adapt import add_own_attacks
from gandefense.training.gan_batch import Mix, Piece, Replay, fakes, moved, perturbed, replayed
from gandefense.training.gan_config import GANConfig, check
from gandefense.training.gan_detection import calibrate
from gandefense.training.gan_looking import look
from gandefense.training.gan_validation import choose_threshold, validate
from gandefense.training.parts import parts
from gandefense.training.run import check_finite, check_settings, open_run
from gandefense.training.starting import begin_from
from gandefense.training.state import (
    Means,
    choose_device,
    exponential_average,
    readable,
    seed_everything,
    warm_cosine,
)
from gandefense.weights_io import save_weights


def train(config: GANConfig) -> Path:
    """Train the GAN defence and write it as model.safetensors (and student.safetensors) into its run folder.

    Under torchrun all processes work on it together.

    Returns:
        The weights' path.

    Raises:
        UserError: bad data, config or checkpoint, or a loss that is no longer finite.
    """
    with distributed.processes(choose_device(config.run.device)) as device:
        return _train(config, device)


def _train(config: GANConfig, device: torch.device) -> Path:
    options, weights = config.train, config.loss
    data = datasets.describe(config.data)
    check_settings(config.run)
    check(config)
    autocast(device, config.run.precision)
    plan(config.attacked, data.size)
    small = AttackedSetConfig(rows=config.validation_rows, budgets=config.validation_budgets, seed=1, precision="float32")
    plan(small, data.size)
    if weights.lpips > 0 and data.size < LPIPS_SMALLEST:
        raise UserError(
            f"loss.lpips > 0 is for images of {LPIPS_SMALLEST} pixels and more, {data.name} has {data.size}; set it to 0"
        )
    seed_everything(config.run.seed)
    lpips = _lpips(device) if weights.lpips > 0 else None
    teacher = zoo.load_classifier(config.classifier).to(device, memory_format=torch.channels_last)
    zoo.try_out(config.classifier, teacher, data, device)
    teacher_kind = zoo.describe(config.classifier).get("architecture")  # None for a user's own module
    with distributed.first_before_others():
        images = datasets.load(config.data, "train", seed=config.run.seed)
        validation = datasets.load(config.data.whole(config.validation_images), "validation")
    student_kind = teacher_kind if config.student == "same" else config.student
    if student_kind is None and config.answers == "student":
        raise UserError(
            f"answers=student: a copy of {config.classifier}, a part of your own, could not be loaded again from its weights; "
            "name an architecture for the student, such as student=resnet11, or take answers=teacher"
        )
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
    begun = begin_from(config.start, networks, config.resume, {"kind": "gan", "data": data.name, "network": shape})
    discriminator = Discriminator(channels=data.channels, size=data.size, width=config.network.discriminator_width)
    discriminator = discriminator.to(device, memory_format=torch.channels_last)
    average = exponential_average(networks, options.ema_decay)
    student, networks = synchronised(student, device), synchronised(networks, device)
    student_optimiser = torch.optim.SGD(student.parameters(), lr=config.distil.learning_rate, momentum=0.9, weight_decay=5e-4)
    optimiser = torch.optim.Adam(networks.parameters(), lr=options.learning_rate, betas=(0.9, 0.99))
    discriminator_optimiser = torch.optim.Adam(discriminator.parameters(), lr=options.discriminator_rate, betas=(0.0, 0.99))
    made_from = provenance(teacher, images, validation) | begun
    with open_run("gan", config, config.run, config.resume, made_from) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"

        place = {"device": device, "root": config.data.root}
        with distributed.first_before_others():
            attacked = attacked_set(teacher, images, config.attacked, **place, name=f"{data.name}-train")
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
        judge = teacher if config.answers == "teacher" else student
        bar = run.progress(config.distil.steps + options.steps + config.adapt.steps, "step", "gan")

        # Phase 1: teacher → student.
        augment = augmentation(data.size, flip=data.flips)
        student.train()
        means = Means()
        for step in range(run.step, config.distil.steps):
            chosen = batch_indices(len(images.labels), config.distil.batch_size, step, config.run.seed)
            clean = augment(to_float(images.images[chosen].to(device))).contiguous(memory_format=torch.channels_last)
            for group in student_optimiser.param_groups:
                group["lr"] = config.distil.learning_rate * warm_cosine(step, config.distil.steps, warmup=50)
            student_optimiser.zero_grad(set_to_none=True)
            mine = parts(len(clean), options.accumulate, device)
            for part in mine:
                with autocast(device, config.run.precision):
                    loss = student_step(config.distil, student, teacher, clean[part.rows], part)
                (part.share * loss).backward()
                means.add(share=part.share, ends_step=part is mine[-1], loss=loss)
            distributed.sum_gradients(student)
            student_optimiser.step()
            run.step = step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or run.step == config.distil.steps:
                check_finite(means, run)
                images_seen = means.steps * len(clean)
                run.log(means.take("student/"), images=images_seen)
            if run.step == config.distil.steps:
                if distributed.is_first():
                    run.log({"student/validation_accuracy": accuracy(student, validation, device)})
                distributed.barrier()
            if run.checkpoint_due() or run.step == config.distil.steps:
                check_finite(means, run)
                run.save()
        student.eval().requires_grad_(False)
        teacher.requires_grad_(False)

        # Phase 2: ISMN, perturbation classifier and generator against the discriminator.
        networks.train()
        goals = clean_logits(teacher, images, device, config.run.precision)
        replay = Replay(**run.extra) if run.extra else None
        sources = {"attacked": attacked, "images": images, "goals": goals, "teacher": teacher, "device": device}
        for step in range(run.step - config.distil.steps, options.steps):
            rows = batch_indices(len(attacked), options.batch_size, step, config.run.seed)
            shares = (options.noise_share, options.random_step_share, options.replay_share)
            ends = itertools.accumulate(round(share * len(rows)) for share in shares)
            mix = Mix(len(rows), *ends, noise_level=options.noise_level, step_eps=options.random_step_eps)
            pieces: list[Piece] = []

            # ISMN, perturbation classifier and generator, against the discriminator as it stands.
            discriminator.requires_grad_(False)
            optimiser.zero_grad(set_to_none=True)
            code = networks.ismn.encoder.code
            activation_before, activation = code.mean_activation.clone(), torch.zeros_like(code.mean_activation)
            for part in parts(len(rows), options.accumulate, device):
                piece = perturbed(part, rows, mix, replay=replay, **sources)
                clean, goal, is_attacked, judged = piece.clean, piece.goal, piece.is_attacked, piece.judged
                code.mean_activation.copy_(activation_before)
                with autocast(device, config.run.precision):
                    made = networks(piece.images)
                    regenerated = made.regenerated.contiguous(memory_format=torch.channels_last)
                    logits, student_logits = teacher(regenerated).float(), student(regenerated).float()
                    right_label = goal.argmax(1)
                    fake_score = discriminator(regenerated)
                activation += part.share * code.mean_activation
                ramp = min(1.0, step / max(1, weights.class_ramp))
                losses = {
                    "pixel": weights.pixel * (made.regenerated - clean).abs().mean(),
                    "cleaned": weights.cleaned * (made.cleaned - clean).abs().mean(),
                    "classifier": ramp * weights.classifier * distillation(logits, goal),
                    "logits": ramp * weights.logits * (logits - goal).abs().mean(),
                    "student": ramp * weights.student * F.cross_entropy(student_logits, right_label),
                    "adversarial": weights.adversarial * generator_loss(fake_score),
                    "sparsity": weights.sparsity * (made.sparsity.mean((1, 2, 3)) * (1 - is_attacked)).mean(),
                    "detection": weights.detection
                    * (F.binary_cross_entropy_with_logits(made.logit, is_attacked, reduction="none") * judged).mean(),
                    "level": weights.level * (made.level - piece.level).abs().mean(),
                }
                if lpips is not None:
                    losses["lpips"] = weights.lpips * lpips(made.regenerated.float() * 2 - 1, clean * 2 - 1).mean()
                loss = torch.stack(list(losses.values())).sum()
                (part.share * loss).backward()
                piece.regenerated = made.regenerated.detach()
                pieces.append(piece)
                right = ((logits.argmax(1) == piece.labels).float() * judged).sum() / part.share
                means.add(
                    share=part.share,
                    ends_step=False,
                    loss=loss,
                    **{f"loss_{name}": value for name, value in losses.items()},
                    discriminator_fake=fake_score.mean(),
                    pixel_error=(made.regenerated - clean).abs().mean() * 255,
                    accuracy=right / max(1, mix.batch - (mix.replayed - mix.stepped)),
                )
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * warm_cosine(step, options.steps, options.warmup)
            distributed.sum_gradients(networks)
            nn.utils.clip_grad_norm_(networks.parameters(), options.gradient_clip)
            optimiser.step()
            code.mean_activation.copy_(distributed.summed([activation])[0])
            code.update_bias(optimiser.param_groups[0]["lr"] * weights.code_rate)
            average.update_parameters(networks)

            # The discriminator's mix: clean images are real, regenerated and attacked ones are fake.
            discriminator.requires_grad_(True)
            discriminator_optimiser.zero_grad(set_to_none=True)
            for piece, fake, fake_share in zip(pieces, *fakes(pieces), strict=True):
                share = piece.part.share
                with autocast(device, config.run.precision):
                    real_score = discriminator(piece.clean.contiguous(memory_format=torch.channels_last))
                    fake_score = discriminator(fake.contiguous(memory_format=torch.channels_last))
                    total = discriminator_loss(real_score, fake_score, real_share=share, fake_share=fake_share)
                penalty = torch.zeros((), device=device)
                if step % weights.r1_every == 0:
                    penalty = share * r1_penalty(discriminator, piece.clean)
                (total + weights.r1 * weights.r1_every * penalty).backward()
                means.add(
                    ends_step=piece is pieces[-1],
                    loss_discriminator=total,
                    loss_r1=penalty * weights.r1_every,
                    discriminator_real=share * real_score.mean(),
                    code_activation=share * code.mean_activation.mean(),
                )
            distributed.sum_gradients(discriminator)
            discriminator_optimiser.step()

            replay = replayed(pieces, mix)
            run.extra = vars(replay) if replay else {}
            run.step = config.distil.steps + step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or step + 1 == options.steps:
                check_finite(means, run)
                images_seen = means.steps * len(rows)
                run.log(means.take(), images=images_seen)
            if run.step % config.run.image_every == 0 or step + 1 == options.steps:
                if distributed.is_first():
                    restorer.threshold = choose_threshold(average.module, validation, config.loop.false_positive_rate, device)
                    seen = validate(restorer, judge, held_out, validation, device)
                    run.log(seen.figures)
                    look(run, restorer, seen, held_out, validation)
                distributed.barrier()
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()

        # Phase 3: the student behind the finished restorer. A fused detector comes after it, because it asks the student, too.
        restorer.threshold = choose_threshold(average.module, validation, config.loop.false_positive_rate, device)
        if config.adapt.steps:
            student.train().requires_grad_(True)
        for step in range(run.step - config.distil.steps - options.steps, config.adapt.steps):
            rows = batch_indices(len(attacked), config.adapt.batch_size, step, config.run.seed + 1)
            noisy = round(config.adapt.noise_share * len(rows))
            mix = Mix(len(rows), noisy, noisy, noisy, noise_level=options.noise_level)
            own_steps = config.adapt.own_steps if step % 2 else 1
            for group in student_optimiser.param_groups:
                group["lr"] = config.adapt.learning_rate * warm_cosine(step, config.adapt.steps, warmup=50)
            student_optimiser.zero_grad(set_to_none=True)
            mine = parts(len(rows), options.accumulate, device)
            for part in mine:
                piece = perturbed(part, rows, mix, replay=None, **sources)
                with autocast(device, config.run.precision):
                    add_own_attacks(config, student, piece, first=noisy, steps=own_steps)
                    with torch.no_grad():  # in bf16 a few images are flagged otherwise than at test time, which does no harm
                        restored = restorer(piece.images).images
                with part.drawing():
                    untouched = torch.rand(len(restored), 1, 1, 1, device=device) < config.adapt.clean_share
                    shown = moved(torch.where(untouched, piece.clean, restored), flip=data.flips)
                shown = shown.contiguous(memory_format=torch.channels_last)
                with autocast(device, config.run.precision):
                    answers = student(shown).float()
                temperature = config.distil.temperature
                loss = temperature**2 * distillation(answers / temperature, piece.goal / temperature)
                (part.share * loss).backward()
                right = (answers.argmax(1) == piece.labels).float().mean()
                means.add(share=part.share, ends_step=part is mine[-1], loss=loss, accuracy=right)
            distributed.sum_gradients(student)
            student_optimiser.step()
            run.extra = {}
            run.step = config.distil.steps + options.steps + step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or step + 1 == config.adapt.steps:
                check_finite(means, run)
                images_seen = means.steps * len(rows)
                run.log(means.take("adapt/"), images=images_seen)
            if run.step % config.run.image_every == 0 or step + 1 == config.adapt.steps:
                if distributed.is_first():
                    student.eval()
                    run.log(validate(restorer, judge, held_out, validation, device).figures)
                    student.train()
                distributed.barrier()
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()
        student.eval().requires_grad_(False)

        if distributed.is_first():
            if student_kind is not None:  # a copy of a part of the user's own could not be built again from a file
                card = {"kind": "classifier", "architecture": student_kind, "data": data.name}
                card |= {"distilled_from": config.classifier, "adversarial": "distilled"}
                card["config"] = {"distil": asdict(config.distil), "adapt": asdict(config.adapt)}
                save_weights(run.folder / zoo.STUDENT, student.state_dict(), card)
            if config.loop.detector == "fused":
                restorer.detector = calibrate(average.module, judge, validation, config.loop.false_positive_rate, device)
            seen = validate(restorer, judge, held_out, validation, device)
            measured = seen.figures
            metadata = {
                "kind": "gan",
                "data": data.name,
                "classifier": config.classifier if judge is teacher else zoo.STUDENT,
                "classifier_fingerprint": fingerprint(judge),
                "network": shape,
                "loop": {"threshold": restorer.threshold, "rounds": config.loop.rounds, "tolerance": config.loop.tolerance},
                "measured": measured,
            }
            if config.adapt.steps or restorer.detector is not None or not options.steps:  # phase 2 did not look at these
                look(run, restorer, seen, held_out, validation)
            run.compare(measured)
            if restorer.detector is not None:
                metadata["detector"] = restorer.detector.description()
            path = run.finish(average.module.state_dict(), metadata)
            print(f"{readable(measured)}; weights: {path}")
        distributed.barrier()
        return run.folder / "model.safetensors"


def _lpips(device: torch.device) -> nn.Module:
    network = lpips_network()
    if network is None:
        raise UserError("loss.lpips > 0 needs LPIPS's AlexNet weights; set GANDEFENSE_LPIPS_BACKBONE, or loss.lpips=0")
    return network.to(device)
