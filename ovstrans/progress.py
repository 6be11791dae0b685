"""Progress of long work, reported through a callback.

Functions that take time accept `progress`, a callable that receives a `Progress` whenever a step is done. The library
itself prints nothing; `console.progress_bar` makes such a callable that draws bars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """State of a task that takes time.

    Attributes:
        task: What is being done, such as "prune RN50".
        done: Steps finished, those of an interrupted earlier run included.
        total: Steps in all.
        unit: Name of a step: "step", "images".
        values: Figures of the last step, such as {"loss": 0.31}.
    """

    task: str
    done: int
    total: int
    unit: str = "step"
    values: Mapping[str, float] = field(default_factory=dict)


ProgressCallback = Callable[[Progress], None]


class ProgressReporter:
    """Counts the steps of one task and reports each to a callback.

    Args:
        callback: Receives the progress; None reports to nobody.
        task: As in `Progress`.
        total: As in `Progress`.
        done: Steps finished before.
        unit: As in `Progress`.
    """

    def __init__(
        self, callback: ProgressCallback | None, task: str, total: int, *, done: int = 0, unit: str = "step"
    ) -> None:
        self.task, self.total, self.done, self.unit = task, total, done, unit
        self._callback = callback
        self._report({})

    def advance(self, steps: int = 1, **values: float) -> None:
        """Count `steps` more and report them with the figures given."""
        self.done += steps
        self._report(values)

    def _report(self, values: Mapping[str, float]) -> None:
        if self._callback is not None:
            self._callback(Progress(self.task, self.done, self.total, self.unit, values))
