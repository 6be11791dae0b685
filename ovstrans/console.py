"""Terminal output: messages, progress, tables.

Results go to stdout and everything else to stderr, so that JSON on stdout and pipes stay clean. Progress is a live bar
in a terminal, and a plain line every ten seconds elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ovstrans.progress import Progress, ProgressCallback

_quiet = False
_PLAIN_SECONDS = 10.0


def set_quiet(quiet: bool) -> None:
    """Turn messages and progress off or on. Warnings, errors and results are always shown."""
    global _quiet
    _quiet = quiet


def say(message: str, *, markup: bool = False) -> None:
    """Show a message on stderr.

    Args:
        message: The message.
        markup: Take [bold]tags[/] in it as styles of rich.
    """
    if not _quiet:
        _stderr().print(message, highlight=False, soft_wrap=True, markup=markup)


def warn(message: str) -> None:
    """Show a warning on stderr, also when quiet."""
    _stderr().print(f"[yellow]warning:[/] {_escape(message)}", highlight=False, soft_wrap=True)


def error(message: str) -> None:
    """Show the error that ends a command, on stderr."""
    _stderr().print(f"[bold red]error:[/] {_escape(message)}", highlight=False, soft_wrap=True)


def show(text: str) -> None:
    """Write a result to stdout, as it is."""
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
    """Show a result as a table on stdout.

    Args:
        title: Title above it.
        columns: Names of the columns. The first is left aligned, the others are right aligned.
        rows: Cells of each row, as many as there are columns.
        caption: Line below it.
        words: Names of further columns to left align.
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


class _PlainProgress:
    """Shows progress as plain lines on stderr: one every ten seconds, and one at the end of each task."""

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}
        self._rates: dict[str, _Rate] = {}

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        new = progress.task not in self._shown
        last = self._shown.setdefault(progress.task, now)
        note = self._rates.setdefault(progress.task, _Rate()).note(progress)
        if new:
            return
        if now - last >= _PLAIN_SECONDS or (progress.done == progress.total and progress.done):
            self._shown[progress.task] = now
            print(f"{progress.task} {progress.done}/{progress.total} {note}", file=sys.stderr, flush=True)


class _LiveProgress:
    """Shows progress as bars of rich, one for each task."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._rates: dict[str, _Rate] = {}

    def __call__(self, progress: Progress) -> None:
        note = self._rates.setdefault(progress.task, _Rate()).note(progress)
        if progress.task not in self._tasks:
            self._tasks[progress.task] = self._bars.add_task(progress.task, total=progress.total, note=note)
        self._bars.update(self._tasks[progress.task], completed=progress.done, total=progress.total, note=note)


class _Rate:
    """Speed and remaining time of a task, measured from its first report on."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._first: int | None = None
        self._values: dict[str, float] = {}

    def note(self, progress: Progress) -> str:
        """Return figures, speed and remaining time, such as `loss 0.31 2.5 step/s, 0:12 left`."""
        self._first = progress.done if self._first is None else self._first
        self._values.update(progress.values)
        speed = (progress.done - self._first) / max(time.monotonic() - self._start, 1e-9)
        left = (progress.total - progress.done) / speed if speed else 0.0
        shown = " ".join(f"{key} {value:.4g}" for key, value in self._values.items())
        return f"{shown} {speed:.3g} {progress.unit}/s, {_clock(left)} left".strip()


@contextlib.contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """Show progress while the block runs: live bars in a terminal or notebook, plain lines elsewhere.

    Yields:
        A callback for the `progress` argument of the library's functions.
    """
    err = _stderr()
    if _quiet:
        yield lambda progress: None
    elif not (err.is_terminal or err.is_jupyter):
        yield _PlainProgress()
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Bars(*columns, console=err, transient=True) as bars:
            yield _LiveProgress(bars)


class LogHandler(logging.Handler):
    """Shows the library's log records as messages and warnings.

    Args:
        translate: Applied to each message, to show parameters as flags for example.
    """

    def __init__(self, translate: Callable[[str], str] = str) -> None:
        super().__init__(logging.INFO)
        self._translate = translate

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record: warnings and errors always, others unless quiet."""
        show_line = warn if record.levelno >= logging.WARNING else say
        show_line(self._translate(record.getMessage()))


def show_logs(translate: Callable[[str], str] = str) -> None:
    """Show the library's log records on stderr from now on; see `LogHandler`."""
    hide_logs()
    logger = logging.getLogger("ovstrans")
    logger.setLevel(logging.INFO)
    logger.addHandler(LogHandler(translate))


def hide_logs() -> None:
    """Undo `show_logs`."""
    logger = logging.getLogger("ovstrans")
    logger.setLevel(logging.NOTSET)
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, LogHandler)]


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
