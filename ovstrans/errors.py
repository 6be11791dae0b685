"""Error types. Each carries the exit status that a command ends with.

A message is one line that says what is wrong, where, and what to do next. It names parameters, in backticks:
`mask`, or `sparsity=2` with a value. The command line shows these as its flags (see `cli.common`).
"""

from __future__ import annotations

from collections.abc import Iterable


class OvstransError(Exception):
    """Base class of every error that ovstrans raises on purpose."""

    exit_status = 1


class InputError(OvstransError, ValueError):
    """Bad input or usage: a file, a value, a name, an option (exit status 2)."""

    exit_status = 2


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that does not exist."""


class MismatchError(InputError):
    """Two things that must fit do not: a mask and a model, a checkpoint and a framework."""


class CheckFailed(OvstransError):
    """A regression check found a difference (exit status 3)."""

    exit_status = 3


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun: `1 image`, `2 images`, `1,000 classes`; the plural is regular unless given."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'NAME'? ` with the known word nearest to `word`, or "" if none is near."""
    import difflib  # imported only once something went wrong

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""
