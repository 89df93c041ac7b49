"""Training TRN from cached attacked images and gradient maps, from top to bottom."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gandefense import distributed, zoo
from gandefense.attacks.cache import AttackedSet, AttackedSetConfig, attacked_set, fingerprint, plan, provenance
from gandefense.attacks.suite import frozen
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import at_once, batch_indices, pieces, to_float
from gandefense.errors import UserError
from gandefense.precision import autocast
from gandefense.restorers.cached_maps import CachedMaps, cached_maps
from gandefense.restorers.gradient_maps import GradientMaps, gradient_maps
from gandefense.restorers.trn import TRNRestorer, TwoStreamRestorationNetwork
from gandefense.training.batch_norm import synchronised
from gandefense.training.distillation import clean_logits, distillation
from gandefense.training.parts import check_parts, parts
from gandefense.training.run import Run, check_finite, check_settings, open_run
from gandefense.training.starting import begin_from
from gandefense.training.state import (
    Means,
    choose_device,
    exponential_average,
    readable,
    require,
    seed_everything,
    warm_cosine,
)


@dataclass
class TRNNetworkConfig:
    """The network, see TwoStreamRestorationNetwork."""

    width: int = 32  # channels of each stream
    blocks: int = 4  # Fusion Blocks; with halvings at each resolution, down and up
    halvings: int = 0  # how often the resolution is halved, at most 8
    streams: str = "both"  # both, or image, maps, none: the other input is blanked
    top_k: int | None = None  # gradient maps of the most probable labels only; None: of all


@dataclass
class TRNTrainConfig:
    """Loss and optimiser. The balance of the losses decides everything: pixels first, classes ramped up."""

    steps: int = 6000  # batches
    batch_size: int = 128  # attacked images and clean pairs per step, over all processes
    accumulate: int = 1  # pieces that a process cuts its share of a batch into, one after the other, to save memory
    learning_rate: float = 2e-3  # peak, Adam
    warmup: int = 100  # steps in which the learning rate rises
    pixel_weight: float = 200.0  # of the mean absolute pixel error
    class_weight: float = 0.3  # of KL(classifier on clean ‖ classifier on restored)
    logit_weight: float = 0.0  # of the mean absolute difference of the classifier's logits on the two (HGD, Liao et al. 2018)
    class_ramp: int = 400  # steps over which the two weights above grow from 0
    ema_decay: float = 0.998  # of the weights that are kept in the end
    gradient_clip: float = 5.0  # largest norm of the gradient


@dataclass
class TRNConfig:
    """tools/train_trn.py"""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    classifier: str = "cifar10/classifier"  # that is defended: zoo name, run folder or safetensors file
    others: list[str] = field(default_factory=list)  # classifiers learnt from in turn with it, so as to be of use to others
    start: str | None = None  # a trained TRN of the same shape to go on from: zoo name, run folder or file; None: random
    attacked: AttackedSetConfig = field(default_factory=AttackedSetConfig)
    validation_rows: int = 1536  # validation images attacked at 8/255, to watch the training by
    network: TRNNetworkConfig = field(default_factory=TRNNetworkConfig)
    train: TRNTrainConfig = field(default_factory=TRNTrainConfig)
    false_positive_rate: float = 0.05  # of the detection threshold, on validation images
    threshold_images: int | None = None  # how many clean validation images set the threshold; None: all
    resume: str | None = None  # a run folder to go on with; on the command line, alone


class Learnt(NamedTuple):
    """A classifier that is learnt from, the images attacked against it, and their gradient maps."""

    classifier: nn.Module
    attacked: AttackedSet
    maps: CachedMaps


def goals_of(learnt: Learnt, images: datasets.Images, device: torch.device, precision: str) -> Tensor:
    """A classifier's logits (N, K) on the clean image of each of its N attacked rows; images that no row shows cost nothing."""
    shown, places = learnt.attacked.source.unique(return_inverse=True)
    return clean_logits(learnt.classifier, images, device, precision, chosen=shown)[places]


