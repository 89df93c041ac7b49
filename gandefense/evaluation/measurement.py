"""What an evaluation works with: networks, images, the cells that are asked for, the folder and its records."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gandefense import config as configuration
from gandefense import distributed, zoo
from gandefense.attacks.suite import check_classes
from gandefense.data import datasets
from gandefense.data.batches import batches, content_hash
from gandefense.errors import Interrupted, StorageError, UserError
from gandefense.evaluation import metrics
from gandefense.evaluation.cells import (
    NO_RESTORER,
    Cell,
    curve_cells,
    table_cells,
)
from gandefense.evaluation.kept_attacks import KeptAttacks
from gandefense.evaluation.records import Records, code_hash, prepare_folder
from gandefense.evaluation.settings import EvaluateConfig
from gandefense.files import locked, numbered_folder, storing
from gandefense.restorers.base import DefendedClassifier
from gandefense.training.run import versions


@dataclass
class Batch:
    """One batch of clean images (B, C, H, W) in [0, 1] on the device, with labels (B,) and its number."""

    number: int
    images: Tensor
    labels: Tensor
    made: dict[str, Tensor] = field(default_factory=dict)  # attacked images that several cells share
    found: set[str] = field(default_factory=set)  # which of them an earlier evaluation had kept

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
    """The networks, images, cells and records of one evaluation; `work.Work` measures them.

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
            zoo.try_out(name, network, datasets.describe(config.data), device)
        self.weights = {name: zoo.content_hash(name, network) for name, network in networks.items()}
        self.lpips = metrics.lpips_network(device)
        self.data = datasets.load(config.data, "test", seed=config.seed)
        held_out = replace(config.data, limit=config.validation_images, file=None)
        self.validation = datasets.load(held_out, "validation", seed=config.seed)
        self.kept = KeptAttacks(
            self.data.images,
            content_hash(self.data),
            batch_size=config.batch_size,
            seed=config.seed,
            device=device.type,
            largest=config.keep_attacked,
            root=config.data.root,
        )
        self.count = -(-len(self.data.labels) // config.batch_size)
        self.validation_count = -(-len(self.validation.labels) // config.batch_size)
        self.detectors: dict[str, tuple[float, float]] = {}  # threshold and spread of scores, for the joint attack
        first = next(self.batches(self.data, share=False))
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
        drawn = [cell for curves in self.curves.values() for cells in curves.values() for cell in cells]
        for cell in (*alone_too, *drawn):
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
            with torch.enable_grad(), torch.random.fork_rng(devices=self.devices()):
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
            "images' contents": content_hash(self.data, self.validation),
            "device": self.device.type,
            "versions": all_versions(),
            "LPIPS": self.lpips is not None,
            "code": code_hash(),
        }

    def is_curved(self, number: int) -> bool:
        return number * self.config.batch_size < self.config.curves.images

    def curve_count(self) -> int:
        """The number of batches that curves are measured on."""
        return sum(self.is_curved(number) for number in range(self.count))

    def batches(self, data: datasets.Images, *, share: bool = True) -> Iterator[Batch]:
        """The batches of this process; all of them with `share` off."""
        for number, (images, labels) in enumerate(batches(data, self.config.batch_size, self.device)):
            if not share or number % distributed.world() == distributed.rank():
                yield Batch(number, images.contiguous(memory_format=torch.channels_last), labels)

    def _is_randomised(self, batch: Batch, name: str) -> bool:
        """Whether passes over the first images, clean and noisy, differ by more than the arithmetic's own noise."""
        few = batch.images[:8]
        with torch.random.fork_rng(devices=self.devices()), torch.no_grad():
            torch.manual_seed(0)
            few = torch.cat([few, (few + 0.1 * torch.randn_like(few)).clamp(0, 1)])  # some that a detector flags
            passes = []
            for seed in range(1, 7):
                torch.manual_seed(seed)
                passes.append(self.defences[name](few))
        return not all(torch.allclose(passes[0], other, rtol=1e-3, atol=1e-4) for other in passes[1:])

    def devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []
