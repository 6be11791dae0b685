"""Reports side by side: the rows of a table, as text for the terminal, as Markdown and as CSV.

A column is a target; from the second on, each also has its difference to the first, where the two compare: figures of
different image sizes, batches, counters, devices or numbers of images do not.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ovstrans.costs.latency import Latency
from ovstrans.costs.training_step import WAYS
from ovstrans.evaluation.evaluate import DatasetResult
from ovstrans.reports.report import Report, shorten_names

Value = int | float | None

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"))
_BINARY = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SCALED: dict[str, tuple[tuple[float, str], ...]] = {
    **dict.fromkeys(("params", "MAC", "FLOP"), _PREFIXES),
    "bytes": _BINARY,
    "s": _SECONDS,
}
"""Units whose values are shown with a prefix: factors and symbols, the largest first."""
_DECIMALS = {"%": 2, "images/s": 2, "J": 3, "x": 2, "layers": 0}
"""Units whose values are shown as they are: number of decimals."""
_DIGITS = 4
_TIMES = 100.0
"""Change in per cent from which on a value is shown as a multiple of the first."""

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
    ("backbone_share", "share of the backbone", ""),
    ("peak_memory_bytes", "peak memory beside the weights", "bytes"),
    ("energy_per_image_j", "energy an image", "J"),
)
"""Attributes of `ArmLatency` in the table, with their names and units."""

_MAIN_LATENCY = ("median_s", "backbone_share")
"""Those that are shown by default."""

LAYER_COLUMNS = ["layer", "component", "dense MMAC", "effective MMAC", "share"]


@dataclass(frozen=True)
class Row:
    """A figure of several reports.

    Attributes:
        quantity: Name of the figure.
        part: Component that it is of; "" for the whole.
        unit: Unit of the values.
        values: Value of each report, None if it has none.
        basis: What the value of each report depends on, such as the image size; values of different bases do not
            compare. Empty if all compare.
        main: Whether the row is in the short table.
    """

    quantity: str
    part: str
    unit: str
    values: tuple[Value, ...]
    basis: tuple[Any, ...] = ()
    main: bool = False

    def changes(self) -> list[float | None]:
        """Return the difference of each value but the first to the first: in per cent, of percentages in points.

        None where the values do not compare.
        """
        basis = self.basis or (None,) * len(self.values)
        first = self.values[0]
        return [
            _change(first, value, self.unit) if each == basis[0] else None
            for value, each in zip(self.values[1:], basis[1:], strict=True)
        ]


def compare_reports(reports: Sequence[Report]) -> list[Row]:
    """Return every figure that any of the reports has, in the order of a report."""
    return [row for row in _rows(reports) if any(value is not None for value in row.values)]


def make_table(
    reports: Sequence[Report], *, changes: bool = True, details: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return columns and lines of a table for people, with values in readable units.

    Args:
        reports: A column each.
        changes: Add the difference to the first report in brackets.
        details: Return every figure; by default about ten that matter most.
    """
    rows = [row for row in compare_reports(reports) if details or row.main]
    lines = [[f"  {row.part}" if row.part else row.quantity, *_cells(row, changes)] for row in rows]
    differing = [line for line in _settings(reports) if len(set(line[1:]) - {"-"}) > 1]
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
    names = shorten_names([report.name for report in having])
    columns = ["class", *(["IoU %", "accuracy %"] if single else [f"{name} IoU %" for name in names])]
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
    """Return what the figures of each report depend on: image size, batch, counter, and how it was evaluated."""
    flops = [report.flops for report in reports]
    lines = [
        ["image size", *("x".join(map(str, one.image_size)) for one in flops)],
        ["batch", *(str(one.batch) for one in flops)],
        ["counter", *(one.counter for one in flops)],
    ]
    for name in _union(report.datasets for report in reports):
        found = [report.datasets.get(name) for report in reports]
        lines.append([f"{name} images", *("-" if one is None else str(one.images) for one in found)])
        lines.append([f"{name} scored at", *("-" if one is None else _scored_at(one) for one in found)])
        lines.append([f"{name} mIoU over", *("-" if one is None else one.denominator for one in found)])
    devices = [report.latency for report in reports]
    lines.append(["timed on", *("-" if one is None else one.device for one in devices)])
    return lines


def _scored_at(result: DatasetResult) -> str:
    """Describe how the images of a dataset were scored."""
    own = result.inference
    sides = "x".join(str(side) for side in (own.short_side, own.long_side) if side is not None) or "own size"
    windows = f", windows {own.window}" if own.window else ""
    return f"{sides}{windows}{', flip' if own.flip else ''}"


def _rows(reports: Sequence[Report]) -> Iterator[Row]:
    yield from _param_rows(reports)
    yield from _mac_rows(reports)
    yield from _training_rows(reports)
    for name in _union(report.datasets for report in reports):
        found = [report.datasets.get(name) for report in reports]
        basis = tuple(None if one is None else (one.images, one.inference, one.denominator) for one in found)
        for quantity, read in _metrics(name, reports):
            main = quantity in (f"{name} mIoU", f"{name} mIoU novel", f"{name} PQ")
            yield Row(quantity, "", "%", tuple(_of(one, read) for one in found), basis, main)
    yield from _latency_rows([report.latency for report in reports])


def _param_rows(reports: Sequence[Report]) -> Iterator[Row]:
    parts = _union(report.params.components for report in reports)
    totals = tuple(report.params.total for report in reports)
    for kind in ("total", "nonzero", "trainable"):
        values = tuple(getattr(report.params, kind) for report in reports)
        yield Row(f"{kind} params", "", "params", values, main=kind != "nonzero" or values != totals)
        for part in parts if len(parts) > 1 and kind != "trainable" else []:
            inner = (getattr(report.params.components.get(part), kind, None) for report in reports)
            yield Row(f"{kind} params", part, "params", tuple(inner))
        if kind == "total":
            whole = tuple(report.params.with_clip for report in reports)
            yield Row("total params with all of CLIP", "", "params", whole, main=True)


