"""Joint adversarial training: restorer and classifier learn together against an attacker who knows both, from top to bottom."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gandefense.attacks.cache import fingerprint
from gandefense.attacks.suite import attack
from gandefense.attacks.threats import VIEWS
from gandefense.data import datasets
from gandefense.data.batches import augmentation, batch_indices, content_hash, pieces, to_float
from gandefense.precision import autocast
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.gan import GANRestorer
from gandefense.restorers.trn import TRNRestorer
from gandefense.training import adversarial
from gandefense.training.adversarial import AdversarialConfig, control
from gandefense.training.adversarial_weights import perturbed_weights
from gandefense.training.classifier import accuracy
from gandefense.training.joint_pass import losses
from gandefense.training.joint_start import JointConfig, begun, check, network_of, view_of
from gandefense.training.run import Run, check_finite, open_run, versions
from gandefense.training.state import (
    Means,
    current_device,
    exponential_average,
    readable,
    seed_everything,
    warm_cosine,
)
from gandefense.weights_io import save_weights
from gandefense.zoo import JOINT

BATCH = 100  # validation images at a time: through the exact view, gradient maps keep a graph for every label


def validate(
    defended: DefendedClassifier, few: datasets.Images, attacks: AdversarialConfig, device: torch.device
) -> dict[str, float]:
    """Accuracy on validation images of the real pipeline and of its classifier alone: clean, and under PGD-10.

    The pipeline is attacked through its exact view, and once more through the detached one, so that neither hides what the other
    finds. In float32, hard decisions and all.
    """
    found = {}
    for name, subject, attacked in (
        ("", defended, defended.view("exact")),
        ("_alone", defended.classifier, defended.classifier),
    ):
        found[f"clean{name}"] = accuracy(subject, few, device, BATCH)
        found[f"robust{name}"] = adversarial.robust_accuracy(attacked, few, attacks, device, BATCH)
    found["robust_detached"] = adversarial.robust_accuracy(defended.view("detached"), few, attacks, device, BATCH)
    if isinstance(defended.restorer, GANRestorer):
        flags = [defended.restore(part).flagged for part in pieces(few.images, BATCH, device)]
        found["flagged_clean"] = torch.cat(flags).float().mean().item()
    return {f"validation/{name}": value for name, value in found.items()}


def train(config: JointConfig) -> Path:
    """Train restorer and classifier together and write model.safetensors and classifier.safetensors into the run folder.

    Every step attacks the pipeline as it stands, through a view drawn by `train.views`, then takes one step of both networks
    on PGD's or TRADES's loss plus the losses of `RestoringConfig`. What of the pipeline is differentiated for that is said
    in `joint_pass.through`.

    Kept are averaged weights; with keep=best those of the validation at which most images stood under PGD-10 through the exact
    view, the later of equals. It guards against a training that breaks down, as those against a single step do from one
    epoch to the next, and against robust overfitting (Rice et al. 2020). A few hundred images tell no finer
    differences: where nothing breaks down, keep=last is as good, and owes less to luck.

    torch.compile is not used: it does not differentiate twice, which gradient maps, GradAlign and the exact view do.

    Returns:
        The restorer's weights' path.

    Raises:
        UserError: bad data, config or checkpoint, or a loss that is no longer finite.
    """
    check(config)
    options, attacks = config.train, config.train.adversarial
    device, data = current_device(config.run.device), datasets.describe(config.data)
    autocast(device, config.run.precision)
    seed_everything(config.run.seed)
    defended, described, architecture = begun(config, data)
    images = datasets.load(config.data, "train", seed=config.run.seed)
    validation = datasets.load(config.data.whole(), "validation")
    few = validation.rows(slice(attacks.validation_images))
    made_from = {"the images": content_hash(images, validation)}
    if config.restorer is not None:
        made_from["the restorer it starts from"] = fingerprint(network_of(defended))
    made_from["the classifier it starts from"] = fingerprint(defended.classifier)

    defended = defended.to(device, memory_format=torch.channels_last)
    average = exponential_average(defended, options.ema_decay).eval()
    views = {name: defended.view(name) for name in VIEWS}
    decayed = [p for p in defended.classifier.parameters() if p.ndim > 1]
    plain = [p for p in defended.classifier.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    classifier_optimiser = torch.optim.SGD(groups, lr=options.classifier_rate, momentum=0.9, nesterov=True)
    restorer_optimiser = torch.optim.Adam(network_of(defended).parameters(), lr=options.restorer_rate, betas=(0.9, 0.99))
    augment = augmentation(data.size, flip=data.flips)
    batch_size = min(options.batch_size, len(images.labels))
    per_epoch = len(images.labels) // batch_size
    with open_run("joint", config, config.run, config.resume, made_from) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"
        optimisers = {"classifier_optimiser": classifier_optimiser, "restorer_optimiser": restorer_optimiser}
        run.restore(defended=defended, average=average, **optimisers)
        judged = partial(
            losses,
            attacks=attacks,
            options=config.passing,
            restoring=config.restoring,
            smoothing=options.label_smoothing,
            alignment=options.alignment,
        )
        bar = run.progress(options.steps, "step", "joint")
        defended.train()
        means = Means()
        for step in range(run.step, options.steps):
            number = step // options.free_replays  # of the batch
            chosen = batch_indices(len(images.labels), batch_size, number, config.run.seed)
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed((config.run.seed * 1_000_037 + number) % 2**63)  # a replay shows the same crops
                clean = augment(to_float(images.images[chosen].to(device))).contiguous(memory_format=torch.channels_last)
            labels = images.labels[chosen].to(device)

            if options.free_replays > 1:
                delta = run.extra.get("delta", torch.zeros_like(clean)).to(device)
                attacked = (clean + delta).clamp(0, 1).requires_grad_(True)
            else:
                view = views[view_of(step, options.views, config.run.seed)]
                with autocast(device, config.run.precision):
                    attacked = adversarial.attacked_batch(view, clean, labels, attacks)
            nearby = None
            if options.alignment > 0:
                nearby = (clean + attacks.eps * (2 * torch.rand_like(clean) - 1)).clamp(0, 1)

            for optimiser, peak in ((classifier_optimiser, options.classifier_rate), (restorer_optimiser, options.restorer_rate)):
                optimiser.zero_grad(set_to_none=True)
                for group in optimiser.param_groups:
                    group["lr"] = peak * warm_cosine(step, options.steps, options.warmup)
            objective = partial(_measured, judged, defended, clean, attacked, labels, nearby, device, config.run.precision)
            gamma = attacks.awp.gamma if step >= attacks.awp.warmup * per_epoch else 0.0
            with perturbed_weights(defended, partial(_total, objective), gamma):
                found = objective()
                found["loss"].backward()
            nn.utils.clip_grad_norm_(network_of(defended).parameters(), options.gradient_clip)
            classifier_optimiser.step()
            restorer_optimiser.step()
            if config.family == "gan":
                code = defended.restorer.networks.ismn.encoder.code
                code.update_bias(restorer_optimiser.param_groups[0]["lr"] * config.restoring.code_rate)
            average.update_parameters(defended)
            if options.free_replays > 1:
                delta = (delta + attacks.eps * attacked.grad.sign()).clamp(-attacks.eps, attacks.eps)
                run.extra["delta"] = delta.detach().cpu()
            means.add(**found)

            run.step = step + 1
            bar.update()
            if run.step % config.run.log_every == 0 or run.step == options.steps:
                check_finite(means, run)
                images_seen = means.steps * batch_size
                run.log(means.take(), images=images_seen)
            if run.step % config.run.image_every == 0 or run.step == options.steps:
                figures = validate(average.module, few, attacks, device)
                run.log(figures)
                _grid(run, average.module, few, attacks, device)
                best = run.extra.get("kept", {}).get("figures", {}).get("validation/robust", -1.0)
                if config.keep == "last" or figures["validation/robust"] >= best:
                    state = {name: tensor.cpu().clone() for name, tensor in average.module.state_dict().items()}
                    run.extra["kept"] = {"step": run.step, "figures": figures, "state": state}
            if run.checkpoint_due():
                check_finite(means, run)
                run.save()

        kept = run.extra["kept"]
        average.module.load_state_dict(kept["state"])
        path = _write(run, average.module, config, data.name, described, architecture, kept, validation, device)
        print(f"{readable(kept['figures'])} (step {kept['step']}, n = {len(few.labels)}); weights: {path}")
        return path


def _measured(
    judged: Any,
    defended: DefendedClassifier,
    clean: Tensor,
    attacked: Tensor,
    labels: Tensor,
    nearby: Tensor | None,
    device: torch.device,
    precision: str,
) -> dict[str, Tensor]:
    """The losses of a step, in the run's precision."""
    with autocast(device, precision):
        return judged(defended, clean, attacked, labels, nearby=nearby)


