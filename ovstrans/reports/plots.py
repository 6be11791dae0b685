"""Plots of reports: mIoU over effective MACs, MACs layer by layer, and the parts of a training step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovstrans.costs.flops import LayerMacs
from ovstrans.costs.training_step import TrainingStep
from ovstrans.figures import BLUE, COLORS, GREY, INK, ORANGE, SKY, new_figure, save_figure, tidy
from ovstrans.reports.pages import SOURCE
from ovstrans.reports.plot_labels import Label, place_labels
from ovstrans.reports.report import Report, shorten_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

logger = logging.getLogger(__name__)

_COLUMNS = 2
_PALE = "#C9DDEC"
_STEPS = {"forward": BLUE, "input_gradient": SKY, "weight_gradient": ORANGE}
_WAYS = {"executed": "autograd", "sparse": "sparse engine", "published": "paper's formula"}


@dataclass(frozen=True)
class Plot:
    """A plot, not drawn yet.

    Attributes:
        name: Name of its file.
        width: Width in inches.
        height: Height in inches.
        fill: Draws it into an empty figure, or a part of one.
    """

    name: str
    width: float
    height: float
    fill: Callable[[FigureBase], None]

    def figure(self) -> Figure:
        """Draw the plot by itself."""
        figure = new_figure(self.width, self.height)
        self.fill(figure)
        return figure


def plot_reports(
    reports: Sequence[Report], *, folder: Path | str | None = None, page: Path | str | None = None
) -> list[Path]:
    """Write the plots that reports have the figures for.

    Args:
        reports: Reports of `bench`, with the figures of every layer (`per_layer=True`) for the plot of layers.
        folder: Folder for a file each: `miou.png`, `layers.png`, `training.png`.
        page: File for all of them on one page, instead of a folder.

    Returns:
        The paths of the files.
    """
    parts = make_plots(reports)
    if not any(part.name == "miou" for part in parts):
        logger.info("no mIoU to draw over MACs: name runs, checkpoints, or reports of some")
    if page is not None:
        return [save_figure(draw_page(parts), page)]
    place = Path(folder or ".")
    return [save_figure(part.figure(), place / f"{part.name}.png", source=SOURCE) for part in parts]


def make_plots(reports: Sequence[Report]) -> list[Plot]:
    """Return the plots that reports have the figures for: mIoU over MACs, layers, training."""
    return [plot for plot in (_tradeoff(reports), _layers(reports), _training(reports)) if plot is not None]


def draw_page(parts: Sequence[Plot]) -> Figure:
    """Draw plots one below the other, as one figure."""
    figure = new_figure(max(part.width for part in parts), sum(part.height for part in parts))
    rooms = figure.subfigures(len(parts), 1, height_ratios=[part.height for part in parts], squeeze=False)
    for part, room in zip(parts, rooms.flat, strict=True):
        rest = float(figure.get_figwidth()) - part.width
        part.fill(room.subfigures(1, 2, width_ratios=[part.width, rest])[0] if rest else room)
    return figure


def _tradeoff(reports: Sequence[Report]) -> Plot | None:
    """Plot mIoU over effective MACs, a panel each dataset (OpenTrans, Figure 1)."""
    names = list(dict.fromkeys(name for report in reports for name in _measured(report)))
    if not names:
        return None
    columns = min(_COLUMNS, len(names))
    lines = math.ceil(len(names) / columns)

    def fill(figure: FigureBase) -> None:
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            _tradeoff_panel(axes, [report for report in reports if name in _measured(report)], name)
        for axes in list(grid.flat)[len(names) :]:
            axes.set_visible(False)

    return Plot("miou", 5.6 * columns + 0.8, 4.2 * lines, fill)


def _tradeoff_panel(axes: Axes, reports: Sequence[Report], dataset: str) -> None:
    """Draw a mark each target, hollow if dense, and lines from a framework's best dense target to its masked ones.

    Lines join targets of one image size only.
    """
    tidy(axes, grid="both")
    points = [
        _Point(
            report.flops.effective / 1e9,
            report.datasets[dataset].miou or 0.0,
            report.flops.effective < report.flops.dense,
            title,
            _family(report),
            report.flops.image_size,
        )
        for report, title in zip(reports, _titles(reports), strict=True)
    ]
    families = list(dict.fromkeys(point.family for point in points))
    colors = {family: COLORS[number % len(COLORS)] for number, family in enumerate(families)}
    for family, color in colors.items():
        own = [point for point in points if point.family == family]
        for point in (point for point in own if point.masked):
            alike = [other for other in own if not other.masked and other.size == point.size]
            dense = max(alike, key=lambda other: other.y, default=None)
            if dense is not None:
                line = ([dense.x, point.x], [dense.y, point.y])
                axes.plot(*line, color=color, linewidth=0.9, alpha=0.45, zorder=1)
        axes.plot([], [], "o", color=color, markersize=6, label=family)
    for point in points:
        face = colors[point.family] if point.masked else "white"
        style: dict[str, Any] = {"markersize": 7, "markeredgewidth": 1.5, "markerfacecolor": face}
        axes.plot([point.x], [point.y], "o", color=colors[point.family], **style)
    for label, face in (("masked", INK), ("dense", "white")) if any(point.masked for point in points) else []:
        axes.plot([], [], "o", color=INK, markerfacecolor=face, markersize=5, label=label)
    axes.margins(0.2, 0.14)
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    axes.set_xlabel(f"effective GMAC{_sizes(reports)}", fontsize=8)
    axes.set_ylabel("mIoU, %", fontsize=8)
    axes.set_title(dataset, loc="left", fontsize=10, pad=20)
    columns = len(families) + 2
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=7, borderaxespad=0.2)
    place_labels(
        axes, [Label(point.x, point.y, point.title, colors[point.family], left=point.masked) for point in points]
    )


@dataclass(frozen=True)
class _Point:
    """A mark: effective GMAC, mIoU in percent, whether effective and dense MACs differ, and the image size."""

    x: float
    y: float
    masked: bool
    title: str
    family: str
    size: tuple[int, int]


def _layers(reports: Sequence[Report]) -> Plot | None:
    """Plot dense and effective MACs of every layer, a panel each target."""
    chosen = [report for report in reports if report.flops.layers]
    if not chosen:
        return None
    bars = [_bars(report) for report in chosen]
    most = max(map(len, bars))

    def fill(figure: FigureBase) -> None:
        panels = figure.subplots(len(chosen), 1, squeeze=False).flat
        titles = shorten_names([report.name for report in chosen])
        for axes, report, layers, title in zip(panels, chosen, bars, titles, strict=True):
            _layers_panel(axes, report, layers, title)

    return Plot("layers", max(7.6, 1.5 + 0.13 * most), 4.4 * len(chosen), fill)


_SMALL = 0.002
"""Layers with less than this share of all MACs share a bar per component."""


def _bars(report: Report) -> list[LayerMacs]:
    """Return the layers without the common prefix of their component's names, the small ones of each as one."""
    layers, least = report.flops.layers or (), _SMALL * report.flops.dense
    found: list[LayerMacs] = []
    for component in dict.fromkeys(layer.component for layer in layers):
        own = [layer for layer in layers if layer.component == component]
        prefix = _common_prefix([layer.name for layer in own])
        small = [layer for layer in own if layer.dense < least]
        if len(small) < 2:
            small = []
        found += [replace(layer, name=layer.name[len(prefix) :]) for layer in own if layer not in small]
        if small:
            dense, effective = sum(layer.dense for layer in small), sum(layer.effective for layer in small)
            found.append(LayerMacs(f"{len(small)} small ones", component, dense, effective))
    return found


