"""The ranks of torch.distributed, as evaluation sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ovstrans.errors import InputError, OvstransError


def rank_and_world() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) without torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


@contextmanager
def fail_together() -> Iterator[None]:
    """All ranks leave it together; where one failed, none goes on to wait for it.

    A failing rank raises its own error, the others an OvstransError that names the first of them (an InputError
    where it had one).
    """
    rank, world = rank_and_world()
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if world == 1:
            raise
        failure = error
    if world == 1:
        return
    said: list[tuple[str, bool] | None] = [None] * world
    mine = None if failure is None else (str(failure) or type(failure).__name__, isinstance(failure, InputError))
    torch.distributed.all_gather_object(said, mine)
    if failure is not None:
        raise failure
    for other, heard in enumerate(said):
        if heard is not None:
            kind = InputError if heard[1] else OvstransError
            raise kind(f"rank {rank} stops, since rank {other} failed: {heard[0]}")