def _total(objective: Any) -> Tensor:
    """The sum alone, for what perturbs weights."""
    return objective()["loss"]


def _write(
    run: Run,
    defended: DefendedClassifier,
    config: JointConfig,
    trained_on: str,
    described: dict[str, Any],
    architecture: str,
    kept: dict[str, Any],
    validation: datasets.Images,
    device: torch.device,
) -> Path:
    """The classifier beside the restorer, which names it; the restorer last, because it marks the run as finished."""
    restorer, about = defended.restorer, {"data": trained_on, "adversarial": config.train.adversarial.method}
    alone = {name: value for name, value in kept["figures"].items() if name.endswith("_alone")}
    card = {**about, "kind": "classifier", "architecture": architecture, "trained_with": config.family, "measured": alone}
    card |= {"config": run.config, "versions": versions()}
    save_weights(run.folder / JOINT, defended.classifier.state_dict(), card)
    if isinstance(restorer, TRNRestorer):
        with torch.no_grad():
            scores = torch.cat([restorer(part).score for part in pieces(validation.images, BATCH, device)])
        described = {**described, "threshold": scores.quantile(1 - config.false_positive_rate).item()}
    else:
        loop = {"threshold": restorer.threshold, "rounds": config.passing.rounds, "tolerance": restorer.tolerance}
        described = {**described, "loop": {**loop, "generator": restorer.generator}}
    metadata = {"kind": config.family, **about, "classifier": JOINT, "classifier_fingerprint": fingerprint(defended.classifier)}
    metadata |= {**described, "kept_step": kept["step"], "measured": kept["figures"]}
    return run.finish(network_of(defended).state_dict(), metadata)


def _grid(run: Run, defended: DefendedClassifier, few: datasets.Images, attacks: AdversarialConfig, device: torch.device) -> None:
    """A fixed grid: clean · attacked through the exact view · restored · what was removed ×5 around grey."""
    clean, labels = to_float(few.images[:12].to(device)), few.labels[:12].to(device)
    spec = control(attacks)
    attacked = attack(defended.view("exact"), clean, labels, spec).images
    restored = defended.restore(attacked).images
    run.grid("validation/clean_attacked_restored_residual", [clean, attacked, restored, (attacked - restored) * 5 + 0.5])
