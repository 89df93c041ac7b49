"""Run folders: config.yaml, checkpoint.pt and stats.jsonl that somebody else wrote or that a disk damaged."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gandefense import config
from gandefense.config import RunConfig
from gandefense.training.run import Run
from gandefense.training.trn import TRNConfig
from tests.fuzz.mutations import as_json, fuzz, junk, mutated, rewritten, survives


@pytest.fixture(scope="module")
def run_folder(place: Path) -> Path:
    """A run of three steps with a tiny network."""
    settings = TRNConfig(run=RunConfig(folder=str(place / "runs"), device="cpu"))
    with Run.start("trn", settings, settings.run) as run:
        network = nn.Linear(3, 2)
        run.restore(network=network, optimiser=torch.optim.Adam(network.parameters()))
        for run.step in (1, 2, 3):
            run.log({"loss": 1.0 / run.step})
        run.save()
    return run.folder


def _copy(run_folder: Path, place: Path) -> Path:
    case = place / "case"
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir()
    for name in ("config.yaml", "checkpoint.pt", "stats.jsonl"):
        shutil.copy(run_folder / name, case / name)
    return case


def _resume(case: Path) -> Run:
    settings = TRNConfig(run=RunConfig(device="cpu"))
    with Run.resume(case, "trn", settings, settings.run) as run:
        network = nn.Linear(3, 2)
        run.restore(network=network, optimiser=torch.optim.Adam(network.parameters()))
    return run


def _checked(run: Run | None) -> None:
    if run is not None:
        assert type(run.step) is int and run.step >= 0 and isinstance(run.extra, dict)


@fuzz
@given(data=st.data())
def test_a_saved_config_is_read_or_refused(run_folder: Path, place: Path, data: st.DataObject) -> None:
    case = _copy(run_folder, place)
    original = (case / "config.yaml").read_text(encoding="utf-8")
    letters = mutated(original.encode())
    values = rewritten(yaml.safe_load(original)).map(lambda value: yaml.safe_dump(value).encode())
    (case / "config.yaml").write_bytes(data.draw(st.one_of(letters, values)))
    built = survives(lambda: config.build(TRNConfig, Run.saved_config(case, "trn"), source="config.yaml"))
    assert built is None or dataclasses.is_dataclass(built)


@fuzz
@given(data=st.data())
def test_checkpoint_bytes_are_read_or_refused(run_folder: Path, place: Path, data: st.DataObject) -> None:
    case = _copy(run_folder, place)
    (case / "checkpoint.pt").write_bytes(data.draw(mutated((run_folder / "checkpoint.pt").read_bytes())))
    _checked(survives(lambda: _resume(case)))


def _repacked(checkpoint: bytes, changed: dict[str, bytes]) -> bytes:
    """A checkpoint whose parts are changed and whose checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            target.writestr(name, changed.get(name.rsplit("/", 1)[-1], source.read(name)))
    return file.getvalue()


@fuzz
@given(data=st.data())
def test_a_checkpoints_contents_are_read_or_refused(run_folder: Path, place: Path, data: st.DataObject) -> None:
    case = _copy(run_folder, place)
    whole = (run_folder / "checkpoint.pt").read_bytes()
    if data.draw(st.booleans()):
        with zipfile.ZipFile(io.BytesIO(whole)) as source:
            name = next(name for name in source.namelist() if name.endswith("/data.pkl"))
            pickled = source.read(name)
        (case / "checkpoint.pt").write_bytes(_repacked(whole, {"data.pkl": data.draw(mutated(pickled))}))
    else:
        saved = torch.load(run_folder / "checkpoint.pt", weights_only=True)
        saved |= {name: data.draw(junk) for name in data.draw(st.lists(st.sampled_from(sorted(saved)), min_size=1, max_size=2))}
        torch.save(saved, case / "checkpoint.pt")
    _checked(survives(lambda: _resume(case)))


@fuzz
@given(data=st.data())
def test_a_log_never_stops_a_run(run_folder: Path, place: Path, data: st.DataObject) -> None:
    case = _copy(run_folder, place)
    original = (run_folder / "stats.jsonl").read_bytes()
    lines = [json.loads(line) for line in original.splitlines()]
    values = rewritten(lines).map(lambda lines: b"\n".join(as_json(line) for line in lines))
    (case / "stats.jsonl").write_bytes(data.draw(st.one_of(mutated(original), values, st.binary(max_size=60))))
    run = _resume(case)
    assert run.step == 3, "a log that is damaged costs lines of the log alone"
    for line in (case / "stats.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["step"] <= 3


def test_a_compressed_checkpoint_is_refused(run_folder: Path, place: Path) -> None:
    case = _copy(run_folder, place)
    with zipfile.ZipFile(case / "checkpoint.pt", "w", compression=zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("checkpoint/data.pkl", bytes(10**7))
    assert survives(lambda: _resume(case)) is None


def test_the_original_goes_on(run_folder: Path, place: Path) -> None:
    assert _resume(_copy(run_folder, place)).step == 3
