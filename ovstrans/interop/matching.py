"""Renaming the entries of a file to the names of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ovstrans.errors import MismatchError


def rename(
    state: Mapping[str, Tensor], renamer: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """(a file's tensors by the model's names, what has none).

    renamer: of whole states, raises MismatchError for a name that it does not know. Raises MismatchError,
    beginning with `where`, for tensors that cannot be what their names say.
    """
    try:
        known = {key: value for key, value in state.items() if _knows(renamer, key, value)}
        return renamer(known), [key for key in state if key not in known]
    except (ValueError, IndexError, RuntimeError) as error:
        raise MismatchError(f"{where}: its tensors do not fit their names ({error})") from error


def _knows(renamer: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], key: str, value: Tensor) -> bool:
    try:
        renamer({key: value})
    except MismatchError:
        return False
    return True
