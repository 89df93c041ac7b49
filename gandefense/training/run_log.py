"""What a training shows while it runs: progress bar, stats.jsonl, TensorBoard's curves, pictures and hyperparameters."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gandefense import distributed
from gandefense.config import RunConfig
from gandefense.files import append_text, print_interval, storing


@dataclass
class RunLog:
    """The half of a `Run` that is looked at; under torchrun only the first process writes."""

    folder: Path
    kind: str
    config: dict[str, Any]
    settings: RunConfig
    resumed: bool = False
    step: int = 0
    _writer: Any = None
    _bar: Any = None
    _times: list[float] = field(default_factory=list)
    _steps: int | None = None  # of the whole run
    _begun: int | None = None  # the step that this process began at

    @property
    def writer(self) -> Any:
        """The run's TensorBoard writer."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            begun = self.step if self._begun is None else self._begun
            # what was logged after the checkpoint that a resumed run goes on from is logged once more
            self._writer = SummaryWriter(str(self.folder), purge_step=begun + 1 if self.resumed else None)
        return self._writer

    def progress(self, total: int, unit: str, description: str) -> tqdm:
        """A progress bar that starts at the resumed step, with throughput and time left."""
        self._steps, self._begun = total, self.step
        self._bar = tqdm(
            total=total,
            initial=self.step,
            desc=description,
            unit=unit,
            dynamic_ncols=True,
            mininterval=print_interval(),
            disable=not distributed.is_first(),
        )
        return self._bar

    def log(self, scalars: dict[str, float], *, images: int = 0) -> None:
        """Write scalars of the current step to stats.jsonl and TensorBoard and the progress bar.

        Args:
            scalars: name → value.
            images: images processed since the last call, by all processes; gives `speed/images_per_second`.
        """
        if not distributed.is_first():
            return
        now = time.perf_counter()
        if images and self._times:
            scalars = {**scalars, "speed/images_per_second": images / (now - self._times[-1])}
        if images:
            self._times = [now]
        values = {name: float(value) for name, value in scalars.items()}
        line = json.dumps({"step": self.step, "time": round(time.time(), 1), **values})
        with storing(self.folder):
            append_text(self.folder / "stats.jsonl", f"{line}\n")
            for name, value in values.items():
                self.writer.add_scalar(name, value, self.step)
        if self._bar is not None:
            shown = [(name.rsplit("/", 1)[-1], value) for name, value in values.items() if not name.startswith("speed")]
            self._bar.set_postfix_str(" ".join(f"{name}={value:.3g}" for name, value in shown[:5]), refresh=False)

    def grid(self, tag: str, rows: list[Tensor]) -> None:
        """Write one picture to TensorBoard: each row a batch (N, C, H, W) in [0, 1], images of a column belong together."""
        from torchvision.utils import make_grid

        columns = min(len(row) for row in rows)
        shaped = [row[:columns].detach().float().cpu().clamp(0, 1) for row in rows]
        shaped = [row.expand(-1, 3, -1, -1) if row.shape[1] == 1 else row for row in shaped]
        with storing(self.folder):
            self.writer.add_image(tag, make_grid(torch.cat(shaped), nrow=columns, padding=1, pad_value=1.0), self.step)

    def picture(self, tag: str, image: Tensor) -> None:
        """Write one image (3, H, W) in [0, 1] to TensorBoard as it is."""
        with storing(self.folder):
            self.writer.add_image(tag, image, self.step)

    def text(self, tag: str, markdown: str) -> None:
        """Write a text in Markdown to TensorBoard."""
        with storing(self.folder):
            self.writer.add_text(tag, markdown, self.step)

    def compare(self, scalars: dict[str, float]) -> None:
        """Name the run's settings and final figures for TensorBoard's page of hyperparameters, where runs are compared.

        Args:
            scalars: names that `log` has been given, and their last values.
        """
        from torch.utils.tensorboard.summary import hparams

        def plain(value: Any) -> Any:
            return value if isinstance(value, bool | int | float | str) else str(value)

        def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name, value in values.items():
                inner = isinstance(value, dict)
                found |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": plain(value)}
            return found

        left_out = ("resume", "run.folder", "run.device", "data.root", "data.download")  # of the machine, not of the recipe
        settings = {name: value for name, value in flat(self.config).items() if name not in left_out}
        with storing(self.folder):
            for summary in hparams(settings, scalars):
                self.writer.file_writer.add_summary(summary)

    def close_log(self) -> None:
        """Close the progress bar and flush TensorBoard; raises StorageError on a full disk."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        writer, self._writer = self._writer, None
        if writer is not None:
            with storing(self.folder):
                writer.close()
