"""Reports side by side: the rows of a table, as text for the terminal, as Markdown and as CSV.

A column is a target; from the second on, each also says by how much it differs from the first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Reports = Sequence[Mapping[str, Any]]
Value = int | float | None

_UNITS: dict[str, tuple[float, str, int]] = {
    "params": (1e6, "M", 3),
    "MAC": (1e9, "GMAC", 4),
    "FLOP": (1e9, "GFLOP", 4),
    "MAC a run": (1e15, "PMAC", 4),
    "operations": (1e9, "Gop", 4),
    "bytes": (2**20, "MiB", 1),
    "s": (1e-3, "ms", 2),
    "images/s": (1, "images/s", 2),
    "J": (1, "J", 3),
    "x": (1, "x", 2),
    "%": (1, "%", 2),
}
"""Unit of a value in a report to how people read it: divisor, unit shown, decimals."""

TRAINING = {
    "executed": "as autograd runs it",
    "sparse": "by a sparse engine",
    "published": "by the paper's formula",
}
"""Who counts the MACs of training, in a report and in words."""

METRICS = {
    "mIoU": "mIoU",
    "base": "mIoU base",
    "novel": "mIoU novel",
    "hIoU": "hIoU",
    "fwIoU": "fwIoU",
    "mACC": "mACC",
    "pACC": "pACC",
}
"""Entries of a dataset's report that the table shows, in order."""
PARTS = {"panoptic": ("PQ", "SQ", "RQ"), "video": ("mVC8", "mVC16")}
"""The same of the parts that some datasets have."""


@dataclass(frozen=True)
class Row:
    """quantity: what is compared.  part: of which component, "" for the whole.  unit: of the values.
    values: one a report, None where it has none."""

    quantity: str
    part: str
    unit: str
    values: tuple[Value, ...]

    def changes(self) -> list[float | None]:
        """From the second value on, its difference to the first in per cent (of percentages: in points)."""
        first = self.values[0]
        return [_change(first, value, self.unit) for value in self.values[1:]]


def comparison(reports: Reports) -> list[Row]:
    """Every figure that any of the reports has, in the order of a report."""
    return [row for row in _rows(reports) if any(value is not None for value in row.values)]


def rows(reports: Reports, *, changes: bool = True) -> tuple[list[str], list[list[str]]]:
    """(columns, lines) for people: a column a target, values in readable units, with `changes` in brackets."""
    lines = [[_label(row), *_cells(row, changes)] for row in comparison(reports)]
    return ["", *names(reports)], [*_differing_settings(reports), *lines]


def names(reports: Reports) -> list[str]:
    """The targets' names."""
    return [str(report["target"]["name"]) for report in reports]


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]], words: Collection[str] = ()) -> str:
    """A GitHub table: the first column and those named in `words` left, the others right.

    Indented labels keep their indent.
    """
    left = [number == 0 or column in words for number, column in enumerate(columns)]
    texts = [[_escaped(cell) for cell in line] for line in (columns, *lines)]
    widths = [max(3, *(len(line[number]) for line in texts)) for number in range(len(columns))]
    rule = [
        ":".ljust(width, "-") if to_left else ":".rjust(width, "-") for width, to_left in zip(widths, left, strict=True)
    ]
    aligned = [list(map(_padded, line, widths, left)) for line in texts]
    return "".join(f"| {' | '.join(line)} |\n" for line in (aligned[0], rule, *aligned[1:]))


def csv_lines(reports: Reports) -> list[list[str]]:
    """The plain values, a header first: quantity, part, unit, a column a target, then the changes in per cent."""
    columns = names(reports)
    head = ["quantity", "part", "unit", *columns, *(f"{name}: change from the first, %" for name in columns[1:])]
    lines = [
        [row.quantity, row.part, row.unit, *(_plain(value) for value in (*row.values, *row.changes()))]
        for row in comparison(reports)
    ]
    padding = [""] * (len(columns) - 1)
    return [head, *([name, "", "", *cells, *padding] for name, *cells in _settings(reports)), *lines]


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Lines as CSV with newlines of Unix."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _settings(reports: Reports) -> list[list[str]]:
    """What each report was counted with: image size, batch, counter."""
    flops = [report["flops"] for report in reports]
    return [
        ["image size", *("x".join(map(str, one["image_size"])) for one in flops)],
        ["batch", *(str(one["batch"]) for one in flops)],
        ["counter", *(str(one["counter"]) for one in flops)],
    ]


def _differing_settings(reports: Reports) -> list[list[str]]:
    return [line for line in _settings(reports) if len(set(line[1:])) > 1]


LAYER_COLUMNS = ["layer", "component", "dense MMAC", "effective MMAC", "share"]


