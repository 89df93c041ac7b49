"""Full and read-only disks: one clear line, nothing half-written, and the run goes on once there is space again."""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from gandefense.attacks.cache import AttackedSetConfig, attacked_set
from gandefense.config import RunConfig
from gandefense.data.batches import Images
from gandefense.errors import StorageError
from gandefense.evaluation import records
from gandefense.files import refusal, storing, write_text
from gandefense.training.run import Run
from gandefense.weights_io import load_weights, save_weights
from tests.helpers.networks import small_cnn

ROOT = Path(__file__).parents[2]
LIMIT = 20_000  # bytes that a file may have in these tests
BIG = torch.zeros(20_000)


@dataclass
class Example:
    run: RunConfig = field(default_factory=RunConfig)


@contextmanager
def small_files() -> Iterator[None]:
    """Let the operating system refuse every file above LIMIT, as it would on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    example = Example(RunConfig(folder=str(tmp_path), name="x"))
    with Run.start("x", example, example.run) as run:
        yield run


def _text(folder: Path, size: int) -> Path:
    write_text(folder / "text", "x" * size)
    return folder / "text"


def _weights(folder: Path, size: int) -> Path:
    save_weights(folder / "weights.safetensors", {"a": torch.zeros(size // 4)}, {})
    return folder / "weights.safetensors"


@pytest.mark.parametrize("write", [_text, _weights])
def test_what_was_there_before_stays_whole(write: Callable[[Path, int], Path], tmp_path: Path) -> None:
    path = write(tmp_path, LIMIT // 2)
    before = path.read_bytes()
    with small_files(), pytest.raises(StorageError, match=f"cannot write {path}: File too large") as caught:
        write(tmp_path, 4 * LIMIT)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing half-written is left"


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(run: Run) -> None:
    parts = {"network": nn.Linear(4, 4)}
    run.restore(**parts)
    run.step = 1
    run.save()
    before = (run.folder / "checkpoint.pt").read_bytes()
    run.step, run.extra = 2, {"more": BIG}
    with small_files(), pytest.raises(StorageError, match=r"checkpoint.pt: File too large"):
        run.save()
    assert (run.folder / "checkpoint.pt").read_bytes() == before
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoint.pt", "config.yaml"]


def test_the_message_of_a_run_says_how_to_go_on(tmp_path: Path) -> None:
    example = Example(RunConfig(folder=str(tmp_path), name="x"))
    message = r"File too large; once it can be written again, go on with resume=.*00000-x$"
    with pytest.raises(StorageError, match=message), Run.start("x", example, example.run) as run, small_files():
        for _ in range(LIMIT):
            run.log({"loss": 1.0})


def test_a_config_that_cannot_be_written_leaves_no_run(tmp_path: Path) -> None:
    example = Example(RunConfig(folder=str(tmp_path / "runs"), name="x"))
    example.run.device = "x" * LIMIT
    with small_files(), pytest.raises(StorageError, match=r"config.yaml: File too large"):
        Run.start("x", example, example.run)
    assert not list((tmp_path / "runs").iterdir())


def test_a_cache_that_does_not_fit_is_told_before_any_work(tmp_path: Path) -> None:
    images = Images((torch.rand(40, 3, 6, 6) * 255).byte(), torch.arange(40) % 4, torch.arange(40))
    config = AttackedSetConfig(rows=400, attacks=["none"], budgets=[8 / 255])
    make = functools.partial(attacked_set, small_cnn(nn.ReLU), images, config, device=torch.device("cpu"), root=str(tmp_path))
    with small_files(), pytest.raises(StorageError, match=r"cannot write the attacked set .*: File too large"):
        make()
    assert not list(tmp_path.rglob("*.npy"))
    assert len(make()) == 400


def test_a_record_that_does_not_fit_is_missing(tmp_path: Path) -> None:
    records.prepare_folder(tmp_path / "out", overwrite=False)
    kept = records.Records(tmp_path / "out", {"seed": 0})
    with small_files(), pytest.raises(StorageError, match="File too large"):
        kept.write("a", 0, {"x": BIG})
    assert not kept.has("a", 0) and not list((tmp_path / "out").rglob(".*"))
    kept.write("a", 0, {"x": BIG})
    assert kept.has("a", 0)


def test_only_the_file_systems_refusals_are_told_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storing(tmp_path):
        (tmp_path / "missing").read_text()
    with pytest.raises(ZeroDivisionError), storing(tmp_path):
        raise ZeroDivisionError
    for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO):
        with pytest.raises(StorageError, match=os.strerror(number)), storing(tmp_path):
            raise OSError(number, os.strerror(number))
    assert refusal(None) is None


# The real thing: a small disk of its own, which only this process and its children see.

DRIVER = """
import json, os, runpy, subprocess, sys
from pathlib import Path
import pytest
from tests.helpers import small_cifar10

