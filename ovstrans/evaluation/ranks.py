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


class OtherRankFailed(InputError):
    """This rank stops since another one met bad input.  said: what that one says of it."""

    def __init__(self, rank: int, other: int, said: str) -> None:
        super().__init__(f"rank {rank} stops, since rank {other} failed: {said}")
        self.said = said


def first_said(error: InputError) -> str:
    """The message of the rank that met the bad input."""
    return error.said if isinstance(error, OtherRankFailed) else str(error)


@contextmanager
def fail_together() -> Iterator[None]:
    """All ranks leave it together; where one failed, none goes on to wait for it.

    A failing rank raises its own error, the others an OvstransError that names the first of them. They are
    InputErrors on all ranks or on none: whoever catches one and goes on is not alone.
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
    failed = [(other, *heard) for other, heard in enumerate(said) if heard is not None]
    worse = [(other, message) for other, message, bad_input in failed if not bad_input]
    if failure is not None and (not worse or not isinstance(failure, InputError)):
        raise failure
    for other, message in worse:
        raise OvstransError(f"rank {rank} stops, since rank {other} failed: {message}") from failure
    for other, message, _ in failed:
        raise OtherRankFailed(rank, other, message)
