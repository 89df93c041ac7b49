"""Training by two processes under torchrun: the weights of one process, one that dies, and the parts of a batch.

Two processes add up the same numbers in another order. A gradient then differs by some 1e-6 of itself, single steps by
sign gradients and by Adam make more of it, and training carries it on: weights are compared by how far they lie apart,
relative to how far the training has moved them (`APART`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gandefense import distributed
from gandefense.distributed import LOST
from gandefense.errors import UserError
from gandefense.training.batch_norm import synchronised
from gandefense.training.distillation import StudentConfig, student_step
from gandefense.training.parts import Part, check_parts, gathered, parts
from tests.helpers import small_cifar10 as small
from tests.helpers.networks import small_cnn
from tests.helpers.short_training import classifier_file

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
APART = 0.01  # distance of two trainings' weights, over the distance from their start
TINY = 1e-9  # a learning rate that leaves the weights where they start

COMMON = "run: {device: cpu, precision: float32, log_every: 2, image_every: 50, checkpoint_every: 2, seed: 4}\n"
RECIPES = {
    "classifier": "architecture: tiny\nstart: CLASSIFIER\n"
    "train: {batch_size: 33, epochs: 1, learning_rate: 0.002, ema_decay: 0.9, erase: 0.2,"
    " adversarial: {method: fgsm, validation_images: 20}}\n",
    "trn": "classifier: CLASSIFIER\nattacked: {rows: 64, attacks: [fgsm], budgets: [8/255]}\nvalidation_rows: 16\n"
    "network: {width: 8, blocks: 1}\n"
    "train: {steps: 8, batch_size: 13, learning_rate: 1.0e-2, warmup: 3, class_ramp: 5, ema_decay: 0.9}\n",
    "gan": "classifier: CLASSIFIER\nattacked: {rows: 64, attacks: [fgsm, none], budgets: [8/255]}\nvalidation_rows: 16\n"
    "network: {width: 8, discriminator_width: 4}\ndistil: {steps: 4, batch_size: 17, learning_rate: 0.002}\n"
    "train: {steps: 6, batch_size: 13, warmup: 3, ema_decay: 0.8,"
    " noise_share: 0.35, random_step_share: 0.2, replay_share: 0.2}\nloss: {class_ramp: 4, r1_every: 4}\n"
    "adapt: {steps: 4, batch_size: 15, learning_rate: 0.002, noise_share: 0.35, own_share: 0.35, own_steps: 2}\n",
}
STILL = {
    "classifier": (f"train.learning_rate={TINY}", "train.epochs=0.15"),
    "trn": (f"train.learning_rate={TINY}", "train.steps=1"),
    "gan": tuple(
        f"{name}={TINY}"
        for name in ("train.learning_rate", "train.discriminator_rate", "distil.learning_rate", "adapt.learning_rate")
    ),
}
LOSSES = {"classifier": "train/loss", "trn": "train/loss", "gan": "train/loss_discriminator"}


@pytest.fixture(scope="module")
def recipes(_small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Config files of short trainings before a classifier that was itself trained for a second."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        small.install(_small_root, patch)
        path = classifier_file(folder)
        for kind, text in RECIPES.items():
            (folder / f"{kind}.yaml").write_text(text.replace("CLASSIFIER", str(path)) + COMMON, encoding="utf-8")
        yield {kind: folder / f"{kind}.yaml" for kind in RECIPES}


def _command(count: int, kind: str, *words: object, helper: str = "with_small_cifar10") -> list[str]:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]  # at a port of its own choice
    tool = ["-m", f"tests.helpers.{helper}", f"tools/train_{kind}.py"]
    return [*(several if count > 1 else []), *tool, *map(str, words)]


def _parts(run: Path) -> dict[str, dict[str, Tensor]]:
    """A checkpoint's networks, as flat vectors of everything in them but counters."""
    saved = torch.load(run / "checkpoint.pt", weights_only=True)["parts"]
    states = {name: state for name, state in saved.items() if "optimiser" not in name}
    return {
        name: torch.cat([value.double().reshape(-1) for value in state.values() if value.is_floating_point()])
        for name, state in states.items()
    }


