"""What a training writes for its user: stats.jsonl and TensorBoard."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from gandefense.config import RunConfig
from gandefense.training import run_log
from gandefense.training.run import Run


@dataclass
class Example:
    run: RunConfig = field(default_factory=RunConfig)
    rate: float = 0.5


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = Example(run=RunConfig(folder=str(tmp_path / "runs"), name="example", seed=3))
    return Run.start("example", config, config.run)


def test_throughput_counts_images_between_two_calls(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(run_log.time, "perf_counter", lambda: now)
    run.log({"loss": 1.0}, images=100)
    now = 11.0
    run.log({"validation/accuracy": 0.5})  # in between; says nothing about training's speed
    now = 12.0
    run.log({"loss": 1.0}, images=100)
    lines = [json.loads(line) for line in (run.folder / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line.get("speed/images_per_second") for line in lines] == [None, None, 50.0]


def test_tensorboard_gets_scalars_and_grids(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (1, 2):
        run.step = step
        run.log({"train/loss": step / 2})
    run.grid("samples", [torch.rand(3, 3, 8, 8), torch.rand(4, 1, 8, 8) * 3 - 1])
    run.close()
    events = EventAccumulator(str(run.folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 1.0)]
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (2, 3 * 9 + 1, 2 * 9 + 1)


def test_what_a_killed_process_logged_after_its_checkpoint_is_in_tensorboard_once(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in range(10, 60, 10):  # killed after step 50, its checkpoint is that of step 30
        run.step = step
        run.log({"train/loss": step})
    run.close()
    again = Run(folder=run.folder, kind=run.kind, config=run.config, settings=run.settings, resumed=True, step=30)
    again.progress(70, "step", "example")
    for step in range(40, 80, 10):
        again.step = step
        again.log({"train/loss": step})
    again.close()
    found = EventAccumulator(str(run.folder)).Reload().Scalars("train/loss")
    assert [event.step for event in found] == [10, 20, 30, 40, 50, 60, 70]