def evenly(images: Tensor, count: int | None) -> Tensor:
    """So many of N images (N, C, H, W) from among all of them at even distances; all where there are no more, or for None."""
    if count is None or count >= len(images):
        return images
    return images[torch.arange(count) * len(images) // count]


@torch.no_grad()
def validate(
    restorer: TRNRestorer, classifier: nn.Module, attacked: AttackedSet, images: datasets.Images, device: torch.device
) -> dict[str, float]:
    """Accuracy of the classifier alone and behind the restorer on validation rows, clean and attacked apart, in float32."""
    right: dict[str, list[Tensor]] = {"clean": [], "attacked": [], "undefended": []}
    for rows in torch.arange(len(attacked)).split(at_once(images.images.shape[-1], 128)):
        batch, labels = attacked.rows(rows).to(device), images.labels[attacked.source[rows]].to(device)
        flags = attacked.is_attacked(rows).to(device)
        restored = classifier(restorer(batch).images).argmax(1) == labels
        right["clean"].append(restored[~flags])
        right["attacked"].append(restored[flags])
        right["undefended"].append((classifier(batch).argmax(1) == labels)[flags])
    joined = {name: torch.cat(values).float() for name, values in right.items()}
    return {f"validation/{name}": flags.mean().item() for name, flags in joined.items() if len(flags)}


def train(config: TRNConfig) -> Path:
    """Train a TRN and write it as model.safetensors into its run folder; under torchrun, by all processes together.

    Returns:
        The weights' path.

    Raises:
        UserError: bad data, config or checkpoint, or a loss that is no longer finite.
    """
    with distributed.processes(choose_device(config.run.device)) as device:
        return _train(config, device)


def _train(config: TRNConfig, device: torch.device) -> Path:
    options = config.train
    data = datasets.describe(config.data)
    check_settings(config.run)
    require(
        counts={
            "train.steps": options.steps,
            "train.batch_size": options.batch_size,
            "validation_rows": config.validation_rows,
            "threshold_images": 1 if config.threshold_images is None else config.threshold_images,
        },
        positive={"train.learning_rate": options.learning_rate},
        fractions={"false_positive_rate": config.false_positive_rate},
    )
    check_parts(options.accumulate, {"train.batch_size": min(options.batch_size, config.attacked.rows)})
    if config.network.top_k is not None and not 1 <= config.network.top_k <= len(data.classes):
        raise UserError(f"network.top_k lies between 1 and the {len(data.classes)} classes, got {config.network.top_k}")
    autocast(device, config.run.precision)
    plan(config.attacked, transfers=True)
    seed_everything(config.run.seed)
    names = [config.classifier, *config.others]
    if len(set(names)) < len(names):
        raise UserError(f"others lists a classifier twice, or the defended one: {', '.join(names)}")
    doubled = [name for name in config.attacked.transfer if [*names, *config.attacked.transfer].count(name) > 1]
    if doubled:
        raise UserError(f"attacked.transfer lists a classifier twice, or one that is learnt from anyway: {', '.join(doubled)}")
    classifiers = [zoo.load_classifier(name).to(device, memory_format=torch.channels_last) for name in names]
    transfer = [zoo.load_classifier(name).to(device, memory_format=torch.channels_last) for name in config.attacked.transfer]
    for name, victim in zip([*names, *config.attacked.transfer], [*classifiers, *transfer], strict=True):
        zoo.try_out(name, victim, data, device)
    classifier = classifiers[0]
    with distributed.first_before_others():
        images = datasets.load(config.data, "train", seed=config.run.seed)
        validation = datasets.load(config.data.whole(), "validation")
    shape = {
        "channels": data.channels,
        "labels": config.network.top_k or len(data.classes),
        "width": config.network.width,
        "blocks": config.network.blocks,
        "halvings": config.network.halvings,
        "streams": config.network.streams,
    }
    network = TwoStreamRestorationNetwork(**shape)
    wanted = {"kind": "trn", "data": data.name, "network": shape, "top_k": config.network.top_k}
    begun = begin_from(config.start, network, config.resume, wanted, usual={"halvings": 0, "streams": "both"})
    network = network.to(device, memory_format=torch.channels_last)
    average = exponential_average(network, options.ema_decay)
    network = synchronised(network, device)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    made_from = provenance(classifier, images, validation) | begun
    made_from |= {
        f"the other classifier {name}": fingerprint(other) for name, other in zip(names[1:], classifiers[1:], strict=True)
    }
    made_from |= {
        f"the classifier of transferred examples {name}": fingerprint(other)
        for name, other in zip(config.attacked.transfer, transfer, strict=True)
    }
    with open_run("trn", config, config.run, config.resume, made_from) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"

        place = {"device": device, "root": config.data.root}
        small = AttackedSetConfig(rows=config.validation_rows, budgets=[8 / 255], seed=1, precision="float32")
        precision, top_k = config.run.precision, config.network.top_k
        learnt: list[Learnt] = []
        with distributed.first_before_others():
            for victim in classifiers:
                attacked = attacked_set(victim, images, config.attacked, **place, name=f"{data.name}-train", transfer=transfer)
                maps = cached_maps(victim, attacked, len(data.classes), device=device, precision=precision, top_k=top_k)
                learnt.append(Learnt(victim, attacked, maps))
            held_out = attacked_set(classifier, validation, small, **place, name=f"{data.name}-validation")

        run.restore(network=network, average=average, optimiser=optimiser)
        restorer = TRNRestorer(average.module, classifier, top_k=top_k).eval()

        goals = [goals_of(each, images, device, precision) for each in learnt]
        measured: dict[str, float] = {}
        bar = run.progress(options.steps, "step", "trn")
        means = Means()
        with ExitStack() as held:
            for victim in classifiers:
                held.enter_context(frozen(victim))
            for step in range(run.step, options.steps):
                whose = step % len(learnt)  # the classifiers take turns
                victim, attacked, maps = learnt[whose]
                rows = batch_indices(len(attacked), options.batch_size, step // len(learnt), config.run.seed)
                ramp = min(1.0, step / max(1, options.class_ramp))
                optimiser.zero_grad(set_to_none=True)
                mine = parts(len(rows), options.accumulate, device)
                for part in mine:
                    chosen = rows[part.rows]
                    source = attacked.source[chosen]
                    clean, labels = to_float(images.images[source].to(device)), images.labels[source].to(device)
                    batch = attacked.rows(chosen).to(device)
                    made, log_norms = maps.rows(chosen)
                    gradients = GradientMaps(made.to(device, memory_format=torch.channels_last), log_norms.to(device))

                    goal = goals[whose][chosen].to(device)
                    with autocast(device, config.run.precision):
                        restored = network(batch.contiguous(memory_format=torch.channels_last), gradients)
                        logits = victim(restored.contiguous(memory_format=torch.channels_last)).float()
                    pixel_loss = (restored.float() - clean).abs().mean()
                    class_loss, logit_loss = distillation(logits, goal), (logits - goal).abs().mean()
                    loss = options.pixel_weight * pixel_loss
                    loss = loss + ramp * (options.class_weight * class_loss + options.logit_weight * logit_loss)
                    (part.share * loss).backward()

                    right = (logits.argmax(1) == labels).float().mean()
                    figures = {"loss": loss, "pixel_error": pixel_loss * 255, "accuracy": right}
                    figures |= {"class_loss": class_loss, "logit_loss": logit_loss}
                    means.add(share=part.share, ends_step=part is mine[-1], **figures)

                for group in optimiser.param_groups:
                    group["lr"] = options.learning_rate * warm_cosine(step, options.steps, options.warmup)
                distributed.sum_gradients(network)
                nn.utils.clip_grad_norm_(network.parameters(), options.gradient_clip)
                optimiser.step()
                average.update_parameters(network)

                run.step = step + 1
                bar.update()
                if run.step % config.run.log_every == 0 or run.step == options.steps:
                    check_finite(means, run)
                    images_seen = means.steps * len(rows)
                    run.log(means.take(), images=images_seen)
                if run.step % config.run.image_every == 0 or run.step == options.steps:
                    if distributed.is_first():
                        measured = validate(restorer, classifier, held_out, validation, device)
                        run.log(measured)
                        _grid(run, restorer, held_out, validation, device, labels=min(3, len(data.classes)))
                    distributed.barrier()
                if run.checkpoint_due():
                    check_finite(means, run)
                    run.save()

        if distributed.is_first():
            unattacked = evenly(validation.images, config.threshold_images)
            with torch.no_grad():
                scores = torch.cat([restorer(part).score for part in pieces(unattacked, 128, device)])
            threshold = scores.quantile(1 - config.false_positive_rate).item()
            metadata = {
                "kind": "trn",
                "data": data.name,
                "classifier": config.classifier,
                "classifier_fingerprint": fingerprint(classifier),
                "network": shape,
                "top_k": config.network.top_k,
                "threshold": threshold,
                # a run that was killed between its last step and its end has not measured yet
                "measured": measured or validate(restorer, classifier, held_out, validation, device),
            }
            path = run.finish(average.module.state_dict(), metadata)
            print(f"{readable(metadata['measured'])}; weights: {path}")
        distributed.barrier()
        return run.folder / "model.safetensors"


@torch.no_grad()
def _grid(
    run: Run, restorer: TRNRestorer, attacked: AttackedSet, images: datasets.Images, device: torch.device, *, labels: int
) -> None:
    """A fixed grid: clean · attacked · restored · residual ×10 · the gradient maps of so many labels."""
    rows = torch.arange(0, len(attacked), max(1, len(attacked) // 12))[:12]
    clean = to_float(images.images[attacked.source[rows]])
    batch = attacked.rows(rows)
    restoration = restorer(batch.to(device))
    maps = gradient_maps(restorer.classifier, batch.to(device), top_k=labels).maps.cpu() / 2 + 0.5
    restored = restoration.images.cpu()
    channels = clean.shape[1]
    three = list(maps.split(channels, dim=1))
    run.grid(
        "validation/clean_attacked_restored_residual_maps", [clean, batch, restored, (batch - restored) * 10 / 2 + 0.5, *three]
    )