def _log(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECIPES)
def test_two_processes_end_with_the_weights_of_one(
    kind: str, recipes: dict[str, Path], tmp_path: Path, python: Callable, tool: Callable, small_cifar10: Path
) -> None:
    together = _command(2, kind, recipes[kind], f"run.folder={tmp_path / 'two'}")
    done = python(*together, GANDEFENSE_DATA=small_cifar10)
    ended = {"two": (done.returncode, done.stdout, done.stderr)}
    for name, changes in (("still", STILL[kind]), ("one", ())):
        ended[name] = tool(f"train_{kind}", recipes[kind], f"run.folder={tmp_path / name}", *changes)
    for name, (status, out, err) in ended.items():
        assert status == 0, err
        assert out.count("run folder:") == out.count("weights:") == 1, "the first process alone speaks"
        assert [path.name for path in (tmp_path / name).iterdir()] == ["00000-run"]
    still, one, two = (_parts(tmp_path / name / "00000-run") for name in ("still", "one", "two"))
    for name in one:
        moved = (one[name] - still[name]).norm()
        assert moved > 0
        assert (one[name] - two[name]).norm() < APART * moved, name
    runs = [tmp_path / name / "00000-run" for name in ("one", "two")]
    for name in (LOSSES[kind], "validation/accuracy" if kind == "classifier" else "validation/clean"):
        alone, together = (_log(run, name) for run in runs)
        assert len(alone) >= 1 and alone == pytest.approx(together, rel=0.01)
    states = [torch.load(run / "checkpoint.pt", weights_only=True)["random"]["torch"] for run in runs]
    assert torch.equal(*states), "every draw was made as often"


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_goes_on_by_two_or_by_one(
    recipes: dict[str, Path], tmp_path: Path, python: Callable, _small_root: Path
) -> None:
    long = [recipes["trn"], "train.steps=15", "run.checkpoint_every=5"]
    whole = python(*_command(2, "trn", *long, f"run.folder={tmp_path / 'whole'}"), GANDEFENSE_DATA=_small_root)
    assert whole.returncode == 0, whole.stderr
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GANDEFENSE_DATA": str(_small_root)}
    for rank, count in ((1, 2), (0, 1)):  # which process dies, and how many go on
        folder = tmp_path / f"without {rank}" / "00000-run"
        words = _command(2, "trn", *long, f"run.folder={folder.parent}", helper="stopping_at_checkpoint")
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            # The first process stops after its first checkpoint, and the other waits for it in the next step.
            deadline, first = time.monotonic() + 200, None
            while process.poll() is None and (first is None or _state(first) != "T"):
                assert time.monotonic() < deadline, "no checkpoint"
                time.sleep(0.01)
                first = _child(process.pid, 0) if (folder / "checkpoint.pt").exists() else None
            assert first is not None and process.poll() is None, "the run ended before its first checkpoint"
            os.kill(_child(process.pid, rank), signal.SIGKILL)
            if rank != 0:
                os.kill(first, signal.SIGCONT)
            _, told = process.communicate(timeout=200)
        finally:
            if process.poll() is None:
                _end(process)
        assert process.returncode != 0
        assert told.count(f"error: {LOST}; go on with resume={folder}\n") == 1, told
        assert told.count("Traceback") == 1, "torchrun's own"
        assert not (folder / "model.safetensors").exists()

        resumed = python(*_command(count, "trn", f"resume={folder}"), GANDEFENSE_DATA=_small_root)
        assert resumed.returncode == 0, resumed.stderr
        first, second = _parts(tmp_path / "whole" / "00000-run"), _parts(folder)
        for name in first:
            if count == 2:
                assert torch.equal(first[name], second[name]), "by two again: bit for bit"
            else:
                assert (first[name] - second[name]).norm() < 0.05 * first[name].norm()


def _state(number: int) -> str:
    """A process's state: R running, S sleeping, T stopped …"""
    return (Path("/proc") / str(number) / "stat").read_text().rsplit(")", 1)[1].split()[0]


