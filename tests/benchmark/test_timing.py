"""Interleaved timing, operations, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gandefense.benchmark import timing
from gandefense.benchmark.timing import Effort, Times, flops, interleaved, peak_memory

CPU = torch.device("cpu")


def test_works_take_turns_and_every_other_round_goes_backwards() -> None:
    order: list[str] = []
    works = {name: (lambda name=name: order.append(name)) for name in "ABC"}
    times = interleaved(works, CPU, Effort(3, 60.0))
    assert "".join(order) == "ABC" + "ABC" + "CBA" + "ABC"  # the first round warms up
    assert all(len(times[name].seconds) == 3 for name in works)


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def works(self, seconds: float) -> Callable[[], None]:
        """A work of so many seconds."""

        def work() -> None:
            self.now += seconds

        return work


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the measurements read."""
    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    return made


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 1), (1.5, 2), (2.5, 3), (100.0, 50)])
def test_no_round_begins_after_the_seconds_but_one_is_always_measured(clock: Clock, seconds: float, rounds: int) -> None:
    assert interleaved({"a": clock.works(1.0)}, CPU, Effort(50, seconds))["a"].seconds == (1.0,) * rounds


def test_seconds_are_seconds(clock: Clock) -> None:
    times = interleaved({"short": clock.works(0.25), "long": clock.works(1.0)}, CPU, Effort(3, 60.0))
    assert times["short"].seconds == (0.25,) * 3 and times["short"].median == 0.25
    assert times["long"].ratio(times["short"]) == 4.0


def test_the_clock_is_a_real_one() -> None:
    assert timing.timed(lambda: time.sleep(0.02), CPU) >= 0.02


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """A round in which the machine was disturbed counts once, whatever its seconds."""
    ours, other = Times((1.0, 10.0, 1.0)), Times((2.0, 20.0, 4.0))
    assert ours.ratio(other) == 0.5
    assert ours.combined(lambda a, b: a + 2 * b, other).seconds == (5.0, 50.0, 9.0)


def test_operations_of_known_products_forward_and_backward() -> None:
    a, b = torch.rand(3, 5, requires_grad=True), torch.rand(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert flops(lambda: (a @ b).sum().backward()) == 2 * (2 * 3 * 5 * 7)  # only a has a gradient
    convolution = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    forward = 2 * 2 * 64 * 4 * 3 * 9
    assert flops(lambda: convolution(images)) == forward
    assert flops(lambda: torch.autograd.grad(convolution(images).sum(), images)) == 2 * forward


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_peak_memory_counts_what_was_used_in_between() -> None:
    size = 64 * 2**20
    peak = peak_memory(lambda: torch.ones(size // 4), CPU)
    if peak is None:
        pytest.skip("this system does not let a process start its peak anew")
    assert 0.9 * size < peak < 1.5 * size
    assert peak_memory(lambda: None, CPU) < 0.2 * size
