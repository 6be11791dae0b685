"""The heat map of a confusion matrix, with a list of the worst mistakes.

Shapes: `K` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ovstrans.errors import InputError
from ovstrans.evaluation.metrics import ConfusionMatrix
from ovstrans.figures import (
    GREY,
    INK,
    RED,
    drawable_names,
    new_figure,
    picture_path,
    save_figure,
    text_columns,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMALLEST, _LARGEST, _CELL = 3.2, 13.0, 0.3
_POINTS = 72
_NAME_POINTS, _LEAST_NAME_POINTS = 9.0, 4.5
_WRITTEN_CLASSES = 40
_LISTED, _LINE = 20, 0.21
_GAMMA = 0.4
_LETTERS = 24
_LEAST_RING = 5.0
_ABSENT = "#ECEDEF"
_STEPS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
_LOW_SHARE = 0.005


@dataclass(frozen=True)
class Mistake:
    """Pixels of one class that were predicted as another.

    Attributes:
        truth: Index of the true class.
        predicted: Index of the predicted class.
        pixels: Number of pixels.
        share: Fraction of all pixels of the true class, 0 to 1.
    """

    truth: int
    predicted: int
    pixels: int
    share: float


def worst_mistakes(confusion: ConfusionMatrix | Tensor, limit: int) -> list[Mistake]:
    """Return the pairs of different classes with the most wrong pixels, worst first, at most `limit`."""
    counts = _counts(confusion)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    total = counts.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(cell), len(counts)) for cell in order]
    return [
        Mistake(truth, predicted, int(wrong[truth, predicted]), float(wrong[truth, predicted] / total[truth]))
        for truth, predicted in pairs
        if wrong[truth, predicted]
    ]


def save_confusion(
    path: Path | str, confusion: ConfusionMatrix | Tensor, names: Sequence[str], *, title: str = "", source: str = ""
) -> Path:
    """Write the heat map as PNG, PDF or SVG by the suffix, atomically; see `draw_confusion`. Return the path.

    `source` is recorded in a PNG.
    """
    picture_path(path)
    return save_figure(draw_confusion(confusion, names, title=title), path, source=source)


def draw_confusion(confusion: ConfusionMatrix | Tensor, names: Sequence[str], *, title: str = "") -> Figure:
    """Draw the heat map of a confusion matrix, with a list of the worst mistakes beside it.

    A row is a true class, a cell the fraction of its pixels that was predicted as the column's class. The colour scale
    is stretched at its lower end, so that small fractions can be seen. Rows of classes that do not occur are grey. If
    they fit, the cells have numbers and the axes names; otherwise the listed cells have rings, and the axes indices.

    Args:
        confusion: The matrix, or its counts [K, K].
        names: Names of the K classes.
        title: Title of the plot.

    Raises:
        InputError: If the number of names is not K.
    """
    counts = _counts(confusion)
    if len(names) != len(counts):
        raise InputError(f"{len(names)} names for a confusion matrix of {len(counts)} classes; give one a class")
    short = [_shortened(name) for name in drawable_names(tuple(names))]
    side = min(max(_SMALLEST, _CELL * len(counts)), _LARGEST)
    points = min(_NAME_POINTS, 0.85 * side * _POINTS / len(counts))
    named = points >= _LEAST_NAME_POINTS
    margin = 0.6 + (max(map(text_columns, short)) * points * 0.6 / _POINTS if named else 0.0)
    listing = 4.8
    height = max(side + margin + 0.5, _LINE * _LISTED + 1.0)
    mistakes = worst_mistakes(confusion, int((height - 1.0) / _LINE))
    figure = new_figure(side + margin + 0.8 + listing, height)
    grid = figure.add_gridspec(1, 2, width_ratios=[side + margin + 0.8, listing])
    axes = figure.add_subplot(grid[0])
    _heat(figure, axes, counts)
    if len(counts) > _WRITTEN_CLASSES:
        _ring(axes, mistakes, side * _POINTS / len(counts))
    _ticks(axes, short, points if named else None)
    axes.set_title(title or "Confusion", loc="left", fontsize=11, parse_math=False)
    _list_mistakes(figure.add_subplot(grid[1]), mistakes, short, int(counts.sum() - counts.trace()))
    return figure


def _heat(figure: Figure, axes: Axes, counts: np.ndarray) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    total = counts.sum(axis=1, keepdims=True)
    share = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
    norm = PowerNorm(_GAMMA, vmin=0, vmax=1)
    image = axes.imshow(
        np.ma.masked_invalid(share),
        cmap=colormaps["Blues"].with_extremes(bad=_ABSENT),
        norm=norm,
        interpolation="nearest",
    )
    axes.set_xlabel("predicted class", fontsize=9)
    axes.set_ylabel("true class (a row adds up to 100 %)", fontsize=9)
    axes.spines[:].set_color(GREY)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.015, ticks=[0, *_STEPS])
    bar.ax.set_yticklabels([f"{100 * step:g} %" for step in (0, *_STEPS)], fontsize=7)
    bar.outline.set_edgecolor(GREY)
    if len(counts) > _WRITTEN_CLASSES:
        return
    for row, column in np.argwhere(share >= _LOW_SHARE):
        color = "white" if norm(share[row, column]) > 0.6 else INK
        text = f"{100 * share[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


def _ticks(axes: Axes, names: Sequence[str], points: float | None) -> None:
    if points is None:
        axes.tick_params(labelsize=7, color=GREY)
        return
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, fontsize=points)
    axes.set_yticks(places, names, fontsize=points)
    axes.tick_params(length=1.5, pad=1.5, color=GREY)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)


def _ring(axes: Axes, mistakes: Sequence[Mistake], cell: float) -> None:
    """Draw rings around the cells of the listed mistakes, of the size of a cell (in points) but large enough to see."""
    rows, columns = [mistake.truth for mistake in mistakes], [mistake.predicted for mistake in mistakes]
    diameter = max(1.1 * cell, _LEAST_RING)
    axes.scatter(columns, rows, s=diameter**2, facecolors="none", edgecolors=RED, linewidths=0.7)


def _list_mistakes(axes: Axes, mistakes: Sequence[Mistake], names: Sequence[str], wrong: int) -> None:
    """Draw bars of the worst mistakes: their fraction of all wrong pixels, and as text that of the true class."""
    if not mistakes:
        axes.set_axis_off()
        axes.text(0, 1, "no wrong pixel", fontsize=9, va="top", transform=axes.transAxes)
        return
    tidy(axes, grid="x")
    parts = [100 * mistake.pixels / wrong for mistake in mistakes]
    axes.barh(range(len(mistakes)), parts, color=RED, height=0.62)
    for row, (mistake, part) in enumerate(zip(mistakes, parts, strict=True)):
        note = f" {_percent(mistake.share)} of {names[mistake.truth]}"
        axes.text(part, row, note, va="center", fontsize=7, color=INK, parse_math=False)
    axes.set_yticks(range(len(mistakes)), [f"{names[m.truth]} → {names[m.predicted]}" for m in mistakes], fontsize=7.5)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    # room on the right for the words, and as many rows as the list could have
    axes.set_xlim(0, 1.9 * max(parts))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= max(parts)])
    axes.set_ylim(max(_LISTED, len(mistakes)) - 0.4, -0.6)
    axes.set_xlabel("% of all wrong pixels", fontsize=8)
    axes.set_title("Worst mistakes: true → predicted", loc="left", fontsize=9)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _counts(confusion: ConfusionMatrix | Tensor) -> np.ndarray:
    counts = confusion.counts if isinstance(confusion, ConfusionMatrix) else confusion
    return counts.cpu().numpy()


def _shortened(name: str) -> str:
    if text_columns(name) <= _LETTERS:
        return name
    while text_columns(name) > _LETTERS - 1:
        name = name[:-1]
    return name.rstrip(" ,") + "…"
