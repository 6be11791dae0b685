"""Training in one process, or in several under `torchrun`: DDP on gloo (CPU) or NCCL (CUDA).

The batch size of a recipe is that of all processes together. Each takes an equal share of the same images in the same
order, so the number of processes changes the speed, and two things beside: BatchNorm sees the images of its process
alone (the running statistics of rank 0 are kept), and a loss that averages over pixels averages within the share first.
Only rank 0 writes files and reports.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ovstrans.errors import InputError

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class World:
    """This process in its group, and the device it computes on.

    Attributes:
        rank: Number of the process, from 0.
        size: Number of processes.
        device: Device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True for rank 0, the process that writes files and reports."""
        return self.rank == 0

    def share(self, batch: int) -> int:
        """Return how many images of a global batch each process takes.

        Raises:
            InputError: The batch is no multiple of the number of processes.
        """
        if batch % self.size:
            raise InputError(
                f"`training.batch={batch}`: cannot be shared by {self.size} processes; use a multiple of {self.size}"
            )
        return batch // self.size

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process. Every process must call this."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def broadcast(self, value: _Value) -> _Value:
        """Return the value that rank 0 has, in every process. It must be plain Python data."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of each value over the processes. Every process must give the same keys."""
        if self.size == 1 or not values:
            return dict(values)
        stacked = torch.tensor(list(values.values()), dtype=torch.float32, device=self.device)
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).tolist(), strict=True))


def launched() -> bool:
    """Return whether torchrun, or a launcher like it, started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ


def is_worker_rank() -> bool:
    """Return whether this process is in a group and not its rank 0. The group need not be joined yet."""
    return launched() and os.environ["RANK"] != "0"


@contextlib.contextmanager
def process_group(device: torch.device | str) -> Iterator[World]:
    """Join the process group while the block runs, if torchrun started one.

    Args:
        device: Device to compute on. On CUDA each process of a group takes the GPU of its local rank.

    Yields:
        This process in its group; a group of one where torchrun started none.
    """
    device = torch.device(device)
    if not launched():
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    already = dist.is_initialized()
    if not already:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if not already:
            dist.destroy_process_group()


def parallel(module: nn.Module, world: World) -> nn.Module:
    """Wrap a module in DDP if there are several processes.

    Call it after freezing and before the first step, and again whenever `requires_grad` of a parameter changes.
    """
    if world.size == 1:
        return module
    # A framework may own parameters that its losses do not touch (CLIP's attention pool).
    return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)
