"""What every training loop shares: run folder, seeds, precision, checkpoints, TensorBoard, progress."""

from __future__ import annotations

import json
import os
import pickle
import platform
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from gandefense.config import RunConfig
from gandefense.errors import UserError
from gandefense.files import locked, numbered_folder, print_interval, remove_leftovers, write_atomically, write_text
from gandefense.training.state import Means, random_states, require, restore_random_states
from gandefense.weights_io import save_weights


def versions() -> dict[str, str]:
    """Versions of what a number depends on."""
    import foolbox
    import kornia

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kornia": kornia.__version__,
        "foolbox": foolbox.__version__,
    }


def _state(part: Any) -> Any:
    return part.state_dict() if hasattr(part, "state_dict") else part


NOT_FINITE = "its last checkpoint is whole: start again with a lower learning rate or run.precision=float32"


@dataclass
class Run:
    """A run folder and everything that is written into it.

    `parts` are the modules, averages and optimisers whose states make up a checkpoint; a loop registers them with
    `restore`, which also fills them when the run is resumed.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    settings: RunConfig
    resumed: bool = False
    step: int = 0
    parts: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    _writer: Any = None
    _bar: Any = None
    _lock: Any = None
    _times: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, kind: str, config: Any, settings: RunConfig) -> Run:
        """Make a new numbered run folder (00000-name, 00001-name …) and write config.yaml into it."""
        values = OmegaConf.to_container(OmegaConf.structured(config))
        if "/" in settings.name or not settings.name:
            raise UserError(f"run.name must be a plain name, got {settings.name!r}")
        folder = numbered_folder(Path(settings.folder), settings.name)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({"kind": kind, **values})))
        run = cls(folder=folder, kind=kind, config=values, settings=settings)
        run._hold()
        return run

    @staticmethod
    def saved_config(folder: str | Path, kind: str) -> dict[str, Any]:
        """The config of an existing run, to build it again; raises UserError when the folder is no run of this kind."""
        path = Path(folder) / "config.yaml"
        if not path.is_file():
            raise UserError(f"resume={folder}: no run folder (it has no config.yaml)")
        try:
            values = OmegaConf.to_container(OmegaConf.load(path))
            found = values.pop("kind")
        except Exception:
            raise UserError(f"resume={folder}: its config.yaml is damaged") from None
        if found != kind:
            raise UserError(f"resume={folder}: a run of kind {found!r}, not {kind!r}; use tools/train_{found}.py")
        return values

    @classmethod
    def resume(cls, folder: str | Path, kind: str, config: Any, settings: RunConfig) -> Run:
        """Open an existing run folder again; the state comes back with `restore`."""
        cls.saved_config(folder, kind)
        values = OmegaConf.to_container(OmegaConf.structured(config))
        run = cls(folder=Path(folder), kind=kind, config=values, settings=settings, resumed=True)
        run._hold()
        remove_leftovers(run.folder / "checkpoint.pt")
        remove_leftovers(run.folder / "model.safetensors")
        return run

    def _hold(self) -> None:
        """Hold the folder until `close`, or until the process ends; a second process is refused."""
        self._lock = locked(self.folder, wait=False)
        self._lock.__enter__()

    @property
    def finished(self) -> bool:
        """Whether the run has already ended with its weights written."""
        return (self.folder / "model.safetensors").is_file()

    def restore(self, **parts: Any) -> None:
        """Register what a checkpoint holds, and fill it from checkpoint.pt where there is one.

        Raises:
            UserError: the checkpoint is damaged, foreign, or does not fit.
        """
        self.parts = parts
        path = self.folder / "checkpoint.pt"
        if path.is_file():
            try:
                with warnings.catch_warnings():  # torch's remarks on a foreign file help nobody
                    warnings.simplefilter("ignore")
                    saved = torch.load(path, map_location="cpu", weights_only=True)
                if saved["kind"] != self.kind or set(saved["parts"]) != set(parts):
                    raise KeyError("parts")
                for name, part in parts.items():
                    part.load_state_dict(saved["parts"][name])
                self.step, self.extra = saved["step"], saved["extra"]
                restore_random_states(saved["random"])
            except Exception as error:  # torch.load fails in many ways on a damaged file
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                if isinstance(error, pickle.UnpicklingError):  # torch would advise to load it with the code in it
                    reason = "it does not hold tensors and plain values alone"
                raise UserError(
                    f"{path} is damaged or of another run ({reason[:150]}); move it away to start this run from step 0"
                ) from None
        self._cut_log()

    def _cut_log(self) -> None:
        """Drop the lines of stats.jsonl that were written after the checkpoint: those steps are done again."""
        path = self.folder / "stats.jsonl"
        if path.is_file():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= self.step:
                        kept.append(line)
                except (ValueError, KeyError):  # a line cut short by a kill
                    continue
            write_text(path, "".join(f"{line}\n" for line in kept))

    @property
    def writer(self) -> Any:
        """The run's TensorBoard writer."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self.step + 1 if self.resumed else None)
        return self._writer

    def progress(self, total: int, unit: str, description: str) -> tqdm:
        """A progress bar that starts at the resumed step, with throughput and time left."""
        self._bar = tqdm(
            total=total,
            initial=self.step,
            desc=description,
            unit=unit,
            dynamic_ncols=True,
            mininterval=print_interval(),
        )
        return self._bar

    def log(self, scalars: dict[str, float], *, images: int = 0) -> None:
        """Write scalars of the current step to stats.jsonl and TensorBoard and the progress bar.

        Args:
            scalars: name → value.
            images: images processed since the last call; gives `speed/images_per_second`.
        """
        now = time.perf_counter()
        if images and self._times:
            scalars = {**scalars, "speed/images_per_second": images / (now - self._times[-1])}
        if images:
            self._times = [now]
        values = {name: float(value) for name, value in scalars.items()}
        with (self.folder / "stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "time": round(time.time(), 1), **values}) + "\n")
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
        self.writer.add_image(tag, make_grid(torch.cat(shaped), nrow=columns, padding=1, pad_value=1.0), self.step)

    def save(self) -> None:
        """Write checkpoint.pt atomically: all parts, step and random states, as tensors and plain containers.

        Raises:
            UserError: some weight is no longer finite; the last checkpoint stays.
        """
        for name, part in self.parts.items():
            tensors = part.state_dict().values() if isinstance(part, torch.nn.Module) else ()
            if not all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()):
                raise UserError(f"weights of {name} are no longer finite at step {self.step} of {self.folder}; {NOT_FINITE}")
        state = {
            "kind": self.kind,
            "config": self.config,
            "parts": {name: _state(part) for name, part in self.parts.items()},
            "step": self.step,
            "extra": self.extra,
            "random": random_states(),
        }
        write_atomically(self.folder / "checkpoint.pt", lambda temporary: torch.save(state, temporary))

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is due after this step."""
        return self.step % self.settings.checkpoint_every == 0

    def finish(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
        """Write the trained network as model.safetensors and close the logs."""
        self.save()
        path = self.folder / "model.safetensors"
        save_weights(path, tensors, {**metadata, "config": self.config, "versions": versions()})
        self.close()
        return path

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush TensorBoard and the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None


def check_finite(means: Means, run: Run) -> None:
    """Stop a run whose loss is no longer a number, before a checkpoint keeps it; raises UserError."""
    for name, total in means.sums.items():
        if name.startswith("loss") and not torch.isfinite(total):
            raise UserError(
                f"the {name.replace('_', ' ')} became {total.item()} at step {run.step} of {run.folder}; {NOT_FINITE}"
            )


def check_settings(settings: RunConfig) -> None:
    """Raise UserError for a run setting out of range."""
    require(counts={f"run.{name}": getattr(settings, name) for name in ("log_every", "image_every", "checkpoint_every")})


def open_run(kind: str, config: Any, settings: RunConfig, resume: str | None) -> Run:
    """A new run, or the existing one that `resume` names."""
    run = Run.resume(resume, kind, config, settings) if resume else Run.start(kind, config, settings)
    print(f"{'resuming' if resume else 'run folder:'} {os.fspath(run.folder)}", flush=True)
    return run
