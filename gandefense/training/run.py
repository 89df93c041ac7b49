"""What every training loop shares: run folder, checkpoints, resuming, and what run_log.py writes on the way."""

from __future__ import annotations

import functools
import json
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from gandefense import distributed
from gandefense.attacks.cache import fingerprint
from gandefense.config import RunConfig, check_file
from gandefense.errors import Interrupted, StorageError, UserError
from gandefense.files import (
    locked,
    numbered_folder,
    remove_leftovers,
    write_text,
)
from gandefense.precision import resolve
from gandefense.training import checkpoint
from gandefense.training.run_log import RunLog
from gandefense.training.state import Means, choose_device, random_states, require, restore_random_states
from gandefense.training.stopping import StopRequest
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


NOT_FINITE = "its last checkpoint is whole: start again with a lower learning rate or run.precision=float32"


MADE_FROM = "made_from"  # in config.yaml


@dataclass
class Run(RunLog):
    """A run folder and everything that is written into it.

    `parts` are the modules, averages and optimisers whose states make up a checkpoint; a loop registers them with
    `restore`, which also fills them when the run is resumed.

    From `restore` on, Ctrl-C and SIGTERM end the run after the step in hand: `checkpoint_due` then says yes, and `save`
    raises Interrupted once the checkpoint is on disk. A second signal ends it at once.

    Under torchrun only the first process writes; the others call the same methods, and read the same checkpoint.
    """

    parts: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    _lock: Any = None
    _saved: int | None = None  # step of the checkpoint on disk
    _stop_now: bool = False
    _stop: StopRequest = field(init=False)

    def __post_init__(self) -> None:
        self._stop = StopRequest(nothing_to_save=lambda: (self._saved or 0) == self.step)

    @classmethod
    def start(cls, kind: str, config: Any, settings: RunConfig, made_from: dict[str, str] | None = None) -> Run:
        """Make a new numbered run folder (00000-name, 00001-name …) and write config.yaml into it; see `open_run`."""
        values = OmegaConf.to_container(OmegaConf.structured(config))
        if not re.fullmatch(r"[^/\\\x00-\x1f\x7f]{1,100}", settings.name):
            raise UserError(f"run.name must be a plain name of at most 100 letters, got {settings.name!r}")
        folder = numbered_folder(Path(settings.folder), settings.name)
        head = {"kind": kind, **({MADE_FROM: made_from} if made_from else {})}
        try:
            write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({**head, **values})))
        except UserError:
            folder.rmdir()  # without a config it is no run
            raise
        run = cls(folder=folder, kind=kind, config=values, settings=settings)
        run._hold()
        return run

    @staticmethod
    def _read_config(folder: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, str]]:
        """An existing run's config, and what the run was made from."""
        path = Path(folder) / "config.yaml"
        if not path.is_file():
            raise UserError(f"resume={folder}: no run folder (it has no config.yaml)")
        try:
            check_file(path)
            values = OmegaConf.to_container(OmegaConf.load(path))
            found, made_from = values.pop("kind"), dict(values.pop(MADE_FROM, {}))
        except Exception:
            raise UserError(f"resume={folder}: its config.yaml is damaged") from None
        if found != kind:
            tool = "baseline" if "baseline" in values else found
            raise UserError(f"resume={folder}: a run of kind {found!r}, not {kind!r}; use tools/train_{tool}.py")
        return values, made_from

    @classmethod
    def saved_config(cls, folder: str | Path, kind: str) -> dict[str, Any]:
        """The config of an existing run, to build it again; raises UserError when the folder is no run of this kind."""
        return cls._read_config(folder, kind)[0]

    @classmethod
    def resume(
        cls, folder: str | Path, kind: str, config: Any, settings: RunConfig, made_from: dict[str, str] | None = None
    ) -> Run:
        """Open an existing run folder again; the state comes back with `restore`. See `open_run`."""
        earlier = cls._read_config(folder, kind)[1]
        changed = [name for name, value in (made_from or {}).items() if earlier.get(name, value) != value]
        if changed:
            raise UserError(
                f"resume={folder}: {' and '.join(changed)} changed since this run was started; put back what it was "
                "started with, or start a new run"
            )
        values = OmegaConf.to_container(OmegaConf.structured(config))
        run = cls(folder=Path(folder), kind=kind, config=values, settings=settings, resumed=True)
        run._hold()
        remove_leftovers(run.folder)
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
            self.step, self.extra = checkpoint.read(path, self.kind, parts)
            self._saved = self.step
        self._check_agreement()
        if distributed.is_first():
            self._cut_log()
        self._stop.listen()

    def _check_agreement(self) -> None:
        """Raise UserError unless all processes are at the same step with the same weights."""
        if distributed.world() == 1:
            return
        networks = (part for part in self.parts.values() if isinstance(part, torch.nn.Module))
        states = distributed.from_all((self.step, [fingerprint(network) for network in networks]))
        if any(state != states[0] for state in states):
            steps = ", ".join(str(step) for step, _ in states)
            raise UserError(
                f"the processes do not hold the same weights (at steps {steps}): all machines need the same run folder "
                f"{self.folder}, data, software and kind of device"
            )

    def _interrupted(self) -> Interrupted:
        reached = "before its first checkpoint" if self._saved is None else f"at step {self._saved}, which is saved"
        return Interrupted(f"interrupted {reached}; go on with resume={self.folder}")

    def _cut_log(self) -> None:
        """Drop the lines of stats.jsonl that were written after the checkpoint: those steps are done again."""
        path = self.folder / "stats.jsonl"
        if path.is_file():
            kept = []
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= self.step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):  # a line cut short by a kill
                    continue
            write_text(path, "".join(f"{line}\n" for line in kept))

    def save(self) -> None:
        """Write checkpoint.pt atomically: all parts, step and random states, as tensors and plain containers.

        Raises:
            UserError: some weight is no longer finite, or the disk is full; the last checkpoint stays.
            Interrupted: a signal asked for the end, and the checkpoint is written.
        """
        self._check_agreement()
        if distributed.world() > 1:  # a network that draws by itself, as dropout does, lets the processes drift apart
            restore_random_states(distributed.from_first(random_states()))
        if distributed.is_first():
            self._write_checkpoint()
        self._saved = self.step
        distributed.barrier()
        if self._stop_now:
            raise self._interrupted()

    def _write_checkpoint(self) -> None:
        for name, part in self.parts.items():
            tensors = part.state_dict().values() if isinstance(part, torch.nn.Module) else ()
            if not all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point()):
                raise UserError(f"weights of {name} are no longer finite at step {self.step} of {self.folder}; {NOT_FINITE}")
        checkpoint.write(self.folder / "checkpoint.pt", self.kind, self.config, self.parts, self.step, self.extra)
        self._saved = self.step

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is due after this step: every so many, at the last one, and when a signal asked for the end."""
        self._stop_now = self._stop.agreed(ask_others=self.step % self.settings.log_every == 0)
        return self._stop_now or self.step == self._steps or self.step % self.settings.checkpoint_every == 0

    def finish(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
        """Write the trained network as model.safetensors and close the logs."""
        if self._saved != self.step:
            self._write_checkpoint()
        path = self.folder / "model.safetensors"
        save_weights(path, tensors, {**metadata, "config": self.config, "versions": versions()})
        self.close()
        return path

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if distributed.lost(error):
            self._stop.release()
            distributed.leave_in_peace()
        try:
            self.close()
        except StorageError:
            if error is None:  # otherwise the first error tells more
                raise
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
            raise self._interrupted() from None
        if distributed.lost(error):
            raise distributed.LostProcess(f"{distributed.LOST}; go on with resume={self.folder}") from None
        if isinstance(error, StorageError):
            raise StorageError(f"{error}; once it can be written again, go on with resume={self.folder}") from None

    def close(self) -> None:
        """Flush TensorBoard and the progress bar, and let signals and folder go; raises StorageError on a full disk."""
        self._stop.release()
        try:
            self.close_log()
        finally:
            if self._lock is not None:
                self._lock.__exit__(None, None, None)
                self._lock = None


def check_finite(means: Means, run: Run) -> None:
    """Stop a run whose loss is no longer a number, before a checkpoint keeps it; raises UserError."""
    for name, total in means.totals().items():
        if name.startswith("loss") and not torch.isfinite(total):
            raise UserError(
                f"the {name.replace('_', ' ')} became {total.item()} at step {run.step} of {run.folder}; {NOT_FINITE}"
            )


def check_settings(settings: RunConfig) -> None:
    """Raise UserError for a run setting out of range."""
    require(counts={f"run.{name}": getattr(settings, name) for name in ("log_every", "image_every", "checkpoint_every")})


def arithmetic(config: Any, device: torch.device) -> dict[str, str]:
    """What the precisions of a training's config come to on a device, by name; "auto" is not the same on every machine."""
    named = {"run.precision": config.run.precision}
    if hasattr(config, "attacked"):
        named["attacked.precision"] = config.attacked.precision
    return {f"what {key} comes to on this device": resolve(device, precision) for key, precision in named.items()}


def open_run(kind: str, config: Any, settings: RunConfig, resume: str | None, made_from: dict[str, str] | None = None) -> Run:
    """A new run, or the existing one that `resume` names; under torchrun the first process's for all.

    Args:
        kind: "classifier", "trn" …
        config: the tool's whole config.
        settings: its `run`.
        resume: a run folder, or None.
        made_from: a fingerprint of everything that the config names but does not hold: data, a classifier's weights. They
            are kept in config.yaml, with the arithmetic of this device, and a run does not go on with others.

    Raises:
        UserError: no such run, one that another process is at work on, or one that was made from something else.
    """
    runs: list[Run] = []
    made_from = {**(made_from or {}), **arithmetic(config, choose_device(settings.device))}

    def first() -> str:
        begin = Run.start if not resume else functools.partial(Run.resume, resume)
        runs.append(begin(kind, config, settings, made_from))
        return str(runs[0].folder)

    folder = distributed.first_decides(first)
    if not distributed.is_first():
        values = OmegaConf.to_container(OmegaConf.structured(config))
        return Run(folder=Path(folder), kind=kind, config=values, settings=settings, resumed=bool(resume))
    print(f"{'resuming' if resume else 'run folder:'} {folder}", flush=True)
    return runs[0]
