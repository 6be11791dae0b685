"""Pictures of reports: mIoU over effective MACs, MACs layer by layer, and what a training step is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovstrans.figures import BLUE, COLORS, GREY, INK, ORANGE, SKY, new_figure, tidy
from ovstrans.reports.plot_labels import Label, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

Report = Mapping[str, Any]

_COLUMNS = 2
_PALE = "#C9DDEC"
_STEPS = {"forward": BLUE, "input_gradient": SKY, "weight_gradient": ORANGE}
_KINDS = {"executed": "autograd", "sparse": "sparse engine", "published": "paper's formula"}


@dataclass(frozen=True)
class Picture:
    """name: of its file.  width, height: inches.  fill: draws it into an empty figure, or part of one."""

    name: str
    width: float
    height: float
    fill: Callable[[FigureBase], None]

    def figure(self) -> Figure:
        """The picture by itself."""
        figure = new_figure(self.width, self.height)
        self.fill(figure)
        return figure


def pictures(reports: Sequence[Report]) -> list[Picture]:
    """Those that the reports have the figures for: mIoU over MACs, layers, training."""
    return [picture for picture in (_tradeoff(reports), _layers(reports), _training(reports)) if picture is not None]


def page(parts: Sequence[Picture]) -> Figure:
    """Pictures one below the other, as one figure."""
    figure = new_figure(max(part.width for part in parts), sum(part.height for part in parts))
    rooms = figure.subfigures(len(parts), 1, height_ratios=[part.height for part in parts], squeeze=False)
    for part, room in zip(parts, rooms.flat, strict=True):
        rest = float(figure.get_figwidth()) - part.width
        part.fill(room.subfigures(1, 2, width_ratios=[part.width, rest])[0] if rest else room)
    return figure


def _tradeoff(reports: Sequence[Report]) -> Picture | None:
    """mIoU over effective MACs, a panel a dataset (OpenTrans, Figure 1)."""
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

    return Picture("miou", 5.6 * columns + 0.8, 4.2 * lines, fill)


def _tradeoff_panel(axes: Axes, reports: Sequence[Report], dataset: str) -> None:
    """Hollow marks are dense, full ones masked; a line leads from a framework's best dense one to its masked ones."""
    tidy(axes, grid="both")
    points = [
        _Point(
            report["flops"]["effective"] / 1e9,
            report["datasets"][dataset]["mIoU"],
            report["flops"]["effective"] < report["flops"]["dense"],
            title,
            _family(report),
        )
        for report, title in zip(reports, _titles(reports), strict=True)
    ]
    families = list(dict.fromkeys(point.family for point in points))
    colors = {family: COLORS[number % len(COLORS)] for number, family in enumerate(families)}
    for family, color in colors.items():
        own = [point for point in points if point.family == family]
        dense = max((point for point in own if not point.masked), key=lambda point: point.y, default=None)
        for point in own if dense is not None else []:
            if point.masked:
                line = ([dense.x, point.x], [dense.y, point.y])  # type: ignore[union-attr]
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
    """x: effective GMAC.  y: mIoU.  masked: whether the two kinds of MAC differ."""

    x: float
    y: float
    masked: bool
    title: str
    family: str


def _layers(reports: Sequence[Report]) -> Picture | None:
    """Dense and effective MACs of every layer, a panel a target."""
    chosen = [report for report in reports if report["flops"].get("layers")]
    if not chosen:
        return None
    bars = [_bars(report) for report in chosen]
    most = max(map(len, bars))

    def fill(figure: FigureBase) -> None:
        panels = figure.subplots(len(chosen), 1, squeeze=False).flat
        for axes, report, layers, title in zip(panels, chosen, bars, _titles(chosen), strict=True):
            _layers_panel(axes, report, layers, title)

    return Picture("layers", max(7.6, 1.5 + 0.13 * most), 4.4 * len(chosen), fill)


_SMALL = 0.002
"""Layers with less than this share of all MACs are one bar a component."""