def _common_prefix(names: Sequence[str]) -> str:
    """Return the leading parts that several dotted names share, with the dot; "" for a single name."""
    begin = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(names) == 1 or len(set(parts)) > 1:
            break
        begin.append(f"{parts[0]}.")
    return "".join(begin)


def _layers_panel(axes: Axes, report: Report, layers: Sequence[LayerMacs], title: str) -> None:
    tidy(axes)
    places = range(len(layers))
    axes.bar(places, [layer.dense / 1e9 for layer in layers], width=0.85, color=_PALE, label="dense")
    axes.bar(places, [layer.effective / 1e9 for layer in layers], width=0.85, color=BLUE, label="effective")
    axes.set_xticks(places, [layer.name for layer in layers], rotation=90, fontsize=5.5)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.8, len(layers) - 0.2)
    axes.set_ylabel("GMAC", fontsize=8)
    top = axes.get_ylim()[1]
    for start, end, component in _runs([layer.component for layer in layers]):
        axes.axvline(end + 0.5, color="#E3E5E8", linewidth=0.8, zorder=0)
        if end - start >= 0.02 * len(layers):
            axes.text((start + end) / 2, top, component, ha="center", va="bottom", fontsize=7, color=GREY)
    flops = report.flops
    totals = f"{_giga(flops.dense)} GMAC dense, {_giga(flops.effective)} effective{_sizes([report])}"
    axes.set_title(f"{title}: {totals}", loc="left", fontsize=9, pad=16)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.05), ncols=2, frameon=False, fontsize=7, borderaxespad=0)