def layer_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the per-layer table: layer, component, dense and effective MMAC, share kept."""
    return [
        [
            layer["name"],
            layer["component"],
            f"{layer['dense'] / 1e6:,.3f}",
            f"{layer['effective'] / 1e6:,.3f}",
            f"{layer['effective'] / layer['dense']:.1%}" if layer["dense"] else "-",
        ]
        for layer in report["flops"].get("layers", [])
    ]


def _rows(reports: Reports) -> Iterator[Row]:
    for kind in ("total", "nonzero", "trainable"):
        yield _row(reports, f"{kind} params", "params", "params", kind)
        if kind != "trainable":
            yield from _parts(reports, f"{kind} params", "params", "params", kind)
    for kind in ("dense", "effective"):
        macs = _row(reports, f"{kind} MACs", "MAC", "flops", kind)
        yield macs
        yield from _parts(reports, f"{kind} MACs", "MAC", "flops", kind)
        doubled = tuple(None if value is None else 2 * value for value in macs.values)
        yield Row(f"{kind} FLOPs (2 x MAC)", "", "FLOP", doubled)
    yield _row(reports, "sampling and resizing MACs, apart", "MAC", "flops", "other", "total")
    yield _row(reports, "text encoder MACs, once a vocabulary", "MAC", "flops", "text_encoder", "macs")
    yield _row(reports, "dense MACs of its released code", "MAC", "flops", "released", "dense")
    for kind in _union(report.get("training", {}) for report in reports):
        entries = [report.get("training", {}).get(kind) for report in reports]
        if any(isinstance(entry, Mapping) and "total" in entry for entry in entries):
            yield from _training_rows(f"training MACs {TRAINING.get(kind, kind)}", entries)
    yield _row(reports, "matching MACs of training, once a segment, apart", "MAC", "training", "matching", "macs")
    for kind, words in TRAINING.items():
        yield _row(reports, f"whole run {words}", "MAC a run", "training", "run", kind, "total")
    for name in _union(report.get("datasets", {}) for report in reports):
        for key, label in METRICS.items():
            yield _row(reports, f"{name} {label}", "%", "datasets", name, key)
        for section, keys in PARTS.items():
            for key in keys:
                yield _row(reports, f"{name} {key}", "%", "datasets", name, section, key)
    for arm in _union((report.get("latency") or {}).get("arms", {}) for report in reports):
        for key, label, unit in LATENCY:
            yield _row(reports, f"{arm}: {label}", unit, "latency", "arms", arm, key)
    yield _row(reports, "sparse: times as fast as dense", "x", "latency", "speedup")


LATENCY = (
    ("median_s", "time a batch, median", "s"),
    ("iqr_s", "time a batch, interquartile range", "s"),
    ("min_s", "time a batch, fastest", "s"),
    ("images_per_s", "throughput", "images/s"),
    ("peak_memory_bytes", "peak memory beside the weights", "bytes"),
    ("energy_per_image_j", "energy an image", "J"),
)
"""Entries of an arm of `latency`: key, what it is, unit."""


def _training_rows(quantity: str, entries: Sequence[Any]) -> Iterator[Row]:
    entries = [entry if isinstance(entry, Mapping) else {} for entry in entries]
    parts: tuple[str, ...] = ("forward", "input_gradient", "weight_gradient")
    if not any(parts[-1] in entry for entry in entries):  # reports of 0.1 and older
        parts = ("forward", "backward")
    for part in ("total", *parts):
        values = tuple(entry.get(part) for entry in entries)
        yield Row(quantity, "" if part == "total" else part.replace("_", " "), "MAC", values)


def _row(reports: Reports, quantity: str, unit: str, *keys: str, part: str = "") -> Row:
    return Row(quantity, part, unit, tuple(_dig(report, keys) for report in reports))


def _parts(reports: Reports, quantity: str, unit: str, section: str, kind: str) -> Iterator[Row]:
    """A row a component, where there is more than one."""
    names = _union(report[section]["components"] for report in reports)
    for name in names if len(names) > 1 else []:
        yield _row(reports, quantity, unit, section, "components", name, kind, part=name)


def _dig(table: Any, keys: Sequence[str]) -> Value:
    for key in keys:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table if isinstance(table, (int, float)) else None


def _union(tables: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


def _change(first: Value, value: Value, unit: str) -> float | None:
    if first is None or value is None:
        return None
    if unit == "%":
        return value - first
    return 100 * (value - first) / first if first else None


def _label(row: Row) -> str:
    shown = _UNITS[row.unit][1]
    return f"  {row.part}" if row.part else f"{row.quantity}, {shown}"


def _cells(row: Row, changes: bool) -> list[str]:
    scale, _, decimals = _UNITS[row.unit]
    texts = ["-" if value is None else f"{value / scale:,.{decimals}f}" for value in row.values]
    notes = ["", *(_note(change, row.unit) if changes else "" for change in row.changes())]
    return [text + note for text, note in zip(texts, notes, strict=True)]


def _note(change: float | None, unit: str) -> str:
    if change is None or not change:
        return ""
    if unit == "%":
        return f" ({change:+.2f})"
    return f" ({change:+.1f} %)" if abs(change) >= 0.1 else f" ({change:+.1g} %)"


def _padded(cell: str, width: int, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)


def _escaped(cell: str) -> str:
    indent = len(cell) - len(cell.lstrip(" "))
    return "&nbsp;" * indent + cell.lstrip(" ").replace("|", "\\|")


def _plain(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