disk, report = Path(sys.argv[1]), []
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
small_cifar10.write(disk / "data" / "cifar10")
small_cifar10.install(disk / "data", pytest.MonkeyPatch())
for step in json.loads(sys.argv[2]):
    if "space" in step:
        space = os.statvfs(disk)
        used = (space.f_blocks - space.f_bfree) * space.f_bsize
        options = step.get("options", "rw")
        subprocess.run(["mount", "-o", f"remount,{options},size={used + step['space']}", str(disk)], check=True)
        continue
    sys.argv = step["tool"]
    caught = open(os.environ["CAUGHT"], "w+")
    kept = os.dup(2)
    os.dup2(caught.fileno(), 2)
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    sys.stderr.flush()
    os.dup2(kept, 2)
    caught.seek(0)
    report.append([status, (caught.read().splitlines() or [''])[-1], sorted(path.name for path in disk.rglob(".*"))])
print(json.dumps(report))
subprocess.run(["cp", "-r", str(disk), os.environ["COPY"]], check=True)
"""


@functools.cache
def _may_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture
def on_small_disk(tmp_path: Path) -> Callable[..., tuple[list, Path]]:
    """Run tools one after the other on a disk whose free space is set in between; gives reports and a copy of the disk."""
    if sys.platform != "linux" or not _may_mount():
        pytest.skip("this machine lets nobody mount a disk of their own")

    def start(*steps: dict) -> tuple[list, Path]:
        disk, copy = tmp_path / "disk", tmp_path / "copy"
        disk.mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment |= {"CAUGHT": str(tmp_path / "err"), "COPY": str(copy)}
        (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
        done = subprocess.run(
            ["unshare", "-rm", sys.executable, str(tmp_path / "driver.py"), str(disk), json.dumps(steps)],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), copy

    return start


KB = 1024
PLENTY = {"space": 64 * KB * KB}


@pytest.mark.slow
def test_a_training_on_a_disk_that_fills_up(on_small_disk: Callable, recipe: Callable[[str], Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    tool, first = str(ROOT / "tools/train_trn.py"), disk / "runs/00000-run"
    words = [tool, str(recipe("train_trn")), f"run.folder={disk / 'runs'}", "attacked.rows=64", "validation_rows=64"]
    words += ["train.steps=20"]
    again = {"tool": [tool, f"resume={first}"]}
    reports, copy = on_small_disk(
        *({"space": 200 * KB}, {"tool": words}),  # the attacked set needs 400 KB
        *({"space": 600 * KB}, again),  # the gradient maps 2 MB
        *({"space": 2200 * KB}, again),  # the attacked validation set another 400 KB
        *({"space": 440 * KB}, again),  # and then come log and checkpoint
        *(PLENTY, again, {"tool": words}),
    )
    statuses, lines, left = zip(*reports, strict=True)
    assert statuses[-2:] == (0, 0), lines
    assert set(statuses[:-2]) == {2}
    how = f"; once it can be written again, go on with resume={first}"
    attacked = "the attacked set"
    for line, what in zip(lines[:-2], [f"{attacked} {disk}/data/attacked/cifar10-train", disk, attacked, first], strict=True):
        assert line.startswith(f"error: cannot write {what}") and "No space left on device" in line and line.endswith(how), line
    assert not any(left)
    one, two = (load_weights(copy / f"runs/0000{number}-run/model.safetensors")[0] for number in (0, 1))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.slow
def test_an_evaluation_on_a_full_and_on_a_read_only_disk(
    on_small_disk: Callable, recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    disk, tool = tmp_path / "disk", str(ROOT / "tools/evaluate.py")
    words = [tool, str(recipe("evaluate"))]
    one, two = ({"tool": [*words, f"output={disk / name}"]} for name in ("one", "two"))
    reports, copy = on_small_disk(
        *({"space": 60 * KB}, one),
        *({"space": 0, "options": "ro"}, one, two),
        *(PLENTY | {"options": "rw"}, one, two),
    )
    statuses, lines, left = zip(*reports, strict=True)
    assert statuses == (2, 2, 2, 0, 0), lines
    assert "No space left on device" in lines[0] and lines[0].endswith(f"go on with output={disk / 'one'}")
    assert all("Read-only file system" in line for line in lines[1:3])
    assert not any(left)
    tables = [json.loads((copy / name / "results.json").read_text()) for name in ("one", "two")]
    for table in tables:
        del table["made"], table["cost"]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_trainings_on_a_read_only_disk(on_small_disk: Callable, recipe: Callable[[str], Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    tool, first = str(ROOT / "tools/train_trn.py"), disk / "runs/00000-run"
    words = [tool, str(recipe("train_trn")), "attacked.rows=64", "validation_rows=64", "train.steps=20"]
    reports, copy = on_small_disk(
        PLENTY,
        {"tool": [*words, f"run.folder={disk / 'runs'}"]},
        {"space": 0, "options": "ro"},
        {"tool": [*words, f"run.folder={disk / 'runs'}"]},
        {"tool": [tool, f"resume={first}"]},
        {"tool": [*words, f"run.folder={tmp_path / 'elsewhere'}"]},  # caches that are complete may lie on such a disk
    )
    statuses, lines, _ = zip(*reports, strict=True)
    assert statuses == (0, 2, 0, 0), lines
    assert lines[1] == f"error: cannot make a folder in {disk / 'runs'}: Read-only file system"
    one = load_weights(copy / "runs/00000-run/model.safetensors")[0]
    two = load_weights(tmp_path / "elsewhere/00000-run/model.safetensors")[0]
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
