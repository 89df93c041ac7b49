"""Evaluations as processes: two together, or killed from outside, end with the table of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.evaluations import without_timings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def on_disk(full: dict[str, Any], tmp_path: Path, _small_root: Path) -> Path:
    """The whole evaluation as a config file."""
    from omegaconf import OmegaConf

    limit = full.pop("limit")
    config = tmp_path / "evaluate.yaml"
    OmegaConf.save(OmegaConf.create({**full, "output": None, "data": {"limit": limit, "root": str(_small_root)}}), config)
    return config


TOOL = ["-m", "tests.helpers.with_small_cifar10", "tools/evaluate.py"]


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_two_processes_end_with_the_table_of_one(
    on_disk: Path, tmp_path: Path, python: Callable[..., Any], _small_root: Path
) -> None:
    tables = []
    for count in (1, 2):
        folder = tmp_path / f"by{count}"
        words = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", str(29600 + count)]
        done = python(*words, *TOOL, str(on_disk), f"output={folder}", GANDEFENSE_DATA=str(_small_root))
        assert done.returncode == 0, done.stderr
        assert results_of(folder)["made"]["processes"] == count
        tables.append(without_timings(results_of(folder)))
    assert tables[0]["rows"] == tables[1]["rows"] and tables[0]["worst_case"] == tables[1]["worst_case"]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_killed_and_started_again_ends_with_the_same_table(
    on_disk: Path, tmp_path: Path, python: Callable[..., Any], _small_root: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = {"GANDEFENSE_DATA": str(_small_root), "OMP_NUM_THREADS": "1"}
    done = python(*TOOL, str(on_disk), f"output={whole}", **environment)
    assert done.returncode == 0, done.stderr
    records = len(list(whole.glob("records/*/*.safetensors")))

    command = [sys.executable, *TOOL, str(on_disk), f"output={killed}"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("records/*/*.safetensors"))) < 0.4 * records and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    assert not (killed / "results.json").exists()
    done = python(*command[1:], **environment)
    assert done.returncode == 0, done.stderr
    assert without_timings(results_of(killed)) == without_timings(results_of(whole))
