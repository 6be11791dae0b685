"""Options whose value may be left out: `--csv` prints, `--csv table.csv` writes.

Of the word after such an option, its look decides: with one of the option's suffixes, or "-", it is the
value; anything else is the next argument. `--csv=ANYTHING` is always a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from typer.core import TyperCommand

BARE = "-"
"""The value of an option that was given without one."""


class OptionalValues(TyperCommand):
    """A command of which some options need no value; subclasses fill `optional`."""

    optional: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Option name to the suffixes that its values end in."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does, once every bare option has got its value."""
        return super().parse_args(ctx, with_values(args, self.optional))


def with_values(arguments: Sequence[str], optional: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The arguments, with `BARE` behind every option of `optional` that has no value behind it."""
    result: list[str] = []
    for number, argument in enumerate(arguments):
        result.append(argument)
        if argument == "--":
            return [*result, *arguments[number + 1 :]]
        if argument in optional:
            following = arguments[number + 1] if number + 1 < len(arguments) else ""
            if following != BARE and not following.lower().endswith(optional[argument]):
                result.append(BARE)
    return result
