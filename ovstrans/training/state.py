"""What an exact resume needs: the state of a run on disk, and stopping at a step boundary.

A state is a nested dict of tensors, numbers, strings, lists and dicts, saved by `torch.save`
(atomically) and read back with `weights_only=True`, so that loading one cannot run code.

Random numbers need no saving in a loop that calls `seed_step` before each step: they follow from
(seed, step, rank).
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ovstrans import files
from ovstrans.errors import InputError

FORMAT = "ovstrans.state/1"


def save_state(path: Path | str, state: dict[str, Any]) -> None:
    """Write a state; a kill on the way leaves the previous one whole. InputError if unwritable."""
    with files.atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_state(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a state; InputError for a missing, broken or foreign file."""
    path = files.existing_file(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError(f"{path}: not an intact state file; start the run anew") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: its format is {found!r}, {FORMAT!r} is needed; start the run anew")
    return state


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits that depends on every part and on nothing else: (seed, "augment", 17)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Set torch's generators for one step, so that its random numbers do not depend on the past."""
    torch.manual_seed(derive_seed(seed, "step", step, rank))


class Stop:
    """Whether SIGINT or SIGTERM came; see `stopping`."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """True once a signal came."""
        return self.signum is not None

    def now(self, signum: int | None = None) -> None:
        """Give the handlers back and deliver the signal: KeyboardInterrupt, termination, or what the caller set.

        `signum` stands in where the signal came to another process of the group.
        """
        self._restore()
        signal.raise_signal(self.signum or signum or signal.SIGTERM)

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers in the main thread only
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._note)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        impatient = self.requested
        self.signum = signum
        if impatient:  # the second signal ends it at once; files are written atomically
            self.now()


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """For the block, SIGINT and SIGTERM only set a flag, so that a loop can save and then call `stop.now()`.

    A signal that the loop never looked at is delivered when the block ends.

        with stopping() as stop:
            for step in steps:
                work(step)
                if stop.requested:
                    save_state(path, ...)
                    stop.now()
    """
    stop = Stop()
    stop._install()
    try:
        yield stop
    finally:
        unseen = bool(stop._previous) and stop.requested
        stop._restore()
    if unseen and stop.signum is not None:
        signal.raise_signal(stop.signum)
