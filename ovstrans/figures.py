"""Plots: figures drawn off screen, in one look, saved atomically.

No pyplot and no global state: a figure is made, filled and saved, and works without a display.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ovstrans import files
from ovstrans.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, YELLOW, GREY, INK = "#56B4E9", "#CC79A7", "#F0E442", "#9AA0A6", "#202124"
COLORS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, INK)
"""Colours of series, in the order to use them."""

_SUFFIXES = (".png", ".pdf", ".svg")
_DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches, drawn by Agg and laid out without overlaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, *, grid: str = "y") -> None:
    """The house look of a plot: no box, a faint grid along `grid` ("x", "y", "both" or "")."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelsize=8)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color="#E3E5E8", linewidth=0.7)  # type: ignore[arg-type]


def picture_path(path: Path | str) -> Path:
    """The path, if its suffix is one that can be drawn; InputError otherwise."""
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path}: pictures end in {', '.join(_SUFFIXES)}; give such a name")
    return path


def save_figure(figure: Figure, path: Path | str) -> Path:
    """Write the figure atomically as PNG, PDF or SVG by its suffix; returns the path.

    The bytes depend on the figure alone: no date is written into the file.
    """
    path = picture_path(path)
    dateless = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}[path.suffix.lower()]
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), metadata=dateless or None)
    return path