def _training(reports: Sequence[Report]) -> Plot | None:
    """Plot the MACs of a training step per image, split into forward, input and weight gradients."""
    bars: list[tuple[str, str, TrainingStep]] = [
        (title, label, getattr(report.training, way))
        for report, title in zip(reports, _titles(reports), strict=True)
        for way, label in _WAYS.items()
    ]
    if not bars:
        return None

    def fill(figure: FigureBase) -> None:
        axes = figure.subplots()
        tidy(axes, grid="x")
        ends = [0.0] * len(bars)
        for step, color in _STEPS.items():
            values = [getattr(bar, step) / 1e9 for *_, bar in bars]
            axes.barh(range(len(bars)), values, left=ends, height=0.7, color=color, label=step.replace("_", " "))
            ends = [end + value for end, value in zip(ends, values, strict=True)]
        for place, end in enumerate(ends):
            axes.annotate(
                _giga(1e9 * end), (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7
            )
        axes.set_yticks(range(len(bars)), [f"{title}, {label}" for title, label, _ in bars], fontsize=7.5)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.08)
        axes.set_xlabel(f"GMAC of a training step, an image{_sizes(reports)}", fontsize=8)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=7.5, borderaxespad=0.2)

    return Plot("training", 7.6, 1.1 + 0.3 * len(bars), fill)


def _measured(report: Report) -> list[str]:
    """Return the datasets that a report has an mIoU on."""
    return [name for name, result in report.datasets.items() if result.miou is not None]


def _family(report: Report) -> str:
    return report.target.framework or report.name


def _titles(reports: Sequence[Report]) -> list[str]:
    """Return the short names of reports, with their image sizes if these differ."""
    names = shorten_names([report.name for report in reports])
    if _sizes(reports):
        return names
    return [f"{name}, {_sizes([report]).removeprefix(' at ')}" for name, report in zip(names, reports, strict=True)]


def _sizes(reports: Sequence[Report]) -> str:
    """Return ` at 800x1216` if all reports are of one size, else ""."""
    sizes = {"x".join(map(str, report.flops.image_size)) for report in reports}
    return f" at {sizes.pop()}" if len(sizes) == 1 else ""


def _runs(values: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return first and last index, and the value, of every run of equal values."""
    runs: list[tuple[int, int, str]] = []
    for place, value in enumerate(values):
        if runs and runs[-1][2] == value:
            runs[-1] = (runs[-1][0], place, value)
        else:
            runs.append((place, place, value))
    return runs


def _giga(macs: float) -> str:
    """Format GMAC with one decimal; for small models with three significant digits."""
    giga = macs / 1e9
    return f"{giga:,.1f}" if giga >= 10 or not giga else f"{giga:.3g}"
