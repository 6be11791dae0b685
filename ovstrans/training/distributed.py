"""Running as one process or as many under `torchrun`: DDP on gloo (CPU) or NCCL (CUDA).

The batch size of a recipe is that of all processes together; each takes its equal share of the very
same images in the same order, so the number of processes changes the speed and nothing else but
this: BatchNorm sees the share of its process (rank 0's running statistics are the ones kept), and a
loss that averages over pixels averages within the share first. Only rank 0 writes and reports.
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
    """This process among its peers, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def share(self, batch: int) -> int:
        """How many images of a global batch this process takes; InputError unless it divides."""
        if batch % self.size:
            raise InputError(
                f"batch = {batch} cannot be shared by {self.size} processes; use a multiple of {self.size}"
            )
        return batch // self.size

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process (every process must ask)."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def broadcast(self, value: _Value) -> _Value:
        """Rank 0's value, in every process (plain Python data)."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over the processes (same keys in each)."""
        if self.size == 1 or not values:
            return dict(values)
        stacked = torch.tensor(list(values.values()), dtype=torch.float32, device=self.device)
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).tolist(), strict=True))


def launched() -> bool:
    """Whether torchrun (or the like) started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ


def is_worker_rank() -> bool:
    """Whether this process is one of a group and not its rank 0 (known before the group is joined)."""
    return launched() and os.environ["RANK"] != "0"


@contextlib.contextmanager
def process_group(device: torch.device | str) -> Iterator[World]:
    """Join the process group for the block, if there is one; else a world of one.

    On CUDA each process takes the GPU of its local rank.
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
    """The module, wrapped in DDP where there are peers.

    Call it after freezing and before the first step, and again whenever `requires_grad` changes.
    """
    if world.size == 1:
        return module
    # A framework may own parameters that its losses do not touch (CLIP's attention pool).
    return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)