def _end(process: subprocess.Popen[str]) -> None:
    """Kill torchrun and what it started, of which one may be stopped."""
    for rank in (0, 1):
        with suppress(AssertionError, ProcessLookupError):
            os.kill(_child(process.pid, rank), signal.SIGKILL)
    process.kill()
    process.communicate()


def _child(agent: int, rank: int) -> int:
    """The process that torchrun started with a rank."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == agent and f"\0RANK={rank}\0".encode() in (entry / "environ").read_bytes():
                    return int(entry.name)
            except (OSError, IndexError):  # gone in the meantime
                continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_a_users_mistake_is_told_once(recipes: dict[str, Path], tmp_path: Path, python: Callable, _small_root: Path) -> None:
    words = _command(2, "trn", recipes["trn"], f"run.folder={tmp_path}", "train.batch_size=1")
    done = python(*words, GANDEFENSE_DATA=_small_root)
    assert done.returncode != 0
    assert done.stderr.count("error: train.batch_size: a batch of 1 is too small for 2 processes × train.accumulate=1") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trn", "gan"])
def test_accumulated_gradients_train_as_whole_batches_do(
    kind: str, recipes: dict[str, Path], tmp_path: Path, tool: Callable, small_cifar10: Path
) -> None:
    phase = ["distil.steps=0"] if kind == "gan" else []  # the student has batch norms
    words = {"still": STILL[kind], "whole": (), "pieces": ("train.accumulate=3",)}
    for name, changes in words.items():
        status, _, err = tool(f"train_{kind}", recipes[kind], f"run.folder={tmp_path / name}", *phase, *changes)
        assert status == 0, err
    still, whole, pieces = (_parts(tmp_path / name / "00000-run") for name in words)
    for name in set(whole) - {"student"}:
        assert (whole[name] - pieces[name]).norm() < APART * (whole[name] - still[name]).norm(), name
    assert _log(tmp_path / "whole" / "00000-run", LOSSES[kind]) == pytest.approx(
        _log(tmp_path / "pieces" / "00000-run", LOSSES[kind]), rel=0.01
    )


def _normalise(rank: int, port: int, folder: str) -> None:
    """What one of two processes does in the test below."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    # The store is the test's, as torchrun's is torchrun's: no port is given back and taken again.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with distributed.processes(CPU) as device:
        network, images = _normalised()
        network = synchronised(network, device)
        part = parts(len(images), 1, device)[0]
        (part.share * network(images[part.rows]).square().flatten(1).sum(1).mean()).backward()
        distributed.sum_gradients(network)
        whole = gathered([images[part.rows] + 1], part.rows, len(images))[0]
        assert torch.equal(whole, images + 1)
        assert distributed.from_all(rank) == [0, 1] and distributed.from_first(rank) == 0
        with pytest.raises(UserError, match="no such thing"):
            distributed.first_decides(_refuse)
        assert distributed.first_decides(lambda: f"said by {distributed.rank()}") == "said by 0"
        found = {name: parameter.grad for name, parameter in network.named_parameters()} | dict(network.named_buffers())
        torch.save(found, f"{folder}/{rank}.pt")


def _refuse() -> str:
    raise UserError("no such thing")