def _mac_rows(reports: Sequence[Report]) -> Iterator[Row]:
    parts = _union(report.flops.components for report in reports)
    flops = [report.flops for report in reports]
    basis = tuple((one.image_size, one.batch, one.counter) for one in flops)
    for kind in ("dense", "effective"):
        macs = tuple(getattr(one, kind) for one in flops)
        yield Row(f"{kind} MACs", "", "MAC", macs, basis, kind == "dense" or macs != tuple(one.dense for one in flops))
        for part in parts if len(parts) > 1 else []:
            parted = tuple(getattr(one.components.get(part), kind, None) for one in flops)
            yield Row(f"{kind} MACs", part, "MAC", parted, basis)
        yield Row(f"{kind} FLOPs (2 x MAC)", "", "FLOP", tuple(2 * value for value in macs), basis)
    apart: dict[str, tuple[Value, ...]] = {
        "sampling and resizing MACs, apart": tuple(_of(one.resampling, lambda found: found.total) for one in flops),
        "text encoder MACs, once a vocabulary": tuple(_of(one.text_encoder, lambda found: found.macs) for one in flops),
        "dense MACs of its released code": tuple(_of(one.released, lambda found: found.dense) for one in flops),
    }
    for quantity, values in apart.items():
        once = quantity.startswith("text")  # of a vocabulary, whatever the image
        yield Row(quantity, "", "MAC", values, () if once else basis)


def _training_rows(reports: Sequence[Report]) -> Iterator[Row]:
    training = [report.training for report in reports]
    basis = tuple(report.flops.image_size for report in reports)
    for way in WAYS:
        steps = [getattr(one, way) for one in training]
        for part in ("total", "forward", "input_gradient", "weight_gradient"):
            shown = "" if part == "total" else part.replace("_", " ")
            values = tuple(getattr(step, part) for step in steps)
            main = way == "executed" and part == "total"
            yield Row(f"training MACs {TRAINING[way]}", shown, "MAC", values, basis, main)
    quantity = "matching MACs of training, once a segment, apart"
    yield Row(quantity, "", "MAC", tuple(one.matching for one in training), basis)
    for way in WAYS:
        runs = tuple(None if one.run is None else one.run.total(way) for one in training)
        yield Row(f"whole run {TRAINING[way]}", "", "MAC", runs, main=way == "executed")


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
    basis = tuple(None if one is None else (one.image_size, one.batch, one.device, one.threads) for one in found)
    counts = [None if "sparse" not in one else one["sparse"].sparse_layers for one in arms]
    known = {count for count in counts if count is not None}
    names = {"dense": "dense kernels", "sparse": "masked, on dense kernels" if known == {0} else "sparse kernels"}
    for arm in _union(arms):
        for attribute, label, unit in LATENCY:
            values = tuple(getattr(one.get(arm), attribute, None) for one in arms)
            yield Row(f"{names.get(arm, arm)}: {label}", "", unit, values, basis, attribute in _MAIN_LATENCY)
    yield Row("layers on sparse kernels", "", "layers", tuple(counts), main=bool(known))
    if known != {0}:  # else both times are of the same kernels, and their ratio is noise
        speedups = tuple(_of(one, lambda latency: latency.speedup) for one in found)
        yield Row("sparse kernels: times as fast as dense ones", "", "x", speedups, basis, main=True)


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


def _cells(row: Row, changes: bool) -> list[str]:
    texts = format_values(row.values, row.unit)
    notes = ["", *(_note(change, row.unit) if changes else "" for change in row.changes())]
    return [text + note for text, note in zip(texts, notes, strict=True)]


def format_values(values: Sequence[Value], unit: str) -> list[str]:
    """Format values for people, all with the prefix of the largest: `["2.169 M", "0.012 M"]`; "-" for None.

    Args:
        values: The values.
        unit: Their unit; counts have only a prefix, K, M, G, T or P.
    """
    largest = max((abs(value) for value in values if value is not None), default=0)
    factor, symbol = 1.0, unit if unit in ("x", "%", "J", "images/s") else ""
    if unit in _SCALED:
        scales = _SCALED[unit]
        fallback = (1.0, "") if unit != "s" else scales[-1]
        factor, symbol = next((scale for scale in scales if largest >= scale[0] * (1 - 0.5 * 10**-_DIGITS)), fallback)
        if unit == "bytes" and not symbol:
            symbol = "B"
    decimals = _DECIMALS.get(unit)
    return [
        "-" if value is None else f"{_digits(value / factor, decimals)} {symbol if value or decimals else ''}".strip()
        for value in values
    ]


def _digits(value: float, decimals: int | None) -> str:
    """Format a number with so many decimals; None for four significant digits, without a fraction if it is whole."""
    if decimals is not None:
        return f"{value:,.{decimals}f}"
    if not value or (value == int(value) and abs(value) < 1000):
        return f"{value:.0f}"
    rounded = float(f"{value:.{_DIGITS}g}")
    return f"{rounded:,.{max(0, _DIGITS - 1 - math.floor(math.log10(abs(rounded))))}f}"


def _note(change: float | None, unit: str) -> str:
    if change is None or not change:
        return ""
    if unit == "%":
        return f" ({change:+.2f})"
    if change >= _TIMES:
        return f" ({1 + change / 100:.3g} x)" if change < 1e5 else f" ({1 + change / 100:,.0f} x)"
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
