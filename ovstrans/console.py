"""Terminal output: messages, progress, tables.

Results go to stdout and everything else to stderr, so that JSON on stdout and pipes stay clean. Progress is a live bar
in a terminal, and a plain line every ten seconds elsewhere. Every text is shown as it is: file and class names may hold
brackets, colons and worse, and no function here takes markup.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ovstrans.errors import UNPRINTABLE, shorten, shorten_message
from ovstrans.errors import printable as _printable
from ovstrans.progress import Progress, ProgressCallback

_quiet = False
_PLAIN_SECONDS = 10.0


def set_quiet(quiet: bool) -> None:
    """Turn messages and progress off or on. Warnings, errors and results are always shown."""
    global _quiet
    _quiet = quiet


def say(message: str, *, heading: str = "") -> None:
    """Show a message on stderr.

    Args:
        message: The message; it may have several lines.
        heading: Words to show before it in bold.
    """
    if not _quiet:
        _print(_printable(message, keep="\n\t"), _printable(heading), "bold")


def warn(message: str) -> None:
    """Show a warning on stderr, also when quiet."""
    _print(f" {_printable(message)}", "warning:", "yellow")


def error(message: str) -> None:
    """Show the error that ends a command, on stderr."""
    _print(f" {_printable(message)}", "error:", "bold red")


def show(text: str) -> None:
    r"""Write a result to stdout, as it is but for what a terminal would obey, or its encoding has no character for.

    These become escapes such as `\u009b`, which JSON and TOML read as the characters that they stand for.
    """
    text = text if text.endswith("\n") else text + "\n"
    text = UNPRINTABLE.sub(lambda match: match[0] if match[0] in "\n\t" else f"\\u{ord(match[0]):04x}", text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    caption: str = "",
    words: Collection[str] = (),
    optional: Sequence[str] = (),
    split: bool = False,
) -> None:
    """Show a result as a table on stdout.

    In a terminal that is too narrow for it, titles of columns wrap to two lines first. Then `optional` columns are left
    out, which is said below the table, or with `split` the columns are shown in several tables. Last, long cells of the
    first column wrap. Where stdout is no terminal there is no limit, unless $COLUMNS sets one.

    Args:
        title: Title above it.
        columns: Names of the columns. The first is left aligned, the others are right aligned.
        rows: Cells of each row, as many as there are columns.
        caption: Line below it.
        words: Names of further columns to left align.
        optional: Names of columns that a narrow terminal may leave out, the least important first.
        split: Repeat the first column and show some of the others at a time.
    """
    from rich.console import Console

    grid = _Grid([_cell(column) for column in columns], [[_cell(cell) for cell in row] for row in rows])
    out = Console(emoji=False, markup=False, highlight=False)
    limited = out.is_terminal or "COLUMNS" in os.environ
    if not limited:
        out = Console(width=max(100, grid.total_width()), emoji=False, markup=False, highlight=False)
    parts, hidden = grid.fit(out.width, [columns.index(name) for name in optional if name in columns], split=split)
    left = {number for number, column in enumerate(columns) if number == 0 or column in words}
    _print_text(out, title, "table.title")
    for part in parts:
        out.print(grid.draw(part, left, out.width))
    if hidden:
        names = ", ".join(grid.columns[number] for number in hidden)
        caption = f"{caption}{'; ' if caption else ''}a wider terminal also shows: {names}"
    _print_text(out, caption, "table.caption")


def _cell(value: Any) -> str:
    return shorten(_printable(str(value)), _LONGEST_CELL)


class _Grid:
    """Cells of a table, and how they fit into a width.

    Args:
        columns: Names of the columns.
        rows: Cells of each row.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.cells import cell_len

        self.columns, self.rows = columns, rows
        cells = [max((cell_len(row[number]) for row in rows), default=0) for number in range(len(columns))]
        self._wide = [max(width, cell_len(column)) for width, column in zip(cells, columns, strict=True)]
        self._narrow = [_least_width(column, width) for width, column in zip(cells, columns, strict=True)]

    def total_width(self) -> int:
        """Return the width of the whole table if nothing wraps."""
        return _with_borders(self._wide)

    def fit(self, width: int, optional: Sequence[int], *, split: bool) -> tuple[list[list[int]], list[int]]:
        """Choose the columns to show in a width.

        Returns:
            The columns of each table to draw, and those left out.
        """
        shown, hidden = list(range(len(self.columns))), list[int]()
        for number in optional:
            if self._width_of(shown) <= width:
                break
            shown.remove(number)
            hidden.append(number)
        for number in reversed(hidden.copy()):  # a large one may have made room for a smaller one
            if self._width_of([*shown, number]) <= width:
                shown.append(number)
                hidden.remove(number)
        shown.sort()
        if not split or self._width_of(shown) <= width:
            return [shown], sorted(hidden)
        parts = [[0]]
        saved = max(0, self._narrow[0] - max(_LEAST_LABEL, width // 3))  # cells of the first column may wrap
        for number in shown[1:]:
            if len(parts[-1]) > 1 and self._width_of([*parts[-1], number]) - saved > width:
                parts.append([0])
            parts[-1].append(number)
        return parts, sorted(hidden)

    def draw(self, shown: Sequence[int], left: set[int], width: int) -> Any:
        """Return a table of rich with the columns `shown`; those in `left` are aligned left."""
        from rich.table import Table
        from rich.text import Text

        widths = self._share(shown, left - {0}, width)
        drawn = Table()
        for number in shown:
            title = Text(_wrap(self.columns[number], widths[number]))
            drawn.add_column(title, justify="left" if number in left else "right", overflow="fold")
        for row in self.rows:
            drawn.add_row(*(Text(_wrap(row[number], widths[number])) for number in shown))
        return drawn

    def _width_of(self, shown: Sequence[int]) -> int:
        return _with_borders([self._narrow[number] for number in shown])

    def _share(self, shown: Sequence[int], words: Collection[int], width: int) -> dict[int, int]:
        """Return the width of each column.

        Columns of `words` give way first, then the first column, then all: the widest first, none below `_LEAST_CELL`.
        """
        widths = {number: self._wide[number] for number in shown}
        if _with_borders(widths.values()) <= width:
            return widths
        widths = {number: self._narrow[number] for number in shown}
        for giving in ([number for number in shown if number in words], shown[:1], shown):
            limit = max((widths[number] for number in giving), default=0)
            while limit > _LEAST_CELL and _with_borders(widths.values()) > width:
                limit -= 1
                widths |= {number: min(limit, widths[number]) for number in giving}
        spare = width - _with_borders(widths.values())
        for number in shown:  # rather a title in one line, where there is room
            more = min(max(0, spare), self._wide[number] - widths[number])
            widths[number], spare = widths[number] + more, spare - more
        return widths


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
            line = f"{_printable(progress.task)} {progress.done}/{progress.total} {note}"
            print(line, file=sys.stderr, flush=True)


class _LiveProgress:
    """Shows progress as bars of rich, one for each task."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._rates: dict[str, _Rate] = {}

    def __call__(self, progress: Progress) -> None:
        note = self._rates.setdefault(progress.task, _Rate()).note(progress)
        if progress.task not in self._tasks:
            shown = _printable(progress.task)
            self._tasks[progress.task] = self._bars.add_task(shown, total=progress.total, note=note)
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
        show_line(shorten_message(self._translate(record.getMessage())))


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


_LONGEST_CELL = 120
"""Characters of a cell that are shown; a name from a file may have any number."""
_LEAST_CELL = 12
"""Width that every column of a table keeps if its cells need it, however narrow the terminal is."""
_LONGEST_WORD = 20
"""Words up to this length do not break in the titles of columns."""
_LEAST_LABEL = 24
"""Width that the first column keeps if the others are shown in several tables."""
_PIECES = re.compile(r"[^\s/._,;:=-]*[\s/._,;:=-]*")


def _with_borders(widths: Collection[int]) -> int:
    """Return the width of a table whose columns have these widths."""
    return sum(widths) + 3 * len(widths) + 1


def _least_width(title: str, width: int) -> int:
    """Return the smallest width, at least `width`, in which a title needs at most two lines and no word breaks."""
    from rich.cells import cell_len

    longest = max(cell_len(piece.rstrip()) for piece in _PIECES.findall(title))
    width = max(width, min(longest, _LONGEST_WORD))
    while _wrap(title, max(1, width)).count("\n") > 1 and width < cell_len(title):
        width += 1
    return width


def _wrap(text: str, width: int) -> str:
    """Break a text into lines of at most a width, behind spaces and punctuation where there are some."""
    from rich.cells import cell_len, chop_cells

    if cell_len(text) <= width:
        return text
    indent = text[: len(text) - len(text.lstrip())][: max(0, width - 1)]
    lines = [indent]
    for piece in _PIECES.findall(text.lstrip()):
        for part in (
            [piece] if cell_len(piece.rstrip()) <= width - len(indent) else chop_cells(piece, width - len(indent))
        ):
            if lines[-1].strip() and cell_len(lines[-1] + part.rstrip()) > width:
                lines.append(indent)
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _print(message: str, heading: str, style: str) -> None:
    """Print a heading in a style and a message to stderr, as they are: brackets and colons have no meaning in them."""
    from rich.text import Text

    parts = [(heading, style)] if heading else []
    _stderr().print(Text.assemble(*parts, message), soft_wrap=True)


def _print_text(out: Any, text: str, style: str) -> None:
    """Print a title or a caption, wrapped between words; nothing if it is empty."""
    from rich.text import Text

    if text:
        out.print(Text(_wrap(_printable(text), out.width), style=style))


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True, emoji=False, markup=False, highlight=False)