def _normalised() -> tuple[nn.Module, Tensor]:
    """A network with two batch norms, one with a moving average and one with a cumulative one, and 7 images."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5, momentum=None)]
    return nn.Sequential(*layers).double(), 5 + torch.randn(7, 3, 6, 6, dtype=torch.float64)


@pytest.mark.slow
def test_batch_norm_over_two_processes_is_that_of_the_batch(tmp_path: Path) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(_normalise, args=(store.port, str(tmp_path)), nprocs=2)
    network, images = _normalised()
    network(images).square().flatten(1).sum(1).mean().backward()
    expected = {name: parameter.grad for name, parameter in network.named_parameters()} | dict(network.named_buffers())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), f"{name}: the same bits in both processes"
        assert torch.allclose(first[name], value, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize(("batch", "count"), [(13, 2), (12, 3), (5, 5), (7, 1)])
def test_parts_cover_a_batch_once(batch: int, count: int) -> None:
    made = [Part(batch, number, count) for number in range(count)]
    assert sorted(torch.cat([part.rows for part in made]).tolist()) == list(range(batch))
    assert sum(part.share for part in made) == pytest.approx(1)
    assert max(len(part.rows) for part in made) - min(len(part.rows) for part in made) <= 1
    assert sum(len(part.between(2, 4)) for part in made) == len(range(2, min(4, batch)))
    for part in made:
        assert all(2 <= place < 4 for place in part.rows[part.between(2, 4)])


DRAWS = {
    "rand": lambda images: torch.rand(len(images), 1, 1, 1),
    "rand of a tuple": lambda images: torch.rand((len(images), 2)),
    "rand of a size": lambda images: torch.randn(size=(len(images), 2)),
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "in place": lambda images: torch.empty_like(images).uniform_(-1, 1),
    "two draws": lambda images: torch.rand_like(images) + torch.randn(len(images), 1, 1, 1),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_part_draws_its_rows_of_what_the_batch_would_draw(
    draw: Callable[[Tensor], Tensor], layout: torch.memory_format
) -> None:
    images = torch.zeros(11, 3, 4, 4).contiguous(memory_format=layout)
    torch.manual_seed(5)
    whole, after = draw(images), torch.rand(1)
    for number in range(3):
        part = Part(11, number, 3)
        torch.manual_seed(5)
        with part.drawing():
            made = draw(images[part.rows])
        assert torch.equal(made, whole[part.rows])
        assert torch.equal(torch.rand(1), after), "and leaves the generator where the batch would"


def test_pieces_draw_the_same_batch_once() -> None:
    torch.manual_seed(5)
    whole, whole_second, after = torch.rand(10, 2), torch.randn(4), torch.rand(1)
    torch.manual_seed(5)
    for piece in parts(10, 3, CPU):
        with piece.drawing():
            assert torch.equal(torch.rand(len(piece.rows), 2), whole[piece.rows])
        here = piece.rows[piece.rows < 4]
        with piece.drawing(here, 4):
            assert torch.equal(torch.randn(len(here)), whole_second[here])
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("holder", [0, 1])
def test_a_piece_may_hold_all_the_rows_that_are_drawn_for(holder: int) -> None:
    torch.manual_seed(5)
    whole, after = torch.rand(3, 2), torch.rand(1)
    torch.manual_seed(5)
    for number, piece in enumerate(parts(8, 2, CPU)):
        rows = torch.arange(3) if number == holder else torch.arange(0)
        with piece.drawing(rows, 3):
            assert torch.equal(torch.rand(len(rows), 2), whole[rows])
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_a_students_step_in_pieces_is_the_step_of_the_batch(accumulate: int) -> None:
    teacher, student = small_cnn(torch.nn.Tanh).double(), small_cnn(torch.nn.Tanh, seed=1).double()
    clean = torch.rand(16, 3, 6, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(3)
    whole, after = student_step(StudentConfig(), student, teacher, clean), torch.rand(1)
    torch.manual_seed(3)
    pieces = parts(16, accumulate, CPU)
    found = sum(part.share * student_step(StudentConfig(), student, teacher, clean[part.rows], part) for part in pieces)
    assert found.item() == pytest.approx(whole.item(), rel=1e-5)
    assert torch.equal(torch.rand(1), after)


def test_a_students_step_in_parts_is_the_step_of_the_batch() -> None:
    teacher, student = small_cnn(torch.nn.Tanh).double(), small_cnn(torch.nn.Tanh, seed=1).double()
    clean = torch.rand(11, 3, 6, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(3)
    whole = student_step(StudentConfig(), student, teacher, clean)
    found = 0.0
    for number in range(3):
        part = Part(11, number, 3)
        torch.manual_seed(3)
        found = found + part.share * student_step(StudentConfig(), student, teacher, clean[part.rows], part)
    assert found.item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize(("batch", "accumulate", "message"), [(3, 4, "a batch of 3 is too small"), (3, 0, "at least 1, got 0")])
def test_batches_too_small_for_their_pieces_are_refused(batch: int, accumulate: int, message: str) -> None:
    check_parts(3, {"train.batch_size": 3})
    with pytest.raises(UserError, match=message):
        check_parts(accumulate, {"train.batch_size": batch})
