"""What the user sees: messages, progress, tables.

Results go to stdout, everything else to stderr, so that `--json -` and pipes stay clean. In a
terminal progress is a live bar; piped, it is a plain line now and then.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

_quiet = False
_PLAIN_SECONDS = 10.0


def set_quiet(quiet: bool) -> None:
    """Silence messages and progress (errors and results stay)."""
    global _quiet
    _quiet = quiet


def say(message: str, *, markup: bool = False) -> None:
    """A line for the user, on stderr; with `markup` its [bold]tags[/] are styles."""
    if not _quiet:
        _stderr().print(message, highlight=False, soft_wrap=True, markup=markup)


def warn(message: str) -> None:
    """A line that matters even with --quiet, on stderr."""
    _stderr().print(f"[yellow]warning:[/] {_escape(message)}", highlight=False, soft_wrap=True)


def error(message: str) -> None:
    """The one line a failed command ends with, on stderr."""
    _stderr().print(f"[bold red]error:[/] {_escape(message)}", highlight=False, soft_wrap=True)


def show(text: str) -> None:
    """A result, on stdout, as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    caption: str = "",
    words: Collection[str] = (),
) -> None:
    """A result as a table on stdout: first column left, the others right aligned.

    words: the columns, by name, that are left aligned too.
    """
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(column, justify="left" if number == 0 or column in words else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(_escape(str(cell)) for cell in row))
    out = Console(emoji=False)
    if not out.is_terminal:
        out = Console(width=max(100, 14 * len(columns) + 30), emoji=False)
    out.print(grid)


class Progress:
    """Counts steps towards a total and shows loss, speed and time left."""

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "it") -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self._start = self._shown = time.monotonic()
        self._first = done
        self._fields: dict[str, float] = {}
        self._bar: Any = None
        self._task: Any = None

    def advance(self, steps: int = 1, **fields: float) -> None:
        """Count steps; `fields` (loss=0.3) are shown beside."""
        self.done += steps
        self._fields.update(fields)
        if _quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note())
        elif time.monotonic() - self._shown >= _PLAIN_SECONDS or self.done == self.total:
            self._shown = time.monotonic()
            print(f"{self.title} {self.done}/{self.total} {self._note()}", file=sys.stderr, flush=True)

    def _note(self) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        speed = (self.done - self._first) / elapsed
        left = (self.total - self.done) / speed if speed else 0.0
        shown = " ".join(f"{key} {value:.4g}" for key, value in self._fields.items())
        return f"{shown} {speed:.3g} {self.unit}/s, {_clock(left)} left".strip()


@contextlib.contextmanager
def progress(title: str, total: int, *, done: int = 0, unit: str = "it") -> Iterator[Progress]:
    """A live progress line for the block; see `Progress.advance`."""
    counter = Progress(title, total, done, unit)
    err = _stderr()
    if _quiet or not err.is_terminal:
        yield counter
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=err, transient=True) as bar:
        counter._bar = bar
        counter._task = bar.add_task(title, total=total, completed=done, note="")
        yield counter


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True, emoji=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
