"""Comparing what a file holds with what a model needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ovstrans.errors import MismatchError

_SHOWN = 3
_COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches: older files lack it, and nothing depends on it."""


@dataclass(frozen=True)
class Imported:
    """state: what fits, by the model's names.  missing: what the model needs and the file lacks.
    unexpected: what the file has and the model does not know."""

    state: dict[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def require(self, where: str, *, needed: Callable[[str], bool] = lambda key: True) -> None:
        """MismatchError, beginning with `where`, where a needed entry is missing. needed: all by default."""
        lacking = [key for key in self.missing if needed(key)]
        if lacking:
            raise MismatchError(
                f"{where}: lacks {shortened(lacking)} of the model; it has {len(self.state)} that fit and "
                f"{len(self.unexpected)} that do not belong; --partial takes what fits"
            )


def match(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> Imported:
    """Compare a file's tensors with a model's, both by the model's names.

    wanted: the model's state, on any device; only names and shapes count. Raises MismatchError, beginning
    with `where`, where a shape is another than the model's, or nothing of the file is the model's.
    """
    for key, value in state.items():
        if key in wanted and value.shape != wanted[key].shape:
            raise MismatchError(
                f"{where}: {key} has shape {list(value.shape)}, the model needs {list(wanted[key].shape)}: "
                "weights of another architecture; name the right CLIP with --model"
            )
    fitting = {key: state[key] for key in wanted if key in state}
    if not fitting:  # else --partial would hand out the model as it starts, as if it came from the file
        raise MismatchError(
            f"{where}: has {shortened(list(state))}, nothing that the model knows; name the right CLIP with --model, "
            "or what the file is of with --framework"
        )
    missing = tuple(key for key in wanted if key not in state and not key.endswith(_COUNTER))
    return Imported(fitting, missing, tuple(key for key in state if key not in wanted))


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


def shortened(keys: Sequence[str]) -> str:
    """`5 entries (a, b, c, ...)`."""
    first = ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
    return f"{len(keys)} {'entry' if len(keys) == 1 else 'entries'} ({first})"


def _knows(renamer: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], key: str, value: Tensor) -> bool:
    try:
        renamer({key: value})
    except MismatchError:
        return False
    return True
