"""The work of an evaluation: attacks, restorations and what is read off them, batch by batch, each on record once done."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gandefense import config as configuration
from gandefense import distributed, zoo
from gandefense.attacks.suite import UNIVERSAL, AttackSpec, attack, check_classes, predict, universal_perturbation
from gandefense.attacks.threats import target
from gandefense.data import datasets
from gandefense.data.batches import batches
from gandefense.errors import Interrupted, StorageError, UserError
from gandefense.evaluation import checks, metrics
from gandefense.evaluation.cells import (
    NO_RESTORER,
    Cell,
    curve_cells,
    earlier,
    spec_key,
    table_cells,
    universal_key,
    validation_key,
    zero_key,
)
from gandefense.evaluation.records import PANEL, Records, code_hash, prepare_folder, tensor_hash
from gandefense.evaluation.settings import EvaluateConfig
from gandefense.files import locked, numbered_folder, print_interval, storing
from gandefense.memory import in_halves
from gandefense.restorers.base import DefendedClassifier, Restoration
from gandefense.training.run import versions

UNTRIED = -1  # the predicted class on record for an image that an earlier attack had broken already


@dataclass
class Batch:
    """One batch of clean images (B, C, H, W) in [0, 1] on the device, with labels (B,) and its number."""

    number: int
    images: Tensor
    labels: Tensor
    made: dict[str, Tensor] = field(default_factory=dict)  # attacked images that several cells share

    def first(self, count: int) -> Batch:
        """The batch cut to its first images."""
        return Batch(self.number, self.images[:count], self.labels[:count])


def all_versions() -> dict[str, str]:
    """Versions of everything that a figure depends on."""
    names = ("gandefense", "torchvision", "piq", "lpips", "pyautoattack")
    return {**versions(), **{name: importlib.metadata.version(name) for name in names}}


def new_folder(output: str | None) -> Path:
    """The output folder, made if need be, a new numbered one in runs/ for None; raises UserError where it cannot be made."""
    if output is None:
        return numbered_folder(Path("runs"), "evaluate")
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the output folder {output}: {error.strerror}") from None
    return Path(output)


def look_like_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (B, K) are non-negative and add up to 1, as a softmax's do; attacks on logits are blunted by one."""
    return bool(
        (outputs >= 0).all() and torch.allclose(outputs.sum(1), torch.ones(len(outputs), device=outputs.device), atol=1e-4)
    )


