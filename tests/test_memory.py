from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gandefense.memory import in_halves

OUT = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes"


def limited(most: int, seen: list[int], message: str = OUT):
    """Work that memory does for `most` images at a time."""

    def work(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(images))
        if len(images) > most:
            raise RuntimeError(message)
        return images * 2, labels + 1

    return work


def test_the_peak_holds_what_was_taken(python: Callable) -> None:
    lines = [
        "import torch; from gandefense.memory import peak_so_far",
        "before = peak_so_far(torch.device('cpu'))",
        "len(torch.ones(2**27))  # half a GiB of floats, given back at once",
        "print(peak_so_far(torch.device('cpu')) - before)",
    ]
    of_the_parent = torch.ones(2**28)  # a GiB, which is not the started program's
    done = python("-c", "\n".join(lines))
    assert of_the_parent.sum() > 0
    assert done.returncode == 0, done.stderr
    assert 0.7 * 2**29 < int(done.stdout) < 1.2 * 2**29, "starting Python took a little more than what is left of it"


@pytest.mark.parametrize(("most", "calls"), [(7, [7]), (4, [7, 3, 4]), (1, None)])
def test_halves_until_it_fits(most: int, calls: list[int] | None) -> None:
    seen: list[int] = []
    images, labels = torch.arange(7.0)[:, None], torch.arange(7)
    if most < 7:
        with pytest.warns(UserWarning, match="memory does not do for 7 images"):
            doubled, more = in_halves(limited(most, seen), images, labels)
    else:
        doubled, more = in_halves(limited(most, seen), images, labels)
    assert torch.equal(doubled, images * 2) and torch.equal(more, labels + 1)
    assert calls is None or seen == calls


def test_gives_up_at_one_image_and_lets_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), pytest.warns(UserWarning):
        in_halves(limited(0, []), torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(RuntimeError, match="shapes differ"):
        in_halves(limited(1, [], "shapes differ"), torch.zeros(2, 1), torch.zeros(2))
