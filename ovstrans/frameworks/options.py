"""Options of a framework: names, types and permitted words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ovstrans.errors import InputError, did_you_mean

_LARGEST, _MOST_LAYERS = 1 << 20, 100
"""Largest value of an option, and most layers of a part of a framework."""


def resolve_options(owner: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge options into their defaults and check names and types.

    An int is accepted for a float, a tuple for a list.

    Args:
        owner: Whose options these are, for error messages: "framework gkc".
        defaults: Every option with its default value.
        options: The values to set.

    Returns:
        Every option with its value, in the order of `defaults`.

    Raises:
        InputError: An option is unknown, or its value has another type than the default.
    """
    resolved = dict(defaults)
    for key, value in options.items():
        if key not in defaults:
            hint = did_you_mean(key, defaults)
            raise InputError(f"{owner}: no option {key!r}; {hint}options are {', '.join(defaults)}")
        default = defaults[key]
        if isinstance(value, tuple):
            value = list(value)
        _check_size(f"{owner}: option {key}", key, value)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise InputError(
                f"{owner}: option {key} = {value!r}; a {type(default).__name__} is needed, like {default!r}"
            )
        resolved[key] = value
    return resolved


def _check_size(where: str, key: str, value: Any) -> None:
    """Raise InputError for a number that is not finite, or so large that building would take all memory."""
    numbers = value if isinstance(value, list) else [value]
    most = _MOST_LAYERS if key.endswith("layers") else _LARGEST
    if len(numbers) > _MOST_LAYERS:
        raise InputError(f"{where} has {len(numbers):,} entries; at most {_MOST_LAYERS} are possible")
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise InputError(f"{where} = {number}; a finite number is needed")
        if isinstance(number, int) and abs(number) > most:
            raise InputError(f"{where} = {number}; at most {most:,} is possible")


def check_choices(owner: str, options: Mapping[str, Any], choices: Mapping[str, Sequence[str]]) -> None:
    """Check options that take one of a few words.

    Args:
        owner: Whose options these are, for error messages.
        options: The resolved options.
        choices: The permitted values of some of them.

    Raises:
        InputError: A value is not among the permitted ones.
    """
    for key, permitted in choices.items():
        if options[key] not in permitted:
            raise InputError(f"{owner}: option {key} = {options[key]!r}; use {', '.join(map(repr, permitted))}")
