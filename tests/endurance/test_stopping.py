"""SIGTERM and Ctrl-C: the step in hand is finished and saved, and what goes on from there is the same to the last bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gandefense.evaluation import work
from gandefense.training.state import Means
from gandefense.training.stopping import StopRequest
from gandefense.weights_io import load_weights

STEP = 7  # in which the signal comes; no multiple of any checkpoint's or log's interval


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """As in a terminal's process, whatever started this one; tools leave their handlers behind."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a signal come while the loop is in the middle of a step."""

    def at(step: int, number: int, *, times: int = 1) -> None:
        real, calls = Means.add, []

        def add(self: Means, **figures: torch.Tensor) -> None:
            calls.append(1)
            if len(calls) == step:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            real(self, **figures)

        monkeypatch.setattr(Means, "add", add)

    return at


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("classifier", signal.SIGTERM),
        ("classifier", signal.SIGINT),
        ("trn", signal.SIGTERM),
        pytest.param("gan", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_step_in_hand(
    kind: str, number: int, tool: Callable, recipe: Callable[[str], Path], signal_at: Callable[..., None], tmp_path: Path
) -> None:
    words = recipe(f"train_{kind}"), "run.checkpoint_every=1000", "train.epochs=2" if kind == "classifier" else "train.steps=12"
    status, _, err = tool(f"train_{kind}", *words)
    assert status == 0, err
    whole = tmp_path / "runs" / "00000-run"

    signal_at(STEP, number)
    status, _, err = tool(f"train_{kind}", *words)
    folder = tmp_path / "runs" / "00001-run"
    assert status == 130
    assert err.splitlines()[-1] == f"interrupted at step {STEP}, which is saved; go on with resume={folder}"
    assert "Traceback" not in err
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == STEP
    assert not (folder / "model.safetensors").exists()

    status, _, err = tool(f"train_{kind}", f"resume={folder}")
    assert status == 0, err
    for path in whole.glob("*.safetensors"):
        first, second = load_weights(path)[0], load_weights(folder / path.name)[0]
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()), path.name


def test_a_second_signal_does_not_wait(
    tool: Callable, recipe: Callable[[str], Path], signal_at: Callable[..., None], tmp_path: Path
) -> None:
    signal_at(STEP, signal.SIGINT, times=2)
    status, _, err = tool("train_classifier", recipe("train_classifier"), "run.checkpoint_every=5")
    folder = tmp_path / "runs" / "00000-run"
    assert status == 130
    assert err.splitlines()[-1] == f"interrupted at step 5, which is saved; go on with resume={folder}"
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 5


@pytest.mark.parametrize(("step", "reached"), [(1, "before its first checkpoint"), (6, "at step 5, which is saved")])
def test_with_nothing_new_to_save_a_signal_ends_at_once(
    step: int, reached: str, tool: Callable, recipe: Callable[[str], Path], signal_at: Callable[..., None], tmp_path: Path
) -> None:
    signal_at(step, signal.SIGTERM)
    status, _, err = tool("train_classifier", recipe("train_classifier"), "run.checkpoint_every=5")
    assert status == 130
    assert err.splitlines()[-1] == f"interrupted {reached}; go on with resume={tmp_path / 'runs' / '00000-run'}"


def test_a_signal_while_a_cache_is_built_says_how_to_go_on(
    tool: Callable, recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gandefense.attacks import cache

    monkeypatch.setattr(cache, "attack", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    status, _, err = tool("train_trn", recipe("train_trn"))
    assert status == 130
    line = f"interrupted before its first checkpoint; go on with resume={tmp_path / 'runs' / '00000-run'}"
    assert err.splitlines()[-1] == line


def test_an_interrupted_evaluation_says_how_to_go_on(
    tool: Callable, recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "attack", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    status, _, err = tool("evaluate", recipe("evaluate"))
    assert status == 130
    assert err.splitlines()[-1] == f"interrupted; what is done is kept: go on with output={tmp_path / 'out'}"
    assert not (tmp_path / "out" / "results.json").exists()


def test_handlers_are_given_back_and_ignored_signals_stay_ignored() -> None:
    mine = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    before = signal.getsignal(signal.SIGINT)
    request = StopRequest(nothing_to_save=lambda: False)
    request.listen()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGINT)
    assert request.asked and request.agreed(ask_others=True)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    request.release()
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGTERM, mine)
