"""Plots of an analysis: alpha of every layer with the frozen ones marked, and spectra of single layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ovstrans.clip.layers import stage_name
from ovstrans.errors import InputError
from ovstrans.figures import BLUE, GREY, INK, ORANGE, RED, new_figure, tidy
from ovstrans.spectrum import esd
from ovstrans.spectrum.analysis import Analysis, LayerAlpha

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS_PER_DECADE = 12
_COLUMNS = 4
# Alphas beyond this many times the 90th percentile would flatten all others, and are drawn at the upper edge.
_FAR = 2.0


def draw_alphas(analysis: Analysis) -> Figure:
    """Draw alpha of each layer with its standard error, filled where the plan freezes the layer."""
    layers, plan = analysis.layers, analysis.default_plan
    frozen, planned = analysis.rows_of(plan.frozen), analysis.rows_of(analysis.candidates)
    figure = new_figure(max(7.0, 2.0 + 0.19 * len(layers)), 4.8)
    axes = figure.add_subplot()
    tidy(axes)
    top = _upper_limit([layer.alpha for layer in layers if layer.alpha is not None])
    groups: tuple[tuple[str, str, str, str, Callable[[str], bool]], ...] = (
        ("frozen", BLUE, BLUE, "o", lambda name: name in frozen),
        ("trains", ORANGE, "white", "o", lambda name: name in planned and name not in frozen),
        ("not in the plan", GREY, "white", "s", lambda name: name not in planned and name not in frozen),
    )
    for label, color, face, marker, chosen in groups:
        rows = [(x, row) for x, row in enumerate(layers) if chosen(row.name) and row.alpha is not None]
        _points(axes, rows, top, label, color, face, marker)
    missing = [x for x, layer in enumerate(layers) if layer.alpha is None]
    if missing:
        axes.plot(
            missing, [1.0] * len(missing), "x", color=RED, markersize=6, label=f"no alpha, trains ({len(missing)})"
        )
    threshold = plan.threshold
    if threshold is not None and threshold <= top:
        label = f"{plan.rule}: {threshold:.3g}"
        axes.axhline(threshold, color=INK, linewidth=0.9, linestyle="--", label=label, zorder=1)
    axes.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=90, fontsize=6.5)
    axes.set_xlim(-0.8, len(layers) - 0.2)
    axes.set_ylim(0.9, top)
    axes.set_ylabel("alpha")
    for end in _stage_ends(layers):
        axes.axvline(end, color="#E3E5E8", linewidth=0.8, zorder=0)
    model = analysis.model or "model"
    title = f"{model}: power-law exponent of each layer (xmin: {analysis.settings.get('xmin', '?')})"
    axes.set_title(title, loc="left", fontsize=10, pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, fontsize=8, borderaxespad=0.2)
    return figure


def draw_spectra(analysis: Analysis, names: Sequence[str]) -> Figure:
    """Draw the density of the eigenvalues of some layers on logarithmic axes, with the fitted power laws.

    Args:
        analysis: An analysis that has its spectra: one made by `analyze`, not read from a file.
        names: Names of the layers.

    Raises:
        InputError: A layer has no spectrum in the analysis.
    """
    rows = {layer.name: layer for layer in analysis.layers}
    for name in names:
        if name not in rows or name not in analysis.spectra:
            known = ", ".join(analysis.spectra) or "none, the analysis was read from a file"
            raise InputError(f"layer {name!r}: the analysis has no spectrum of it; it has those of {known}")
    columns = min(_COLUMNS, math.ceil(len(names) ** 0.5))
    lines = math.ceil(len(names) / columns)
    figure = new_figure(max(4.6, 3.3 * columns), 2.9 * lines + 0.3)
    frozen = analysis.rows_of(analysis.default_plan.frozen)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        relative, absolute = analysis.settings.get("relative_cut"), analysis.settings.get("cut")
        cut = esd.Cut(absolute if absolute is not None else esd.ABSOLUTE_CUT, relative)
        _spectrum(axes, rows[name], esd.above_cut(analysis.spectra[name], cut), name in frozen)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("eigenvalue", fontsize=9)
    figure.supylabel("density", fontsize=9)
    return figure


def _points(
    axes: Axes,
    rows: Sequence[tuple[int, LayerAlpha]],
    top: float,
    label: str,
    color: str,
    face: str,
    marker: str,
) -> None:
    inside = [(x, row.alpha, row.sigma or 0.0) for x, row in rows if row.alpha is not None and row.alpha < top]
    style: dict[str, Any] = {"color": color, "markerfacecolor": face, "markeredgewidth": 1.3}
    if inside:
        axes.errorbar(
            [x for x, _, _ in inside],
            [alpha for _, alpha, _ in inside],
            yerr=[sigma for _, _, sigma in inside],
            fmt=marker,
            markersize=5.5,
            elinewidth=0.9,
            label=f"{label} ({len(rows)})",
            **style,
        )
    for x, row in rows:
        if row.alpha is not None and row.alpha >= top:
            axes.plot([x], [top * 0.985], "^", markersize=6, **style)
            axes.annotate(
                f"{row.alpha:.3g}",
                (x, top * 0.96),
                fontsize=7,
                color=color,
                ha="center",
                va="top",
            )


def _spectrum(axes: Axes, layer: LayerAlpha, values: np.ndarray, frozen: bool) -> None:
    from matplotlib.ticker import NullFormatter

    tidy(axes, grid="both")
    note = f"{layer.name}{' (frozen)' if frozen else ''}"
    axes.set_title(note, loc="left", fontsize=8, color=BLUE if frozen else INK)
    if len(values) < 2 or values[0] == values[-1]:
        axes.text(0.5, 0.5, layer.warning or "no spectrum", ha="center", transform=axes.transAxes, fontsize=7)
        return
    decades = math.log10(values[-1] / values[0])
    edges = np.geomspace(values[0], values[-1], _bins(len(values), decades))
    heights, _ = np.histogram(values, bins=edges, density=True)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.tick_params(which="minor", color=GREY, labelsize=6)
    if math.floor(math.log10(values[-1])) > math.floor(math.log10(values[0])):  # a power of ten is labelled
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.stairs(heights, edges, fill=True, color="#C9DDEC", baseline=heights[heights > 0].min() / 3)
    axes.stairs(heights, edges, color=BLUE, linewidth=0.9, baseline=None)
    if layer.alpha is None or layer.xmin is None or layer.n_tail is None:
        axes.text(0.5, 0.5, layer.warning or "", ha="center", transform=axes.transAxes, fontsize=7)
        return
    x = np.geomspace(layer.xmin, values[-1], 50)
    share = layer.n_tail / len(values)
    density = share * (layer.alpha - 1) / layer.xmin * (x / layer.xmin) ** -layer.alpha
    axes.plot(x, density, color=RED, linewidth=1.6)
    axes.axvline(layer.xmin, color=RED, linewidth=0.8, linestyle="--")
    axes.set_ylim(heights[heights > 0].min() / 3, heights.max() * 6)
    text = f"alpha {layer.alpha:.2f} ± {layer.sigma or 0:.2f}\nD {layer.D:.3f}\ntail {layer.n_tail} of {len(values)}"
    axes.text(
        0.98,
        0.97,
        text,
        transform=axes.transAxes,
        fontsize=7.5,
        ha="right",
        va="top",
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )


def _bins(count: int, decades: float) -> int:
    """Return the number of bin edges that a histogram of so many eigenvalues can have."""
    return round(min(max(_BINS_PER_DECADE * decades, 8), 3 * float(count**0.5), 80)) + 1


def _upper_limit(alphas: Sequence[float]) -> float:
    if not alphas:
        return 2.0
    return min(1.08 * max(alphas), _FAR * float(np.quantile(alphas, 0.9)))


def _stage_ends(layers: Sequence[LayerAlpha]) -> list[float]:
    """Return the positions between layers of different stages."""
    pairs = pairwise(layers)
    return [x + 0.5 for x, (one, next_one) in enumerate(pairs) if stage_name(one.name) != stage_name(next_one.name)]
