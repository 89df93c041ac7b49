"""Several processes under torchrun: who this one is, waiting for the others, and sums over all of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gandefense.errors import UserError

Value = TypeVar("Value")

PATIENCE = timedelta(days=7)  # for what the first process does alone: attacked sets, validation
STEP = timedelta(minutes=30)  # for what all processes do together in a training step

_patient: Any = None  # the process group of the long waits


LOST = "another process has ended or does not answer, and this one cannot go on alone"


class LostProcess(UserError):
    """Another process of this run has ended or does not answer."""


def rank() -> int:
    """This process's number, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier(group=_patient)


def from_first(value: Value) -> Value:
    """What the first process says, told to all: text, numbers, tensors on the CPU, plain containers of them."""
    if not dist.is_initialized():
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0, group=_patient, device=torch.device("cpu"))
    return said[0]


def first_decides(work: Callable[[], str]) -> str:
    """Let the first process do something, and tell its answer to all; a UserError of its is raised by all."""
    if not dist.is_initialized():
        return work()
    answer, mistake = "", None
    if is_first():
        try:
            answer = work()
        except UserError as error:
            mistake = error
    answer, told = from_first((answer, None if mistake is None else str(mistake)))
    if told is not None:
        raise mistake or UserError(told)
    return answer


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process do something, for all to find on disk; the others do it after it."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def from_all(value: Value) -> list[Value]:
    """What every process says, in the order of their numbers."""
    if not dist.is_initialized():
        return [value]
    said: list[Any] = [None] * world()
    dist.all_gather_object(said, value, group=_patient)
    return said


def summed(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Each tensor's sum over the processes; a process alone gets its own tensors back.

    All processes must give tensors of the same shapes, on the same kind of device, and get the same bits. A None, for want of a
    gradient, stays one.
    """
    tensors = list(tensors)
    given = [tensor for tensor in tensors if tensor is not None]
    if world() == 1 or not given:
        return tensors
    widest = torch.float64 if any(tensor.dtype == torch.float64 for tensor in given) else torch.float32
    flat = torch.cat([tensor.detach().reshape(-1).to(widest) for tensor in given])
    dist.all_reduce(flat)
    parts = iter(flat.split([tensor.numel() for tensor in given]))
    return [tensor if tensor is None else next(parts).view(tensor.shape).to(tensor.dtype) for tensor in tensors]


def sum_gradients(module: nn.Module) -> None:
    """Replace each parameter's gradient by its sum over the processes, in one message."""
    if world() == 1:
        return
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    for parameter, total in zip(parameters, summed([parameter.grad for parameter in parameters]), strict=True):
        parameter.grad.copy_(total)


class _Sum(torch.autograd.Function):
    """The sum over the processes, as a function with a derivative: every process's loss depends on every other's input."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def differentiable_sum(tensor: Tensor) -> Tensor:
    """A tensor's sum over the processes, through which gradients flow back to all of them."""
    return tensor if world() == 1 else _Sum.apply(tensor)


def lost(error: BaseException | None) -> bool:
    """Whether an error says that another process is gone."""
    is_theirs = isinstance(error, RuntimeError) and ("gloo" in str(error).lower() or "NCCL" in str(error))
    return world() > 1 and (is_theirs or isinstance(error, dist.DistError))


def leave_in_peace() -> None:
    """Ignore SIGTERM: torchrun sends it to the processes that are left, which are about to tell why they end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the process group when torchrun started this process, and leave it at the end; otherwise join nothing.

    Of several CUDA devices each process takes the one of its local rank; where a device is named with its number
    (`cuda:0`), all processes of the machine share it.

    Args:
        device: as the config names it.

    Yields:
        The device of this process, made the current one.

    Raises:
        UserError: more processes than CUDA devices; LostProcess when another process ends or does not answer.
    """
    global _patient
    local, shared = int(os.environ.get("LOCAL_RANK", "0")), device.type != "cuda" or device.index is not None
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if device.type == "cuda":
        if not shared and several:
            if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count():
                raise UserError(
                    f"torchrun started more processes than there are CUDA devices; start {torch.cuda.device_count()} a machine"
                )
            device = torch.device("cuda", local)
        if device.index is not None:
            torch.cuda.set_device(device)
    if dist.is_initialized() or not several:
        yield device
        return
    # NCCL knows no two processes on one GPU; gloo serves everywhere, and all that is not a gradient.
    dist.init_process_group("gloo" if shared else "cpu:gloo,cuda:nccl", timeout=STEP)
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield device
    except RuntimeError as error:
        if not lost(error):
            raise
        leave_in_peace()
        raise LostProcess(f"{LOST}; start again, with the same words") from None
    finally:
        _patient = None
        dist.destroy_process_group()
