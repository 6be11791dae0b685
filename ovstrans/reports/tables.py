"""Reports side by side: the rows of a table, as text for the terminal, as Markdown and as CSV.

A column is a target; from the second on, each also has its difference to the first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ovstrans.costs.latency import Latency
from ovstrans.costs.training_step import WAYS
from ovstrans.evaluation.evaluate import DatasetResult
from ovstrans.reports.report import Report

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
"""Unit of a value to how it is displayed: divisor, unit, decimals."""

TRAINING = {
    "executed": "as autograd runs it",
    "sparse": "by a sparse engine",
    "published": "by the paper's formula",
}
"""Ways of counting a training step, with their names in the table."""

METRICS: dict[str, str] = {
    "mIoU": "miou",
    "mIoU base": "miou_base",
    "mIoU novel": "miou_novel",
    "hIoU": "hiou",
    "fwIoU": "fwiou",
    "mACC": "macc",
    "pACC": "pacc",
}
"""Name of a metric in the table to its attribute of `DatasetResult`, in the order of the table."""

LATENCY = (
    ("median_s", "time a batch, median", "s"),
    ("iqr_s", "time a batch, interquartile range", "s"),
    ("min_s", "time a batch, fastest", "s"),
    ("images_per_s", "throughput", "images/s"),
    ("peak_memory_bytes", "peak memory beside the weights", "bytes"),
    ("energy_per_image_j", "energy an image", "J"),
)
"""Attributes of `ArmLatency` in the table, with their names and units."""

LAYER_COLUMNS = ["layer", "component", "dense MMAC", "effective MMAC", "share"]


@dataclass(frozen=True)
class Row:
    """A figure of several reports.

    Attributes:
        quantity: Name of the figure.
        part: Component that it is of; "" for the whole.
        unit: Unit of the values.
        values: Value of each report, None if it has none.
    """

    quantity: str
    part: str
    unit: str
    values: tuple[Value, ...]

    def changes(self) -> list[float | None]:
        """Return the difference of each value but the first to the first: in per cent, of percentages in points."""
        first = self.values[0]
        return [_change(first, value, self.unit) for value in self.values[1:]]


def compare_reports(reports: Sequence[Report]) -> list[Row]:
    """Return every figure that any of the reports has, in the order of a report."""
    return [row for row in _rows(reports) if any(value is not None for value in row.values)]


def make_table(reports: Sequence[Report], *, changes: bool = True) -> tuple[list[str], list[list[str]]]:
    """Return columns and lines of a table for people, with values in readable units.

    Args:
        reports: A column each.
        changes: Add the difference to the first report in brackets.
    """
    lines = [[_label(row), *_cells(row, changes)] for row in compare_reports(reports)]
    differing = [line for line in _settings(reports) if len(set(line[1:])) > 1]
    return ["", *(report.name for report in reports)], [*differing, *lines]


def make_layer_table(report: Report) -> list[list[str]]:
    """Return the lines of a table of layers, in the columns `LAYER_COLUMNS`; none if they were not kept."""
    return [
        [
            layer.name,
            layer.component,
            f"{layer.dense / 1e6:,.3f}",
            f"{layer.effective / 1e6:,.3f}",
            f"{layer.effective / layer.dense:.1%}" if layer.dense else "-",
        ]
        for layer in report.flops.layers or ()
    ]


def make_class_table(reports: Sequence[Report], dataset: str) -> tuple[list[str], list[list[str]]]:
    """Return columns and lines of a table of the classes of a dataset, in per cent.

    The columns are the IoU of each report that has the dataset, the accuracy if it is a single one, and the share of
    the pixels. Novel classes have a star.
    """
    having = [report for report in reports if dataset in report.datasets]
    results = [report.datasets[dataset].per_class for report in having]
    pixels = sum(each.pixels for each in results[0]) or 1
    single = len(results) == 1
    columns = ["class", *(["IoU %", "accuracy %"] if single else [f"{report.name} IoU %" for report in having])]
    lines = []
    for number, first in enumerate(results[0]):
        values = [result[number].iou for result in results]
        values += [first.accuracy] if single else []
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        lines.append([first.name + "*" * first.novel, *cells, f"{100 * first.pixels / pixels:.2f}"])
    return [*columns, "pixels %"], lines


def format_markdown(columns: Sequence[str], lines: Sequence[Sequence[str]], words: Collection[str] = ()) -> str:
    """Format a table for GitHub; indented labels keep their indent.

    Args:
        columns: Titles of the columns.
        lines: Cells of each line.
        words: Columns that are aligned left, besides the first.
    """
    left = [number == 0 or column in words for number, column in enumerate(columns)]
    texts = [[_escaped(cell) for cell in line] for line in (columns, *lines)]
    widths = [max(3, *(len(line[number]) for line in texts)) for number in range(len(columns))]
    rule = [
        ":".ljust(width, "-") if to_left else ":".rjust(width, "-") for width, to_left in zip(widths, left, strict=True)
    ]
    aligned = [list(map(_padded, line, widths, left)) for line in texts]
    return "".join(f"| {' | '.join(line)} |\n" for line in (aligned[0], rule, *aligned[1:]))


def make_csv_table(reports: Sequence[Report]) -> list[list[str]]:
    """Return the figures unformatted: a header, then quantity, part, unit, a column for each report, changes in %."""
    columns = [report.name for report in reports]
    head = ["quantity", "part", "unit", *columns, *(f"{name}: change from the first, %" for name in columns[1:])]
    lines = [
        [row.quantity, row.part, row.unit, *(_plain(value) for value in (*row.values, *row.changes()))]
        for row in compare_reports(reports)
    ]
    padding = [""] * (len(columns) - 1)
    return [head, *([name, "", "", *cells, *padding] for name, *cells in _settings(reports)), *lines]


def format_csv(lines: Iterable[Sequence[Any]]) -> str:
    """Format lines as CSV with Unix newlines."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _settings(reports: Sequence[Report]) -> list[list[str]]:
    """Return what each report was counted with: image size, batch, counter."""
    flops = [report.flops for report in reports]
    return [
        ["image size", *("x".join(map(str, one.image_size)) for one in flops)],
        ["batch", *(str(one.batch) for one in flops)],
        ["counter", *(one.counter for one in flops)],
    ]


