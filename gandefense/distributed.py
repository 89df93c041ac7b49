"""Several processes under torchrun: who this one is, and waiting for the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from gandefense.errors import UserError


def rank() -> int:
    """This process's number, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def from_first(value: str) -> str:
    """What the first process says, told to all."""
    if not dist.is_initialized():
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the process group when torchrun started this process; otherwise do nothing.

    Processes only wait for each other and exchange a line of text, for which gloo does on every device; the waiting may
    take as long as the slowest share of the work. Of several CUDA devices each process takes the one of its local rank.

    Raises:
        UserError: more processes than CUDA devices.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(f"process {local} finds no CUDA device: start {torch.cuda.device_count()} a machine at most")
        torch.cuda.set_device(local)
    dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        dist.destroy_process_group()
