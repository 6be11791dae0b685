"""The rules for the value of a recipe's key: type, range, choices and meaning."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from ovstrans.errors import InputError

_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a string"),
}


@dataclass(frozen=True)
class Key:
    """A key of a recipe and the rules for its value.

    Attributes:
        name: Full name, such as "optimizer.lr".
        type: Annotation of the field, such as "float".
        help: Meaning, a sentence.
        required: Whether a recipe must have the key.
        default: Its value where a recipe leaves it out.
        unit: Unit of a number, such as "pixels".
        choices: Allowed strings; empty for any.
        at_least: Lower bound of a number, or of each number of a list; None for no bound.
        above: The same, exclusive.
        at_most: Upper bound, likewise.
        below: The same, exclusive.
        option: Name of the keyword option that sets the key, "" for none.
        metavar: Placeholder for the value in the help of the option, "" for the default.
        recorded: Whether files record the key where it has its default value.
    """

    name: str
    type: str
    help: str
    required: bool
    default: Any = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    option: str = ""
    metavar: str = ""
    recorded: bool = True

    def check(self, value: Any, where: str) -> Any:
        """Return a value in the type of the key.

        Args:
            value: The value as given. A whole number is accepted where a float is needed.
            where: Start of an error message that names the key and its value.

        Raises:
            InputError: The value has another type, is out of range, or is not finite.
        """
        if self.type.startswith("tuple"):
            return self._check_list(value, where)
        types, words = _TYPES[self.type]
        if type(value) not in types:
            raise InputError(f"{where}: {words} is needed")
        value = finite(value, where) if self.type == "float" else value
        if not self._allows(value):
            raise InputError(f"{where}: must be {self.range}")
        return value

    def _check_list(self, value: Any, where: str) -> tuple[float, ...]:
        numbers = value if isinstance(value, (list, tuple)) else None
        if numbers is None or any(type(number) not in (int, float) for number in numbers):
            raise InputError(f"{where}: a list of numbers is needed")
        length = None if self.type.endswith("...]") else self.type.count("float")
        if length is not None and len(numbers) != length:
            raise InputError(f"{where}: a list of {length} numbers is needed")
        numbers = tuple(finite(number, where) for number in numbers)
        if not all(self._allows(number) for number in numbers):
            raise InputError(f"{where}: each must be {self.range}")
        return numbers

    def _allows(self, value: Any) -> bool:
        return (
            (not self.choices or value in self.choices)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    @property
    def range(self) -> str:
        """Allowed values in words, such as "at least 0 and below 1"."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least} and {self.at_most}"
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        words = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        return f"{words} ({self.unit})" if self.unit else words


def setting(help: str, *, default: Any = dataclasses.MISSING, **rules: Any) -> Any:
    """Make the dataclass field of a key.

    Args:
        help: Meaning of the key, a sentence.
        default: Value where a recipe leaves the key out; without one every recipe must have the key.
        **rules: Further attributes of `Key`.
    """
    return field(default=default, metadata={"setting": {"help": help, **rules}})


def finite(value: float, where: str) -> float:
    """Return a number as a float.

    Raises:
        InputError: It is NaN or infinite, or too large for a float; the message starts with `where`.
    """
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise InputError(f"{where}: a finite number is needed")
    return result
