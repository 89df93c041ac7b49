"""The work of an evaluation: attacks, restorations and what is read off them, batch by batch, each on record once done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gandefense import distributed, own_parts, zoo
from gandefense.attacks.level import perturbation_level
from gandefense.attacks.suite import UNIVERSAL, AttackSpec, attack, predict, universal_perturbation
from gandefense.attacks.threats import target
from gandefense.evaluation import checks, metrics
from gandefense.evaluation.cells import NO_RESTORER, Cell, earlier, spec_key, universal_key, validation_key, zero_key
from gandefense.evaluation.measurement import Batch, Measurement
from gandefense.evaluation.records import PANEL
from gandefense.files import print_interval
from gandefense.memory import in_halves
from gandefense.restorers.base import DefendedClassifier, Restoration

UNTRIED = -1  # the predicted class on record for an image that an earlier attack had broken already


class Work:
    """What is done with the networks and images of one opened evaluation; everything it finds is on record."""

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self.own = [name for name in measurement.weights if zoo.is_own(name)]

    def run(self) -> None:
        """Do what is not on record yet, batch by batch: thresholds, then the table's cells, then the curves' points."""
        defences = [name for name in self.measurement.defences if name != NO_RESTORER]
        tables = sum(map(len, self.measurement.cells.values())) * len(self.measurement.data.labels)
        points = sum(len(cells) for curves in self.measurement.curves.values() for cells in curves.values())
        curved = min(self.measurement.config.curves.images, len(self.measurement.data.labels))
        total = (len(defences) * len(self.measurement.validation.labels) + tables + points * curved) // distributed.world()
        quiet = distributed.rank() > 0
        with tqdm(
            total=total, desc="evaluate", unit="img", dynamic_ncols=True, mininterval=print_interval(), disable=quiet
        ) as bar:
            for batch in self.measurement.batches(self.measurement.validation):
                for name in defences:
                    bar.set_postfix_str(f"thresholds of {name}", refresh=False)
                    key = validation_key(name)
                    self._once(key, batch, lambda name=name, key=key, batch=batch: self._scores(name, key, batch))
                    bar.update(len(batch.labels))
            distributed.barrier()
            self.measurement.detectors = {name: self._detector(name) for name in defences}
            if distributed.rank() == 0:  # one perturbation for all processes
                self._make_universal(bar)
            distributed.barrier()
            for batch in self.measurement.batches(self.measurement.data):
                for cells in self.measurement.cells.values():
                    for cell in cells:
                        bar.set_postfix_str(f"{cell.title} on {cell.restorer}, {cell.threat} {cell.view}", refresh=False)
                        self._once(cell.key, batch, lambda cell=cell, batch=batch: self._record(cell, batch))
                        self._look_at_gradients(cell, batch)
                        bar.update(len(batch.labels))
            for batch in self.measurement.batches(self.measurement.data):
                few = (
                    batch.first(curved - batch.number * self.measurement.config.batch_size)
                    if self.measurement.is_curved(batch.number)
                    else None
                )
                for cell in (cell for curves in self.measurement.curves.values() for cells in curves.values() for cell in cells):
                    if few is None:
                        break
                    bar.set_postfix_str(f"{cell.title} {cell.spec.eps * 255:.3g}/255 on {cell.restorer}, curve", refresh=False)
                    self._once(cell.key, few, lambda cell=cell, few=few: self._point(cell, few))
                    bar.update(len(few.labels))
        distributed.barrier()

    def _make_universal(self, bar: tqdm) -> None:
        """The perturbations that a whole data set shares, each from clean validation images, which no table counts."""
        points = [cells for curves in self.measurement.curves.values() for cells in curves.values()]
        for cell in (cell for cells in [*self.measurement.cells.values(), *points] for cell in cells):
            if cell.spec is None or cell.spec.attack != UNIVERSAL:
                continue
            key = universal_key(cell)
            bar.set_postfix_str(f"{cell.title} for all images on {cell.restorer}, {cell.view}")
            images, labels = self.measurement.validation[:2]
            if not self.measurement.records.has(key, 0):
                seed = self._seed(key, Batch(0, images, labels))
                delta = universal_perturbation(
                    self._network(cell), images, labels, cell.spec, seed=seed, device=self.measurement.device
                )
                self.measurement.records.write(key, 0, {"perturbation": delta})

    def _once(self, key: str, batch: Batch, make: Callable[[], dict[str, Tensor]]) -> None:
        if self.measurement.records.has(key, batch.number):
            return
        with own_parts.blamed(" and ".join(self.own), "evaluating") if self.own else nullcontext():
            found = make()
        self.measurement.records.write(key, batch.number, found)

    def _seed(self, key: str, batch: Batch) -> int:
        """A seed of its own for every key and batch, so that a resumed evaluation draws what the killed one would have."""
        digest = hashlib.sha256(f"{self.measurement.config.seed}/{key}/{batch.number}".encode()).digest()
        return int.from_bytes(digest[:6], "big")

    def _scores(self, name: str, key: str, batch: Batch) -> dict[str, Tensor]:
        """Scores of clean validation images, from which thresholds are read."""
        return {"score": self._restore(self.measurement.defences[name], batch.images, key, batch).score}

    def _detector(self, name: str) -> tuple[float, float]:
        """Threshold at the largest false-positive rate asked for, and spread, of a detector's scores on validation images."""
        scores = self.measurement.records.columns(validation_key(name), self.measurement.validation_count)["score"].double()
        rate = max(self.measurement.config.false_positive_rates, default=0.05)
        return metrics.threshold(scores, rate), max(scores.std(correction=0).item(), 1e-6)

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
        if cell.restorer == NO_RESTORER:
            record["found"] = torch.full_like(batch.labels, self._shared_key(cell) in batch.found, dtype=torch.bool)
        if cell.restorer != NO_RESTORER:
            record |= self._restored(self.measurement.defences[cell.restorer], batch, attacked, cell)
        elif self.measurement.randomised[NO_RESTORER]:
            record |= self._resubmitted(self.measurement.defences[NO_RESTORER], batch, attacked, cell)
        if cell.threat == "white_box" and cell.own:
            record["zero_gradient"] = self._zero_gradient(cell, attacked, batch)
        return record

    def _survivors(self, cell: Cell, batch: Batch) -> dict[str, Tensor]:
        """Attack only what stands after the earlier attacks; of the others it is only on record that they fell."""
        standing = self._standing(cell, batch)
        predictions = torch.full_like(batch.labels, UNTRIED)
        if standing.any():
            part = Batch(batch.number, batch.images[standing], batch.labels[standing])
            attacked = self._make(self._network(cell), part, cell)
            defended = self.measurement.defences[cell.restorer]
            tried = self._predictions(defended, part, attacked, cell)
            # A randomised defence has fallen when one of the resubmissions is wrong.
            wrong = (tried != part.labels[:, None]).any(1)
            predictions[standing] = torch.where(wrong, UNTRIED, part.labels)
        return {"prediction": predictions, "tried": standing}

    def _standing(self, cell: Cell, batch: Batch) -> Tensor:
        """Images (B,) of a batch that are right clean and under the earlier attacks on record."""
        standing = torch.ones_like(batch.labels, dtype=torch.bool)
        for before in earlier(cell, self.measurement.cells[cell.restorer]):
            record = self.measurement.records.read(before.key, batch.number)
            predictions = record.get("predictions", record["prediction"][:, None]).to(self.measurement.device)
            standing &= (predictions == batch.labels[:, None]).all(1)
        return standing

    def _point(self, cell: Cell, batch: Batch) -> dict[str, Tensor]:
        """A point of a curve: only what is predicted in the end."""
        attacked = self._make(self._network(cell), batch, cell)
        return {"predictions": self._predictions(self.measurement.defences[cell.restorer], batch, attacked, cell)}

    def _network(self, cell: Cell) -> nn.Module:
        """What the attacker of a cell attacks."""
        if cell.source is not None:
            return self.measurement.sources[cell.source]
        defended = self.measurement.defences[cell.restorer]
        if cell.restorer == NO_RESTORER or cell.threat == "gray_box":
            return target(defended, "black_box") if cell.view == "query" else self.measurement.classifier
        threat = "white_box" if cell.threat == "curve" else cell.threat
        joint = cell.spec.loss == "joint"
        return target(defended, threat, cell.view, detector=self.measurement.detectors[cell.restorer] if joint else None)

    def _zero_gradient(self, cell: Cell, images: Tensor, batch: Batch) -> Tensor:
        """Share (B,) of exact zeros in the gradient of a cell's view, without a detector's column."""
        view = self.measurement.defences[cell.restorer].view(cell.view)
        with torch.random.fork_rng(devices=self.measurement.devices()):
            torch.manual_seed(self._seed(f"gradient {cell.key}", batch))
            return in_halves(lambda *part: (checks.zero_gradient(view, *part),), images, batch.labels)[0]

    def _attacked(self, cell: Cell, batch: Batch) -> Tensor:
        """The images a cell is about; those made against a classifier are shared between restorers."""
        if cell.spec is None:
            return batch.images
        if cell.own:
            return self._make(self._network(cell), batch, cell)
        shared = self._shared_key(cell)
        if shared not in batch.made:
            batch.made[shared] = self._shared(cell, batch, shared)
        return batch.made[shared]

    def _shared_key(self, cell: Cell) -> str:
        """Who shares the attacked images of a cell."""
        return f"{cell.source or NO_RESTORER}/{'query' if cell.view == 'query' else ''}/{spec_key(cell.spec)}"

    def _shared(self, cell: Cell, batch: Batch, key: str) -> Tensor:
        """Images made against a classifier, from an earlier evaluation of the same images where it has left them."""
        config, kept = self.measurement.config, self.measurement.kept
        # A part of the user's own may change what the classifier does in ways that no file tells; his images are not copied.
        randomised = self.measurement.randomised[NO_RESTORER]
        keeps = kept.wanted(cell.spec) and not self.own and not randomised and config.data.file is None
        network = self.measurement.weights[cell.source or config.classifier]
        found = kept.read(network, key, cell.spec, batch.number, batch.images) if keeps else None
        if found is not None:
            batch.found.add(key)
            return found
        made = self._make(self._network(cell), batch, cell, key=key).contiguous(memory_format=torch.channels_last)
        if keeps:
            kept.write(network, key, cell.spec, batch.number, made)
        return made

    def _make(self, network: nn.Module, batch: Batch, cell: Cell, *, key: str | None = None) -> Tensor:
        """Attacked images (B, C, H, W), with random parts that depend on the cell and the batch alone."""
        spec: AttackSpec = cell.spec
        seed = self._seed(key or cell.key, batch)
        delta = self.measurement.records.read(universal_key(cell), 0)["perturbation"] if spec.attack == UNIVERSAL else None

        def work(images: Tensor, labels: Tensor, position: Tensor) -> tuple[Tensor, ...]:
            # Parts of a batch that memory did not do for draw starts of their own.
            return (attack(network, images, labels, spec, seed=seed + int(position[0]), perturbation=delta).images,)

        return in_halves(work, batch.images, batch.labels, torch.arange(len(batch.labels)))[0]

    def _look_at_gradients(self, cell: Cell, batch: Batch) -> None:
        """On the first batch, how much of a white_box view's gradient at clean images is exactly zero."""
        if batch.number == 0 and cell.threat == "white_box" and cell.own:
            key = zero_key(cell.restorer, cell.view)
            self._once(key, batch, lambda: {"share": self._zero_gradient(cell, batch.images, batch)})

    # What is read off attacked images.

    def _measured(self, batch: Batch, attacked: Tensor, prefix: str) -> dict[str, Tensor]:
        """What the classifier alone makes of attacked images, and how far they are from the clean ones."""
        values = {
            "prediction": predict(self.measurement.classifier, attacked),
            "changed": (attacked != batch.images).flatten(1).any(1),
            "level": perturbation_level(attacked, batch.images),
            **metrics.quality(attacked, batch.images, self.measurement.lpips),
        }
        values |= self._kept(attacked)
        return {**{f"{prefix}{name}": value for name, value in values.items()}, **self._picture(batch, "attacked", attacked)}

    def _kept(self, images: Tensor) -> dict[str, Tensor]:
        """All images at 8 bits, where FID is asked for."""
        return {"images": (images * 255).round().byte()} if self.measurement.config.fid else {}

    def _restore(self, defended: DefendedClassifier, images: Tensor, key: str, batch: Batch) -> Restoration:
        """A restoration with random parts that depend on key and batch alone."""
        with torch.random.fork_rng(devices=self.measurement.devices()):
            torch.manual_seed(self._seed(f"restore {key}", batch))
            restoration = defended.restore(images)
        if zoo.is_own(defended.name):
            own_parts.check_restoration(defended.name, restoration, images)
        return restoration._replace(images=restoration.images.clamp(0, 1))  # a filter's rounding may leave the range a little

    def _predictions(self, defended: DefendedClassifier, batch: Batch, attacked: Tensor, cell: Cell) -> Tensor:
        """Classes (B, R) that the whole defence predicts in R passes, one unless it is randomised."""
        times = self.measurement.config.resubmissions if self.measurement.randomised[cell.restorer] else 1
        with torch.random.fork_rng(devices=self.measurement.devices()):
            torch.manual_seed(self._seed(f"resubmit {cell.key}", batch))
            return torch.stack([predict(defended, attacked) for _ in range(times)], dim=1)

    def _resubmitted(self, defended: DefendedClassifier, batch: Batch, attacked: Tensor, cell: Cell) -> dict[str, Tensor]:
        predictions = self._predictions(defended, batch, attacked, cell)
        return {"predictions": predictions, "prediction": predictions[:, 0].contiguous()}

    def _restored(self, defended: DefendedClassifier, batch: Batch, attacked: Tensor, cell: Cell) -> dict[str, Tensor]:
        restoration = self._restore(defended, attacked, cell.key, batch)
        maps = {f"map {name}": tensor for name, tensor in restoration.maps.items()}
        record = {"prediction": predict(defended.classifier, restoration.images), "score": restoration.score}
        record["level"] = restoration.level.float()
        record |= metrics.quality(restoration.images, batch.images, self.measurement.lpips) | self._kept(restoration.images)
        if self.measurement.randomised[cell.restorer]:
            record["predictions"] = self._predictions(defended, batch, attacked, cell)
            if defended.restorer.passes > 1:  # the restoration at hand is one of the passes that a prediction averages
                record["prediction"] = record["predictions"][:, 0].contiguous()
        for name, tensor in {"restored": restoration.images, **maps}.items():
            record |= self._picture(batch, name, tensor)
        return record

    def _picture(self, batch: Batch, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The first images of the first batch, kept for the report."""
        if batch.number or not self.measurement.config.images:
            return {}
        return {f"{PANEL}{name}": tensor[: self.measurement.config.images].float()}
