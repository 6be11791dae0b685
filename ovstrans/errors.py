"""Error types. Each carries the exit status that a command ends with.

A message is one line that says what is wrong, where, and what to do next. It names parameters, in backticks:
`mask`, or `sparsity=2` with a value. The command line shows these as its flags (see `cli.common`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

LONGEST_MESSAGE = 2400
"""Most characters of a message; of a longer one, beginning and end are shown."""

LONGEST_VALUE = 240
"""Most characters of a value between quotes in a message, or of a word in it that is no path."""

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, characters that reverse the text after them, and undecodable bytes."""

_LONGEST_NAME, _MOST_NAMES = 100, 2000
_QUOTED = re.compile(r"""(?<![\w])(['"])((?:(?!\1).){240,})\1""", re.DOTALL)
_WORD = re.compile(r"[^\s/\\]{480,}")


class OvstransError(Exception):
    """Base class of every error that ovstrans raises on purpose."""

    exit_status = 1

    def __str__(self) -> str:
        return shorten_message(printable(super().__str__()))


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

    if len(word) > _LONGEST_NAME:  # of a file that is not what it should be; the search takes the square of it
        return ""
    close = difflib.get_close_matches(word, list(islice(known, _MOST_NAMES)), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def printable(text: str, keep: str = "") -> str:
    """Replace what a terminal would obey (`UNPRINTABLE`) by its escapes in Python.

    Names of files and classes, and metadata of files, may hold anything.

    Args:
        text: The text.
        keep: Characters to leave as they are.
    """
    return UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text)


def shorten(text: str, length: int = LONGEST_VALUE) -> str:
    """Return a text of at most about `length` characters: of a longer one, the beginning, a count, and the end."""
    if len(text) <= length:
        return text
    head, tail = 2 * length // 3, length // 4
    return f"{text[:head]} ... ({len(text) - head - tail:,} more characters) ... {text[-tail:]}"


def shorten_message(text: str) -> str:
    """Shorten the long values in a message, which may come from a file, and then the message itself."""
    if len(text) <= LONGEST_VALUE:
        return text
    text = shorten(text, 2 * LONGEST_MESSAGE)  # the search for long values takes the square of it at worst
    text = _QUOTED.sub(lambda match: match[1] + shorten(match[2]) + match[1], text)
    return shorten(_WORD.sub(lambda match: shorten(match[0]), text), LONGEST_MESSAGE)
