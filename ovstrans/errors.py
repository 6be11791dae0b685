"""Error types. Each carries the exit status its command ends with.

A message says what is wrong, where, and what to do next, in one line.
"""

from __future__ import annotations

from collections.abc import Iterable


class OvstransError(Exception):
    """Base of every error that ovstrans raises on purpose."""

    exit_status = 1


class InputError(OvstransError):
    """Bad input or usage: a file, a value, a name, an option (exit status 2)."""

    exit_status = 2


class MismatchError(InputError):
    """Two things that must fit do not: a mask and a model, a checkpoint and a framework."""


class CheckFailed(OvstransError):
    """A regression check found a difference (exit status 3)."""

    exit_status = 3


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'NAME'? `, to go on after, with the nearest of what is known; "" where nothing is near."""
    import difflib  # only where something went wrong

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""
