"""A training batch in parts: one for each process, each in as many pieces as gradients are accumulated over.

The batch is the same whatever the number of parts: the same images, the same random draws, losses weighed by each part's
share. Summed over the parts, gradients are those of the whole batch, so that N processes compute what one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gandefense import distributed
from gandefense.errors import UserError


class _DrawnWhole(TorchFunctionMode):
    """Let torch's random functions draw for all rows of a batch and keep those of one part.

    A part has rows (n,) of `whole`. Inside, whatever is drawn with n rows is drawn with `whole` rows, in the memory order
    that it would have without parts, and cut.
    """

    LIKE = (torch.rand_like, torch.randn_like)
    SIZED = (torch.rand, torch.randn)
    IN_PLACE = (Tensor.uniform_, Tensor.normal_)

    def __init__(self, rows: Tensor, whole: int) -> None:
        super().__init__()
        self.rows, self.whole = rows, whole

    def _whole_of(self, tensor: Tensor) -> Tensor:
        """An empty tensor with `whole` rows, laid out as `tensor` is."""
        inner = sorted(range(1, tensor.ndim), key=lambda dimension: -tensor.stride(dimension))
        size = (self.whole, *tensor.shape[1:])
        return torch.empty_permuted(size, (0, *inner), dtype=tensor.dtype, device=tensor.device)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in self.LIKE and args[0].ndim and len(args[0]) == len(self.rows):
            return function(self._whole_of(args[0]), **kwargs)[self.rows.to(args[0].device)]
        if function in self.IN_PLACE and args[0].ndim and len(args[0]) == len(self.rows):
            drawn = function(self._whole_of(args[0]), *args[1:], **kwargs)
            return args[0].copy_(drawn[self.rows.to(drawn.device)])
        if function in self.SIZED:
            size = tuple(kwargs.pop("size", args[0] if args and not isinstance(args[0], int) else args))
            if size and size[0] == len(self.rows):
                drawn = function((self.whole, *size[1:]), **kwargs)
                return drawn[self.rows.to(drawn.device)]
            return function(size, **kwargs)
        return function(*args, **kwargs)


class Part:
    """The rows of a batch that one process works on at a time; by itself, all of them.

    Attributes:
        batch: B, rows in the whole batch.
        rows: (n,) int64, this part's places in the batch: every so many, so that parts are alike where a batch's order
            means something.
        share: n / B, the weight of this part's mean losses.
    """

    def __init__(self, batch: int, number: int = 0, parts: int = 1) -> None:
        self.batch = batch
        self.rows = torch.arange(number, batch, parts)
        self.share = len(self.rows) / batch
        self._repeats: _Repeats | None = None

    def between(self, first: int, last: int) -> Tensor:
        """Which of this part's rows lie at places first … last − 1 of the batch: (m,), counted within the part."""
        return ((self.rows >= first) & (self.rows < last)).nonzero()[:, 0]

    @contextmanager
    def drawing(self, rows: Tensor | None = None, whole: int | None = None) -> Iterator[None]:
        """Inside, random tensors with a row for each of `rows` are cut from those that one process would draw for all.

        Args:
            rows: (m,) int64, places among the rows that are drawn for; None: this part's in the batch.
            whole: how many rows are drawn for; None: the batch.
        """
        rows, whole = self.rows if rows is None else rows, self.batch if whole is None else whole
        # Even a piece that has all rows must leave the generator where the other pieces expect it.
        repeated = self._repeats.as_the_first_piece(self) if self._repeats else nullcontext()
        with repeated, nullcontext() if len(rows) == whole else _DrawnWhole(rows, whole):
            yield


class _Repeats:
    """Lets every piece of a process draw what its first piece has drawn, so that each can keep its own rows of it."""

    def __init__(self, first: Part, device: torch.device) -> None:
        self.first, self.device = first, device
        self.begun: list[list[Tensor]] = []  # random states at the beginning of each of the first piece's draws
        self.turns: dict[Part, int] = {}

    @contextmanager
    def as_the_first_piece(self, part: Part) -> Iterator[None]:
        now = [torch.get_rng_state()]
        if self.device.type == "cuda":
            now.append(torch.cuda.get_rng_state(self.device))
        if part is self.first:
            self.begun.append(now)
            yield
            return
        turn = self.turns.get(part, 0)
        self.turns[part] = turn + 1
        self._put(self.begun[turn])
        yield
        self._put(now)

    def _put(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)


def parts(batch: int, accumulate: int, device: torch.device) -> list[Part]:
    """This process's parts of one training step's batch, to be worked on in their order.

    Args:
        batch: B, rows in the whole batch, over all processes.
        accumulate: pieces that each process cuts its rows into.
        device: where random numbers are drawn.
    """
    count = distributed.world() * accumulate
    made = [Part(batch, number, count) for number in range(distributed.rank(), count, distributed.world())]
    if accumulate > 1:
        repeats = _Repeats(made[0], device)
        for part in made:
            part._repeats = repeats
    return made


def check_parts(accumulate: int, batches: dict[str, int]) -> None:
    """Raise UserError unless every part of a batch has at least one row.

    Args:
        accumulate: pieces that each process cuts its rows into.
        batches: rows in a batch, by the setting's name.
    """
    if accumulate < 1:
        raise UserError(f"train.accumulate must be at least 1, got {accumulate}")
    for name, batch in batches.items():
        if batch < distributed.world() * accumulate:
            pieces = f"{distributed.world()} processes × train.accumulate={accumulate}"
            raise UserError(f"{name}: a batch of {batch} is too small for {pieces}; make it larger, or take fewer of them")


def gathered(tensors: list[Tensor], rows: Tensor, whole: int) -> list[Tensor]:
    """Tensors (W, …) of which each process knows some rows, whole on all processes.

    Args:
        tensors: (m, …) each, what this process knows, on the same device.
        rows: (m,) int64, the places of these rows; no two processes have the same.
        whole: W.
    """
    filled = [tensor.new_zeros((whole, *tensor.shape[1:])) for tensor in tensors]
    for empty, tensor in zip(filled, tensors, strict=True):
        empty[rows.to(tensor.device)] = tensor
    return distributed.summed(filled)
