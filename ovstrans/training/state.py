"""Resuming a run exactly: its state on disk, random numbers by step, and stopping between steps.

A state is a nested dict of tensors, numbers, strings, lists and dicts. It is written atomically by `torch.save` and
read with `weights_only=True`, so that loading one cannot run code.

The state of random number generators is not saved: a loop calls `seed_step` before each step, so that they depend on
(seed, step, rank) alone.
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
from ovstrans.clip.torch_file import check_torch_file
from ovstrans.errors import InputError

FORMAT = "ovstrans.state/1"
"""Format name that a state file holds."""


def save_state(path: Path | str, state: dict[str, Any]) -> None:
    """Write a state. If the process is killed on the way, the previous state remains.

    Raises:
        InputError: The file cannot be written.
    """
    with files.atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_state(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a state.

    Args:
        path: The file.
        device: Device to put the tensors on.

    Raises:
        InputError: The file is missing, damaged, or not a state.
    """
    path = files.existing_file(path)
    try:
        check_torch_file(path)
        state: Any = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError(f"{path}: not an intact state file; start the run anew") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: its format is {found!r}, {FORMAT!r} is needed; start the run anew")
    return dict(state)


def derive_seed(*parts: int | str) -> int:
    """Return a seed of 63 bits that depends on the parts alone, for instance (seed, "order", 17)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's generators for one step, so that its random numbers do not depend on the steps before."""
    torch.manual_seed(derive_seed(seed, "step", step, rank))


class Stop:
    """Remembers whether SIGINT or SIGTERM came; see `stopping`.

    Attributes:
        signum: Number of the signal that came last; None before the first.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """True once a signal has come."""
        return self.signum is not None

    def now(self, signum: int | None = None) -> None:
        """Restore the previous signal handlers and deliver the signal to them.

        Python's own raise KeyboardInterrupt for SIGINT and end the process for SIGTERM.

        Args:
            signum: Signal to deliver if it came to another process of the group and not to this one; default SIGTERM.
        """
        self._restore()
        signal.raise_signal(self.signum or signum or signal.SIGTERM)

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows signal handlers in the main thread only
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._note)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        second = self.requested
        self.signum = signum
        if second:  # ends the run at once; files are written atomically
            self.now()


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Let SIGINT and SIGTERM only set a flag while the block runs, so that a loop can save its state first.

        with stopping() as stop:
            for step in steps:
                work(step)
                if stop.requested:
                    save_state(path, ...)
                    stop.now()

    A signal that the loop did not react to is delivered when the block ends. A second signal is delivered at once.

    Yields:
        The flag.
    """
    stop = Stop()
    stop._install()
    try:
        yield stop
    finally:
        undelivered = bool(stop._previous) and stop.requested
        stop._restore()
    if undelivered and stop.signum is not None:
        signal.raise_signal(stop.signum)
