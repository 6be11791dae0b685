"""Tables in TOML files that users write, and errors that name the file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ovstrans.errors import InputError, did_you_mean
from ovstrans.files import existing_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path | str) -> dict[str, Any]:
    """A TOML file's table; InputError where it is missing or broken."""
    path = existing_file(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML ({error})") from error


def refuse_unknown(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """InputError that names the first key of `table` that is not in `known`, and the nearest known one."""
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known)
            raise InputError(f"{where}: unknown key {key!r}; {hint}known are {', '.join(known)}")


@contextmanager
def naming(where: Path | str) -> Iterator[None]:
    """Prefix the place to an InputError raised inside, unless the message has it already."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(where)):
            raise
        raise InputError(f"{where}: {error}") from error
