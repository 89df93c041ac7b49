"""What every training loop shares: run folder, seeds, precision, checkpoints, TensorBoard, progress."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from gandefense.config import RunConfig
from gandefense.errors import UserError
from gandefense.weights_io import save_weights, write_atomically, write_text


def choose_device(name: str) -> torch.device:
    """The device that a config names; "auto" takes CUDA where there is one. Raises UserError for an unknown one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r} asked for, but torch sees no CUDA device; use device=cpu")
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bf16 autocast, or none for "float32"; raises UserError for another precision."""
    if precision not in ("bf16", "float32"):
        raise UserError(f"unknown precision {precision!r}; known: bf16, float32")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def exponential_average(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a module's parameters and buffers."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


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


def random_states() -> dict[str, Any]:
    """The states of all random generators, as tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, following = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), following],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states["torch"].cpu())
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, following = states["python"]
    random.setstate((version, tuple(internal), following))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def _state(part: Any) -> Any:
    return part.state_dict() if hasattr(part, "state_dict") else part


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
    step: int = 0
    parts: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    _writer: Any = None
    _bar: Any = None
    _times: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, kind: str, config: Any, settings: RunConfig) -> Run:
        """Make a new numbered run folder (00000-name, 00001-name …) and write config.yaml into it."""
        parent = Path(settings.folder)
        values = OmegaConf.to_container(OmegaConf.structured(config))
        try:
            parent.mkdir(parents=True, exist_ok=True)
            while True:
                taken = [int(match[1]) for entry in parent.iterdir() if (match := re.match(r"(\d{5})-", entry.name))]
                folder = parent / f"{max(taken, default=-1) + 1:05d}-{settings.name}"
                try:
                    folder.mkdir()
                    break
                except FileExistsError:  # another process took the number first
                    continue
        except OSError as error:
            raise UserError(f"cannot make a run folder in {parent}: {error.strerror}") from None
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({"kind": kind, **values})))
        random.seed(settings.seed)
        np.random.seed(settings.seed % 2**32)
        torch.manual_seed(settings.seed)
        return cls(folder=folder, kind=kind, config=values, settings=settings)

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
        values = OmegaConf.to_container(OmegaConf.structured(config))
        random.seed(settings.seed)
        np.random.seed(settings.seed % 2**32)
        torch.manual_seed(settings.seed)
        return cls(folder=Path(folder), kind=kind, config=values, settings=settings)

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
                saved = torch.load(path, map_location="cpu", weights_only=True)
                if saved["kind"] != self.kind or set(saved["parts"]) != set(parts):
                    raise KeyError("parts")
                for name, part in parts.items():
                    part.load_state_dict(saved["parts"][name])
                self.step, self.extra = saved["step"], saved["extra"]
                restore_random_states(saved["random"])
            except Exception as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(f"{path} is damaged or of another run ({reason[:150]}); delete it to start from step 0") from None
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

            self._writer = SummaryWriter(str(self.folder), purge_step=self.step if self.step else None)
        return self._writer

    def progress(self, total: int, unit: str, description: str) -> tqdm:
        """A progress bar that starts at the resumed step, with throughput and time left."""
        self._bar = tqdm(
            total=total,
            initial=self.step,
            desc=description,
            unit=unit,
            dynamic_ncols=True,
            mininterval=1.0 if sys.stderr.isatty() else 20.0,
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
        """Write checkpoint.pt atomically: all parts, step and random states, as tensors and plain containers."""
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

    def close(self) -> None:
        """Flush TensorBoard and the progress bar."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.flush()
            self._writer.close()


class Means:
    """Means of training figures since they were last taken; they stay on the device until then."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, **figures: Tensor) -> None:
        """Add one step's scalars."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.steps += 1

    def take(self, prefix: str = "train/") -> dict[str, float]:
        """The means by name, and a fresh start."""
        means = {f"{prefix}{name}": (total / self.steps).item() for name, total in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means


def check_finite(means: Means, run: Run) -> None:
    """Stop a run whose loss is no longer a number, before a checkpoint keeps it; raises UserError."""
    loss = means.sums.get("loss", torch.zeros(()))
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss became {loss.item()} at step {run.step} of {run.folder}; its last checkpoint is whole: "
            "start again with a lower learning rate or precision=float32"
        )


def open_run(kind: str, config: Any, settings: RunConfig, resume: str | None) -> Run:
    """A new run, or the existing one that `resume` names."""
    run = Run.resume(resume, kind, config, settings) if resume else Run.start(kind, config, settings)
    print(f"{'resuming' if resume else 'run folder:'} {os.fspath(run.folder)}", flush=True)
    return run