def _rows(reports: Sequence[Report]) -> Iterator[Row]:
    yield from _param_rows(reports)
    yield from _mac_rows(reports)
    yield from _training_rows(reports)
    for name in _union(report.datasets for report in reports):
        for quantity, read in _metrics(name, reports):
            yield Row(quantity, "", "%", tuple(_of(report.datasets.get(name), read) for report in reports))
    yield from _latency_rows([report.latency for report in reports])


def _param_rows(reports: Sequence[Report]) -> Iterator[Row]:
    parts = _union(report.params.components for report in reports)
    for kind in ("total", "nonzero", "trainable"):
        yield Row(f"{kind} params", "", "params", tuple(getattr(report.params, kind) for report in reports))
        for part in parts if len(parts) > 1 and kind != "trainable" else []:
            values = (getattr(report.params.components.get(part), kind, None) for report in reports)
            yield Row(f"{kind} params", part, "params", tuple(values))


def _mac_rows(reports: Sequence[Report]) -> Iterator[Row]:
    parts = _union(report.flops.components for report in reports)
    for kind in ("dense", "effective"):
        macs = tuple(getattr(report.flops, kind) for report in reports)
        yield Row(f"{kind} MACs", "", "MAC", macs)
        for part in parts if len(parts) > 1 else []:
            parted = tuple(getattr(report.flops.components.get(part), kind, None) for report in reports)
            yield Row(f"{kind} MACs", part, "MAC", parted)
        yield Row(f"{kind} FLOPs (2 x MAC)", "", "FLOP", tuple(2 * value for value in macs))
    flops = [report.flops for report in reports]
    apart: dict[str, tuple[Value, ...]] = {
        "sampling and resizing MACs, apart": tuple(_of(one.resampling, lambda found: found.total) for one in flops),
        "text encoder MACs, once a vocabulary": tuple(_of(one.text_encoder, lambda found: found.macs) for one in flops),
        "dense MACs of its released code": tuple(_of(one.released, lambda found: found.dense) for one in flops),
    }
    for quantity, values in apart.items():
        yield Row(quantity, "", "MAC", values)


def _training_rows(reports: Sequence[Report]) -> Iterator[Row]:
    training = [report.training for report in reports]
    for way in WAYS:
        steps = [getattr(one, way) for one in training]
        for part in ("total", "forward", "input_gradient", "weight_gradient"):
            shown = "" if part == "total" else part.replace("_", " ")
            yield Row(f"training MACs {TRAINING[way]}", shown, "MAC", tuple(getattr(step, part) for step in steps))
    quantity = "matching MACs of training, once a segment, apart"
    yield Row(quantity, "", "MAC", tuple(one.matching for one in training))
    for way in WAYS:
        runs = tuple(None if one.run is None else one.run.total(way) for one in training)
        yield Row(f"whole run {TRAINING[way]}", "", "MAC a run", runs)


def _metrics(name: str, reports: Sequence[Report]) -> Iterator[tuple[str, Callable[[DatasetResult], Value]]]:
    """Yield the metrics of a dataset, by their names in the table, and how to read them."""
    for label, attribute in METRICS.items():
        yield f"{name} {label}", lambda result, attribute=attribute: getattr(result, attribute)  # type: ignore[misc]
    for quality in ("pq", "sq", "rq"):
        yield (
            f"{name} {quality.upper()}",
            lambda result, quality=quality: getattr(getattr(result.panoptic, "all", None), quality, None),  # type: ignore[misc]
        )
    videos = (report.datasets[name].video for report in reports if name in report.datasets)
    for length in _union(sorted(video.windows) for video in videos if video is not None):
        yield (
            f"{name} mVC{length}",
            lambda result, length=length: None if result.video is None else result.video.windows[length].mvc,  # type: ignore[misc]
        )


def _latency_rows(found: Sequence[Latency | None]) -> Iterator[Row]:
    arms: list[dict[str, Any]] = [{} if one is None else dict(one.arms) for one in found]
    for arm in _union(arms):
        for attribute, label, unit in LATENCY:
            yield Row(f"{arm}: {label}", "", unit, tuple(getattr(one.get(arm), attribute, None) for one in arms))
    yield Row(
        "sparse: times as fast as dense", "", "x", tuple(_of(one, lambda latency: latency.speedup) for one in found)
    )


def _of(found: Any, read: Callable[[Any], Value]) -> Value:
    return None if found is None else read(found)


def _union(names: Iterable[Iterable[Any]]) -> list[Any]:
    return list(dict.fromkeys(name for each in names for name in each))


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
