"""Parsing JSON and TOML of any origin within bounds: length, depth, digits, and no number that is not finite.

A text of a few bytes may ask for a number of a million digits, or for lists nested so deep that whoever walks through
them afterwards fails. Every bound is checked before the memory is taken, and every fault is a ValueError.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from ovstrans.errors import InputError

LARGEST_JSON = 4 << 20
"""Longest JSON that is parsed, in bytes, unless a caller expects more. Lists take up to 25 bytes for each byte."""

LARGEST_ANNOTATIONS = 1 << 32
"""Longest JSON of a dataset's annotations, in bytes. Those of COCO have 450 MB."""

LARGEST_TOML = 1 << 20
"""Longest TOML that is parsed, in bytes."""

LARGEST_LOG = 256 << 20
"""Longest log of a run, in bytes: an object of JSON to a line."""

LARGEST_LIST = 32 << 20
"""Longest text file of names, one to a line, in bytes."""

DEEPEST = 64
"""Most lists and objects inside one another."""

MOST_DIGITS = 30
"""Most digits of a whole number."""

_MOST_PARTS = 32
"""Most parts of a dotted key of TOML, whose parser takes time with the square of their number."""

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_DOTTED = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]{0,8}\.[ \t]{0,8}){32}""")


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is not valid JSON; a number is infinite, NaN or of more than `MOST_DIGITS` digits; or lists and
            objects are nested deeper than `DEEPEST`.
    """
    if len(text) <= LARGEST_JSON and text.count("[") + text.count("{") > DEEPEST:
        _refuse_deep(text)
    try:
        return json.loads(text, parse_int=_whole_number, parse_float=_finite_number, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: It is not valid TOML, is longer than `LARGEST_TOML`, nested deeper than `DEEPEST`, has a key of too
            many parts, or a number of more than `MOST_DIGITS` digits.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    if len(text) > LARGEST_TOML:
        raise ValueError(f"{len(text):,} characters, at most {LARGEST_TOML:,} are read")
    if _DOTTED.search(text):
        raise ValueError(f"a key of more than {_MOST_PARTS} parts")
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _require_shallow(table)
    return table


def read_text(path: Path, limit: int = LARGEST_LIST, *, errors: str = "strict") -> str:
    """Read a file of UTF-8 text, without the byte order mark that it may begin with.

    Args:
        path: An ordinary file, see `files.existing_file`.
        limit: Most bytes to read.
        errors: As of `bytes.decode`.

    Raises:
        InputError: The file is longer, or cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path}: {size:,} bytes of text, at most {limit:,} are read; is it the right file?")
        with path.open("rb") as handle:
            raw = handle.read(size)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    return raw.decode("utf-8-sig", errors).replace("\r\n", "\n").replace("\r", "\n")


_TOO_DEEP = f"lists and objects nested deeper than {DEEPEST}"


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS + 1:
        raise ValueError(f"a number of {len(digits):,} digits, at most {MOST_DIGITS} are read")
    return int(digits)


def _finite_number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:MOST_DIGITS]} is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _refuse_deep(text: str) -> None:
    """Raise ValueError for JSON nested too deep, without building anything of it."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        token = match[0]
        if token in "[{":
            depth += 1
            if depth > DEEPEST:
                raise ValueError(_TOO_DEEP)
        elif token in "]}":
            depth -= 1


def _require_shallow(table: dict[str, Any]) -> None:
    """Raise ValueError for a table nested too deep, or with a whole number of too many digits."""
    waiting: list[tuple[Any, int]] = [(table, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, int) and value.bit_length() > 100:
            raise ValueError(f"a number of more than {MOST_DIGITS} digits")
        if isinstance(value, (dict, list)):
            if depth > DEEPEST:
                raise ValueError(_TOO_DEEP)
            inner = value.values() if isinstance(value, dict) else value
            waiting += [(each, depth + 1) for each in inner]
