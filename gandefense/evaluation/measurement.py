"""The work of an evaluation: attacks, restorations and what is read off them, batch by batch, each on record once done."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gandefense import config as configuration
from gandefense import zoo
from gandefense.attacks.suite import AttackSpec, attack, predict
from gandefense.attacks.threats import target
from gandefense.data import datasets
from gandefense.data.batches import batches
from gandefense.evaluation import checks, metrics
from gandefense.evaluation.records import (
    PANEL,
    Records,
    classifier_key,
    code_hash,
    file_hash,
    gray_key,
    prepare_folder,
    tensor_hash,
    validation_key,
    white_key,
    zero_key,
)
from gandefense.evaluation.settings import NO_RESTORER, EvaluateConfig
from gandefense.files import numbered_folder, print_interval
from gandefense.restorers.base import DefendedClassifier, Restoration
from gandefense.training.run import versions

VALIDATION_LIMIT = 1000  # however few test images are asked for; more would hardly move a threshold at 1 %


@dataclass
class Batch:
    """One batch of clean images (B, C, H, W) in [0, 1] on the device, with labels (B,) and its number."""

    number: int
    images: Tensor
    labels: Tensor


def all_versions() -> dict[str, str]:
    """Versions of everything that a figure depends on."""
    others = {name: importlib.metadata.version(name) for name in ("gandefense", "torchvision", "piq", "lpips")}
    return {**versions(), **others}


class Measurement:
    """The networks, images and records of one evaluation.

    Args:
        config: checked by `settings.resolve`.
        device: where to compute; everything runs in float32, channels last.
    """

    def __init__(self, config: EvaluateConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.classifier = self._placed(zoo.load_classifier(config.classifier))
        self.defences: dict[str, DefendedClassifier] = {
            name: self._placed(zoo.defend(self.classifier, name)) for name in config.restorers if name != NO_RESTORER
        }
        self.weights = {name: file_hash(zoo.find(name)) for name in (config.classifier, *self.defences)}
        self.lpips = metrics.lpips_network(device)
        self.data = datasets.load(config.data, "test", seed=config.seed)
        self.validation = datasets.load(replace(config.data, limit=VALIDATION_LIMIT, file=None), "validation", seed=config.seed)
        self.gray = [entry.spec() for entry in config.gray_box]
        self.white = [entry.spec() for entry in config.white_box.attacks] if config.white_box.views else []
        # The static rule needs every white_box attack on the classifier alone too; those that gray_box lists are shared.
        self.against_classifier: list[AttackSpec | None] = [None, *dict.fromkeys([*self.gray, *self.white])]
        if config.output is None:
            self.folder = numbered_folder(Path("runs"), "evaluate")
        else:
            self.folder = Path(config.output)
        prepare_folder(self.folder, overwrite=config.overwrite)
        self.records = Records(self.folder, self._origin())
        self.count = -(-len(self.data.labels) // config.batch_size)

    def _placed(self, network: Any) -> Any:
        return network.float().to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def _origin(self) -> dict[str, Any]:
        """Everything that the records depend on; how figures are read off them (rates, cost) is not part of it."""
        asked = configuration.to_dict(self.config)
        kept = ("data", "classifier", "restorers", "seed", "batch_size", "gray_box", "white_box", "images")
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
        """Do what is not on record yet, batch by batch."""
        units = len(self.against_classifier) + len(self.defences) * len(self.config.white_box.views) * len(self.white)
        total = units * len(self.data.labels) + len(self.defences) * len(self.validation.labels)
        with tqdm(total=total, desc="evaluate", unit="img", dynamic_ncols=True, mininterval=print_interval()) as bar:
            for batch in self._batches(self.data):
                for spec in self.against_classifier:
                    bar.set_postfix_str(f"{spec.title() if spec else 'clean'} on the classifier", refresh=False)
                    self._against_classifier(batch, spec)
                    bar.update(len(batch.labels))
                for name, defended in self.defences.items():
                    for view in self.config.white_box.views:
                        for spec in self.white:
                            bar.set_postfix_str(f"{spec.title()} on {name}, {view}", refresh=False)
                            self._against_defence(batch, name, defended, view, spec)
                            bar.update(len(batch.labels))
            for batch in self._batches(self.validation):
                for name, defended in self.defences.items():
                    bar.set_postfix_str(f"thresholds of {name}", refresh=False)
                    self._validate(batch, name, defended)
                    bar.update(len(batch.labels))

    def _batches(self, data: datasets.Images) -> Iterator[Batch]:
        for number, (images, labels) in enumerate(batches(data, self.config.batch_size, self.device)):
            yield Batch(number, images.contiguous(memory_format=torch.channels_last), labels)

    def _seed(self, key: str, batch: Batch) -> int:
        """A seed of its own for every key and batch, so that a resumed evaluation draws what the killed one would have."""
        digest = hashlib.sha256(f"{self.config.seed}/{key}/{batch.number}".encode()).digest()
        return int.from_bytes(digest[:6], "big")

    def _once(self, key: str, batch: Batch, make: Callable[[], dict[str, Tensor]]) -> None:
        if not self.records.has(key, batch.number):
            self.records.write(key, batch.number, make())

    def _against_classifier(self, batch: Batch, spec: AttackSpec | None) -> None:
        """Attack the classifier once, then let every restorer meet the same attacked images (gray_box)."""
        key = classifier_key(spec)
        attacked: Tensor | None = None

        def images() -> Tensor:  # made only if some record still needs them
            nonlocal attacked
            if attacked is None:
                attacked = self._attack(self.classifier, batch, spec, key)
            return attacked

        def alone() -> dict[str, Tensor]:
            return self._measured(batch, images(), "")

        self._once(key, batch, alone)
        if spec is not None and spec not in self.gray:
            return
        for name, defended in self.defences.items():
            gray = gray_key(name, spec)

            def restored(defended: DefendedClassifier = defended, gray: str = gray) -> dict[str, Tensor]:
                return self._restored(defended, batch, images(), gray)

            self._once(gray, batch, restored)

    def _against_defence(self, batch: Batch, name: str, defended: DefendedClassifier, view: str, spec: AttackSpec) -> None:
        """Attack one view of a defence (white_box), and on the first batch look at that view's gradients."""
        key = white_key(name, view, spec)
        network = target(defended, "white_box", view)

        def record() -> dict[str, Tensor]:
            attacked = self._attack(network, batch, spec, key)
            share = {"zero_gradient": checks.zero_gradient(network, attacked, batch.labels)}
            return {**self._measured(batch, attacked, "attacked_"), **self._restored(defended, batch, attacked, key), **share}

        self._once(key, batch, record)
        if batch.number == 0:
            self._once(zero_key(name, view), batch, lambda: {"share": checks.zero_gradient(network, batch.images, batch.labels)})

    def _validate(self, batch: Batch, name: str, defended: DefendedClassifier) -> None:
        """Scores of clean validation images, from which thresholds are read."""
        key = validation_key(name)
        self._once(key, batch, lambda: {"score": self._restore(defended, batch.images, key, batch)[0].score})

    def _attack(self, network: nn.Module, batch: Batch, spec: AttackSpec | None, key: str) -> Tensor:
        if spec is None:
            return batch.images
        return attack(network, batch.images, batch.labels, spec, seed=self._seed(key, batch)).images

    def _measured(self, batch: Batch, attacked: Tensor, prefix: str) -> dict[str, Tensor]:
        """What the classifier alone makes of attacked images, and how far they are from the clean ones."""
        values = {
            "prediction": predict(self.classifier, attacked),
            "changed": (attacked != batch.images).flatten(1).any(1),
            **metrics.quality(attacked, batch.images, self.lpips),
        }
        return {**{f"{prefix}{name}": value for name, value in values.items()}, **self._picture(batch, "attacked", attacked)}

    def _restore(self, defended: DefendedClassifier, images: Tensor, key: str, batch: Batch) -> tuple[Restoration, Tensor]:
        """A restoration and the classes (B,) predicted after it, with random parts that depend on key and batch alone."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._seed(f"restore {key}", batch))
            restoration = defended.restore(images)
        return restoration, predict(defended.classifier, restoration.images)

    def _restored(self, defended: DefendedClassifier, batch: Batch, attacked: Tensor, key: str) -> dict[str, Tensor]:
        restoration, prediction = self._restore(defended, attacked, key, batch)
        maps = {f"map {name}": tensor for name, tensor in restoration.maps.items()}
        pictures = [self._picture(batch, name, tensor) for name, tensor in {"restored": restoration.images, **maps}.items()]
        record = {"prediction": prediction, "score": restoration.score}
        record |= metrics.quality(restoration.images, batch.images, self.lpips)
        return {**record, **{name: tensor for picture in pictures for name, tensor in picture.items()}}

    def _picture(self, batch: Batch, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The first images of the first batch, kept for the report."""
        if batch.number or not self.config.images:
            return {}
        return {f"{PANEL}{name}": tensor[: self.config.images].float()}
