"""Progress of long work, reported through a callback.

Functions that take time accept `progress`, a callable that receives a `Progress` whenever a step is done. The library
itself prints nothing; `console.progress_bar` makes such a callable that draws bars.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

_FORECAST_STEPS = 5
"""Steps, besides the first, after which the duration of a run is told."""
_FORECAST_SECONDS = 20.0
"""Seconds after which it is told already, if two steps are done."""


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


class Forecast:
    """Tells once, after the first steps of a run, how long it will take.

    Args:
        task: What is being done, such as "prune RN50".
        steps: Steps that are still to do.
    """

    def __init__(self, task: str, steps: int) -> None:
        self._task, self._steps = task, steps
        self._done, self._start, self._told = 0, time.monotonic(), False

    def note(self) -> None:
        """Note that a step is done. The first one sets things up, so it is not counted."""
        if self._told:
            return
        self._done += 1
        now = time.monotonic()
        if self._done == 1:
            self._start = now
        counted, took = self._done - 1, now - self._start
        if counted == _FORECAST_STEPS or (counted and took >= _FORECAST_SECONDS):
            self._told = True
            left = (self._steps - self._done) * took / counted
            if left >= 1:
                each = f"{took / counted:.2g} s"
                logger.info("%s: about %s left, %s a step", self._task, format_duration(left), each)


def format_duration(seconds: float) -> str:
    """Return a duration in words, in its one or two largest units: `40 s`, `3 h 20 min`, `2 days 4 h`."""
    total = round(seconds)
    if total < 60:
        return f"{max(total, 1)} s"
    minutes = round(total / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(hours + minutes / 60), 24)
    return f"{days} day{'' if days == 1 else 's'}" + (f" {hours} h" if hours else "")