class Measurement:
    """The networks, images and records of one evaluation.

    Under torchrun every process takes its share of the batches, and finds the others' records in the same folder.

    Args:
        config: checked by `settings.resolve`.
        device: where to compute; everything runs in float32, channels last.
    """

    def __init__(self, config: EvaluateConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.classifier = self._placed(zoo.load_classifier(config.classifier))
        alone = DefendedClassifier(zoo.load_restorer(NO_RESTORER, self.classifier), self.classifier, name=NO_RESTORER)
        # The classifier alone comes first, because the others are compared with it.
        self.defences: dict[str, DefendedClassifier] = {NO_RESTORER: self._placed(alone)}
        for name in config.restorers:
            if name != NO_RESTORER:
                self.defences[name] = self._placed(zoo.defend(self.classifier, name))
        self.sources = {name: self._placed(zoo.load_classifier(name)) for name in config.black_box.sources}
        networks = {config.classifier: self.classifier, **self.sources}
        networks |= {name: defended.restorer for name, defended in self.defences.items() if name != NO_RESTORER}
        for name, network in networks.items():
            zoo.try_out(name, network, datasets.describe(config.data.name), device)
        self.weights = {name: zoo.content_hash(name, network) for name, network in networks.items()}
        self.lpips = metrics.lpips_network(device)
        self.data = datasets.load(config.data, "test", seed=config.seed)
        held_out = replace(config.data, limit=config.validation_images, file=None)
        self.validation = datasets.load(held_out, "validation", seed=config.seed)
        self.count = -(-len(self.data.labels) // config.batch_size)
        self.validation_count = -(-len(self.validation.labels) // config.batch_size)
        self.detectors: dict[str, tuple[float, float]] = {}  # threshold and spread of scores, for the joint attack
        first = next(self._batches(self.data, share=False))
        self.randomised = {name: self._is_randomised(first, name) for name in self.defences}
        with torch.no_grad():
            logits = self.classifier(first.images)
        self.classes = logits.shape[1]
        self.probabilities = look_like_probabilities(logits)
        random = self.randomised[NO_RESTORER]
        asked = {
            name: table_cells(config, name, randomised=self.randomised[name], random_classifier=random) for name in self.defences
        }
        # Every attack that a defence meets, the classifier alone meets too (the static rule), in the same order.
        alone_too = list(dict.fromkeys(self.bare(cell) for cells in asked.values() for cell in cells))
        self.cells = {**asked, NO_RESTORER: alone_too}
        self.curves = {name: curve_cells(config, name, randomised=self.randomised[name]) for name in self.defences}
        for cell in alone_too:
            if cell.adversarial:
                check_classes(cell.spec.attack, self.classes)
        self._check_gradients(first)

    def bare(self, cell: Cell) -> Cell:
        """The same attack on the classifier alone."""
        return cell.bare(randomised=self.randomised[NO_RESTORER])

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make, lock and prepare the output folder, and open its records; a mistake is told by every process alike.

        Raises:
            UserError: another evaluation is in the folder or at work on it, or it cannot be written.
            Interrupted: Ctrl-C or SIGTERM; the message says how to go on.
        """
        with ExitStack() as held:
            folder, mistake = "", ""
            if distributed.rank() == 0:
                try:
                    self.folder = new_folder(self.config.output)
                    held.enter_context(locked(self.folder, wait=False))
                    prepare_folder(self.folder, overwrite=self.config.overwrite)
                    self.records = Records(self.folder, self._origin())
                    folder = str(self.folder)
                except UserError as error:
                    mistake = str(error)
            folder, mistake = distributed.from_first(folder), distributed.from_first(mistake)
            if mistake:
                raise UserError(mistake)
            if distributed.rank() > 0:
                self.folder = Path(folder)
                self.records = Records(self.folder, self._origin())
            try:
                with storing(self.folder):
                    yield
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted; what is done is kept: go on with output={self.folder}") from None
            except StorageError as error:
                raise StorageError(f"{error}; once it can be written again, go on with output={self.folder}") from None

    def _check_gradients(self, batch: Batch) -> None:
        """Raise UserError for a view that is to be attacked and has no gradient, or one that is not finite."""
        views = {(cell.restorer, cell.view) for cells in self.cells.values() for cell in cells if cell.threat == "white_box"}
        curved = (cell for curves in self.curves.values() for cells in curves.values() for cell in cells)
        for restorer, view in sorted(views | {(cell.restorer, cell.view) for cell in curved}):
            with torch.enable_grad(), torch.random.fork_rng(devices=self._devices()):
                point = batch.images[:2].detach().clone().requires_grad_(True)
                logits = self.defences[restorer].view(view)(point)
                gradient = torch.autograd.grad(logits.sum(), point, allow_unused=True)[0] if logits.requires_grad else None
            if gradient is None:
                raise UserError(
                    f"{restorer} has no gradient in the view {view}, so that no attack could follow one; take the view "
                    "straight_through, or override Restorer.scored"
                )
            if not gradient.isfinite().all():
                raise UserError(f"{restorer}: the gradient in the view {view} has infinite or NaN entries")

    def _placed(self, network: Any) -> Any:
        return network.float().to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def _origin(self) -> dict[str, Any]:
        """Everything that the records depend on; how figures are read off them (rates, cost) is not part of it."""
        asked = configuration.to_dict(self.config)
        kept = ("data", "classifier", "restorers", "seed", "batch_size", "gray_box", "black_box", "white_box", "curves")
        kept = (*kept, "resubmissions", "validation_images", "false_positive_rates", "fid", "images")
        asked["data"] = {"name": self.config.data.name, "file": self.config.data.file, "limit": self.config.data.limit}
        return {
            **{name: asked[name] for name in kept},
            "weights": self.weights,
            "images' contents": tensor_hash(*self.data, *self.validation),
            "device": self.device.type,
            "versions": all_versions(),
            "LPIPS": self.lpips is not None,
            "code": code_hash(),
        }

    def run(self) -> None:
        """Do what is not on record yet, batch by batch: thresholds, then the table's cells, then the curves' points."""
        defences = [name for name in self.defences if name != NO_RESTORER]
        tables = sum(map(len, self.cells.values())) * len(self.data.labels)
        points = sum(len(cells) for curves in self.curves.values() for cells in curves.values())
        curved = min(self.config.curves.images, len(self.data.labels))
        total = (len(defences) * len(self.validation.labels) + tables + points * curved) // distributed.world()
        quiet = distributed.rank() > 0
        with tqdm(
            total=total, desc="evaluate", unit="img", dynamic_ncols=True, mininterval=print_interval(), disable=quiet
        ) as bar:
            for batch in self._batches(self.validation):
                for name in defences:
                    bar.set_postfix_str(f"thresholds of {name}", refresh=False)
                    key = validation_key(name)
                    self._once(key, batch, lambda name=name, key=key, batch=batch: self._scores(name, key, batch))
                    bar.update(len(batch.labels))
            distributed.barrier()
            self.detectors = {name: self._detector(name) for name in defences}
            if distributed.rank() == 0:  # one perturbation for all processes
                self._make_universal(bar)
            distributed.barrier()
            for batch in self._batches(self.data):
                for cells in self.cells.values():
                    for cell in cells:
                        bar.set_postfix_str(f"{cell.title} on {cell.restorer}, {cell.threat} {cell.view}", refresh=False)
                        self._once(cell.key, batch, lambda cell=cell, batch=batch: self._record(cell, batch))
                        self._look_at_gradients(cell, batch)
                        bar.update(len(batch.labels))
            for batch in self._batches(self.data):
                few = batch.first(curved - batch.number * self.config.batch_size) if self._is_curved(batch.number) else None
                for cell in (cell for curves in self.curves.values() for cells in curves.values() for cell in cells):
                    if few is None:
                        break
                    bar.set_postfix_str(f"{cell.title} {cell.spec.eps * 255:.3g}/255 on {cell.restorer}, curve", refresh=False)
                    self._once(cell.key, few, lambda cell=cell, few=few: self._point(cell, few))
                    bar.update(len(few.labels))
        distributed.barrier()

    def _make_universal(self, bar: tqdm) -> None:
        """The perturbations that a whole data set shares, each from clean validation images, which no table counts."""
        points = [cells for curves in self.curves.values() for cells in curves.values()]
        for cell in (cell for cells in [*self.cells.values(), *points] for cell in cells):
            if cell.spec is None or cell.spec.attack != UNIVERSAL:
                continue
            key = universal_key(cell)
            bar.set_postfix_str(f"{cell.title} for all images on {cell.restorer}, {cell.view}")
            images, labels, _ = self.validation
            if not self.records.has(key, 0):
                seed = self._seed(key, Batch(0, images, labels))
                delta = universal_perturbation(self._network(cell), images, labels, cell.spec, seed=seed, device=self.device)
                self.records.write(key, 0, {"perturbation": delta})

    def _is_curved(self, number: int) -> bool:
        return number * self.config.batch_size < self.config.curves.images

    def curve_count(self) -> int:
        """The number of batches that curves are measured on."""
        return sum(self._is_curved(number) for number in range(self.count))

    def _batches(self, data: datasets.Images, *, share: bool = True) -> Iterator[Batch]:
        """The batches of this process; all of them with `share` off."""
        for number, (images, labels) in enumerate(batches(data, self.config.batch_size, self.device)):
            if not share or number % distributed.world() == distributed.rank():
                yield Batch(number, images.contiguous(memory_format=torch.channels_last), labels)

    def _seed(self, key: str, batch: Batch) -> int:
        """A seed of its own for every key and batch, so that a resumed evaluation draws what the killed one would have."""
        digest = hashlib.sha256(f"{self.config.seed}/{key}/{batch.number}".encode()).digest()
        return int.from_bytes(digest[:6], "big")

    def _once(self, key: str, batch: Batch, make: Callable[[], dict[str, Tensor]]) -> None:
        if not self.records.has(key, batch.number):
            self.records.write(key, batch.number, make())

    def _scores(self, name: str, key: str, batch: Batch) -> dict[str, Tensor]:
        """Scores of clean validation images, from which thresholds are read."""
        return {"score": self._restore(self.defences[name], batch.images, key, batch).score}

    def _detector(self, name: str) -> tuple[float, float]:
        """Threshold at the largest false-positive rate asked for, and spread, of a detector's scores on validation images."""
        scores = self.records.columns(validation_key(name), self.validation_count)["score"].double()
        rate = max(self.config.false_positive_rates, default=0.05)
        return metrics.threshold(scores, rate), max(scores.std(correction=0).item(), 1e-6)

    def _is_randomised(self, batch: Batch, name: str) -> bool:
        """Whether passes over the first images, clean and noisy, differ by more than the arithmetic's own noise."""
        few = batch.images[:8]
        with torch.random.fork_rng(devices=self._devices()), torch.no_grad():
            torch.manual_seed(0)
            few = torch.cat([few, (few + 0.1 * torch.randn_like(few)).clamp(0, 1)])  # some that a detector flags
            passes = []
            for seed in range(1, 7):
                torch.manual_seed(seed)
                passes.append(self.defences[name](few))
        return not all(torch.allclose(passes[0], other, rtol=1e-3, atol=1e-4) for other in passes[1:])

    def _devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    # One cell on one batch.

    def _record(self, cell: Cell, batch: Batch) -> dict[str, Tensor]:
        """Attack a batch as the cell says, restore it, classify it, and keep what the tables need."""
        if cell.survivors:
            return self._survivors(cell, batch)
        attacked = self._attacked(cell, batch)
        record = {}
        if cell.own or cell.restorer == NO_RESTORER:  # otherwise the classifier's own cell has measured these very images
            prefix = "attacked_" if cell.own else ""
            record = self._measured(batch, attacked, prefix)
        if cell.restorer != NO_RESTORER:
            record |= self._restored(self.defences[cell.restorer], batch, attacked, cell)
        elif self.randomised[NO_RESTORER]:
            record |= self._resubmitted(self.defences[NO_RESTORER], batch, attacked, cell)
        if cell.threat == "white_box" and cell.own:
            record["zero_gradient"] = self._zero_gradient(cell, attacked, batch.labels)
        return record

    def _survivors(self, cell: Cell, batch: Batch) -> dict[str, Tensor]:
        """Attack only what stands after the earlier attacks; of the others it is only on record that they fell."""
        standing = self._standing(cell, batch)
        predictions = torch.full_like(batch.labels, UNTRIED)
        if standing.any():
            part = Batch(batch.number, batch.images[standing], batch.labels[standing])
            attacked = self._make(self._network(cell), part, cell)
            defended = self.defences[cell.restorer]
            tried = self._predictions(defended, part, attacked, cell)
            # A randomised defence has fallen when one of the resubmissions is wrong.
            wrong = (tried != part.labels[:, None]).any(1)
            predictions[standing] = torch.where(wrong, UNTRIED, part.labels)
        return {"prediction": predictions, "tried": standing}

    def _standing(self, cell: Cell, batch: Batch) -> Tensor:
        """Images (B,) of a batch that are right clean and under the earlier attacks on record."""
        standing = torch.ones_like(batch.labels, dtype=torch.bool)
        for before in earlier(cell, self.cells[cell.restorer]):
            record = self.records.read(before.key, batch.number)
            predictions = record.get("predictions", record["prediction"][:, None]).to(self.device)
            standing &= (predictions == batch.labels[:, None]).all(1)
        return standing

    def _point(self, cell: Cell, batch: Batch) -> dict[str, Tensor]:
        """A point of a curve: only what is predicted in the end."""
        attacked = self._make(self._network(cell), batch, cell)
        return {"predictions": self._predictions(self.defences[cell.restorer], batch, attacked, cell)}

    def _network(self, cell: Cell) -> nn.Module:
        """What the attacker of a cell attacks."""
        if cell.source is not None:
            return self.sources[cell.source]
        defended = self.defences[cell.restorer]
        if cell.restorer == NO_RESTORER or cell.threat == "gray_box":
            return target(defended, "black_box") if cell.view == "query" else self.classifier
        threat = "white_box" if cell.threat == "curve" else cell.threat
        joint = cell.spec.loss == "joint"
        return target(defended, threat, cell.view, detector=self.detectors[cell.restorer] if joint else None)

    def _zero_gradient(self, cell: Cell, images: Tensor, labels: Tensor) -> Tensor:
        """Share (B,) of exact zeros in the gradient of a cell's view, without a detector's column."""
        view = self.defences[cell.restorer].view(cell.view)
        return in_halves(lambda *part: (checks.zero_gradient(view, *part),), images, labels)[0]

    def _attacked(self, cell: Cell, batch: Batch) -> Tensor:
        """The images a cell is about; those made against a classifier are shared between restorers."""
        if cell.spec is None:
            return batch.images
        if cell.own:
            return self._make(self._network(cell), batch, cell)
        shared = f"{cell.source or NO_RESTORER}/{'query' if cell.view == 'query' else ''}/{spec_key(cell.spec)}"
        if shared not in batch.made:
            batch.made[shared] = self._make(self._network(cell), batch, cell, key=shared)
        return batch.made[shared]

    def _make(self, network: nn.Module, batch: Batch, cell: Cell, *, key: str | None = None) -> Tensor:
        """Attacked images (B, C, H, W), with random parts that depend on the cell and the batch alone."""
        spec: AttackSpec = cell.spec
        seed = self._seed(key or cell.key, batch)
        delta = self.records.read(universal_key(cell), 0)["perturbation"] if spec.attack == UNIVERSAL else None

        def work(images: Tensor, labels: Tensor, position: Tensor) -> tuple[Tensor, ...]:
            # Parts of a batch that memory did not do for draw starts of their own.
            return (attack(network, images, labels, spec, seed=seed + int(position[0]), perturbation=delta).images,)

        return in_halves(work, batch.images, batch.labels, torch.arange(len(batch.labels)))[0]

    def _look_at_gradients(self, cell: Cell, batch: Batch) -> None:
        """On the first batch, how much of a white_box view's gradient at clean images is exactly zero."""
        if batch.number == 0 and cell.threat == "white_box" and cell.own:
            key = zero_key(cell.restorer, cell.view)
            self._once(key, batch, lambda: {"share": self._zero_gradient(cell, batch.images, batch.labels)})

    # What is read off attacked images.

    def _measured(self, batch: Batch, attacked: Tensor, prefix: str) -> dict[str, Tensor]:
        """What the classifier alone makes of attacked images, and how far they are from the clean ones."""
        values = {
            "prediction": predict(self.classifier, attacked),
            "changed": (attacked != batch.images).flatten(1).any(1),
            **metrics.quality(attacked, batch.images, self.lpips),
        }
        values |= self._kept(attacked)
        return {**{f"{prefix}{name}": value for name, value in values.items()}, **self._picture(batch, "attacked", attacked)}

    def _kept(self, images: Tensor) -> dict[str, Tensor]:
        """All images at 8 bits, where FID is asked for."""
        return {"images": (images * 255).round().byte()} if self.config.fid else {}

    def _restore(self, defended: DefendedClassifier, images: Tensor, key: str, batch: Batch) -> Restoration:
        """A restoration with random parts that depend on key and batch alone."""
        with torch.random.fork_rng(devices=self._devices()):
            torch.manual_seed(self._seed(f"restore {key}", batch))
            restoration = defended.restore(images)
        return restoration._replace(images=restoration.images.clamp(0, 1))  # a filter's rounding may leave the range a little

    def _predictions(self, defended: DefendedClassifier, batch: Batch, attacked: Tensor, cell: Cell) -> Tensor:
        """Classes (B, R) that the whole defence predicts in R passes, one unless it is randomised."""
        times = self.config.resubmissions if self.randomised[cell.restorer] else 1
        with torch.random.fork_rng(devices=self._devices()):
            torch.manual_seed(self._seed(f"resubmit {cell.key}", batch))
            return torch.stack([predict(defended, attacked) for _ in range(times)], dim=1)

    def _resubmitted(self, defended: DefendedClassifier, batch: Batch, attacked: Tensor, cell: Cell) -> dict[str, Tensor]:
        predictions = self._predictions(defended, batch, attacked, cell)
        return {"predictions": predictions, "prediction": predictions[:, 0].contiguous()}

    def _restored(self, defended: DefendedClassifier, batch: Batch, attacked: Tensor, cell: Cell) -> dict[str, Tensor]:
        restoration = self._restore(defended, attacked, cell.key, batch)
        maps = {f"map {name}": tensor for name, tensor in restoration.maps.items()}
        record = {"prediction": predict(defended.classifier, restoration.images), "score": restoration.score}
        record |= metrics.quality(restoration.images, batch.images, self.lpips) | self._kept(restoration.images)
        if self.randomised[cell.restorer]:
            record["predictions"] = self._predictions(defended, batch, attacked, cell)
            if defended.restorer.passes > 1:  # the restoration at hand is one of the passes that a prediction averages
                record["prediction"] = record["predictions"][:, 0].contiguous()
        for name, tensor in {"restored": restoration.images, **maps}.items():
            record |= self._picture(batch, name, tensor)
        return record

    def _picture(self, batch: Batch, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The first images of the first batch, kept for the report."""
        if batch.number or not self.config.images:
            return {}
        return {f"{PANEL}{name}": tensor[: self.config.images].float()}