def _bars(report: Report) -> list[dict[str, Any]]:
    """The layers, their names without what all of a component begin with; the small ones of each as one."""
    layers, least = report["flops"]["layers"], _SMALL * report["flops"]["dense"]
    found: list[dict[str, Any]] = []
    for component in dict.fromkeys(layer["component"] for layer in layers):
        own = [layer for layer in layers if layer["component"] == component]
        begin = _common([layer["name"] for layer in own])
        small = [layer for layer in own if layer["dense"] < least]
        if len(small) < 2:
            small = []
        found += [{**layer, "name": layer["name"][len(begin) :]} for layer in own if layer not in small]
        if small:
            sums = {kind: sum(layer[kind] for layer in small) for kind in ("dense", "effective")}
            found.append({"name": f"{len(small)} small ones", "component": component, **sums})
    return found


def _common(names: Sequence[str]) -> str:
    """The parts that several dotted names all begin with, and the dot; nothing of a single name."""
    begin = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(names) == 1 or len(set(parts)) > 1:
            break
        begin.append(f"{parts[0]}.")
    return "".join(begin)


def _layers_panel(axes: Axes, report: Report, layers: Sequence[Mapping[str, Any]], title: str) -> None:
    tidy(axes)
    places = range(len(layers))
    axes.bar(places, [layer["dense"] / 1e9 for layer in layers], width=0.85, color=_PALE, label="dense")
    axes.bar(places, [layer["effective"] / 1e9 for layer in layers], width=0.85, color=BLUE, label="effective")
    axes.set_xticks(places, [layer["name"] for layer in layers], rotation=90, fontsize=5.5)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.8, len(layers) - 0.2)
    axes.set_ylabel("GMAC", fontsize=8)
    top = axes.get_ylim()[1]
    for start, end, component in _runs([layer["component"] for layer in layers]):
        axes.axvline(end + 0.5, color="#E3E5E8", linewidth=0.8, zorder=0)
        if end - start >= 0.02 * len(layers):
            axes.text((start + end) / 2, top, component, ha="center", va="bottom", fontsize=7, color=GREY)
    flops = report["flops"]
    totals = f"{_giga(flops['dense'])} GMAC dense, {_giga(flops['effective'])} effective{_sizes([report])}"
    axes.set_title(f"{title}: {totals}", loc="left", fontsize=9, pad=16)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.05), ncols=2, frameon=False, fontsize=7, borderaxespad=0)


def _training(reports: Sequence[Report]) -> Picture | None:
    """MACs of a training step, an image, split into forward, input and weight gradients."""
    bars = [
        (title, label, report["training"][kind])
        for report, title in zip(reports, _titles(reports), strict=True)
        for kind, label in _KINDS.items()
        if "weight_gradient" in (report.get("training", {}).get(kind) or {})
    ]
    if not bars:
        return None

    def fill(figure: FigureBase) -> None:
        axes = figure.subplots()
        tidy(axes, grid="x")
        ends = [0.0] * len(bars)
        for step, color in _STEPS.items():
            values = [bar[step] / 1e9 for *_, bar in bars]
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

    return Picture("training", 7.6, 1.1 + 0.3 * len(bars), fill)


def _measured(report: Report) -> list[str]:
    """The datasets that a report has an mIoU on."""
    return [name for name, entry in report.get("datasets", {}).items() if entry.get("mIoU") is not None]


def _family(report: Report) -> str:
    return str(report["target"].get("framework") or report["target"]["name"])


def _titles(reports: Sequence[Report]) -> list[str]:
    """Short names: the last part of a path, where that tells the targets apart."""
    names = [str(report["target"]["name"]) for report in reports]
    paths = [Path(name) for name in names]
    short = [path.parent.name or path.name if path.name == "checkpoint.safetensors" else path.name for path in paths]
    return short if len(set(short)) == len(short) else names


def _sizes(reports: Sequence[Report]) -> str:
    """` at 800x1216`, where all are of one size."""
    sizes = {"x".join(map(str, report["flops"]["image_size"])) for report in reports}
    return f" at {sizes.pop()}" if len(sizes) == 1 else ""


def _runs(values: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first, last, value) of every stretch of equal values."""
    runs: list[tuple[int, int, str]] = []
    for place, value in enumerate(values):
        if runs and runs[-1][2] == value:
            runs[-1] = (runs[-1][0], place, value)
        else:
            runs.append((place, place, value))
    return runs


def _giga(macs: float) -> str:
    """GMAC: one decimal, and of small models so many that three digits show."""
    giga = macs / 1e9
    return f"{giga:,.1f}" if giga >= 10 or not giga else f"{giga:.3g}"
