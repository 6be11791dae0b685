"""Figures of matplotlib: one look for all plots, drawn without a display, saved atomically.

Neither pyplot nor its global state is used.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ovstrans import files
from ovstrans.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: colour-blind readers can tell its colours apart, also when printed in grey.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, YELLOW, GREY, INK = "#56B4E9", "#CC79A7", "#F0E442", "#9AA0A6", "#202124"
COLORS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, INK)
"""Colours of data series, in the order to use them."""

_SUFFIXES = (".png", ".pdf", ".svg")
_DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, drawn by Agg and laid out without overlaps.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, *, grid: str = "y") -> None:
    """Give a plot the look of all: no box around it, and a faint grid.

    Args:
        axes: The plot.
        grid: Axis that the grid lines mark: "x", "y", "both", or "" for no grid.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelsize=8)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color="#E3E5E8", linewidth=0.7)  # type: ignore[arg-type]


def picture_path(path: Path | str) -> Path:
    """Return the path if a figure can be saved under it.

    Raises:
        InputError: Its suffix is none of .png, .pdf and .svg.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path}: a picture's name ends in {', '.join(_SUFFIXES)}; give such a name")
    return path


def save_figure(figure: Figure, path: Path | str) -> Path:
    """Write a figure atomically as PNG, PDF or SVG.

    The bytes depend on the figure alone: no date is written into the file.

    Args:
        figure: The figure.
        path: The file to write; its suffix chooses the format.

    Returns:
        The path.

    Raises:
        InputError: The suffix is unknown, or the file cannot be written.
    """
    path = picture_path(path)
    dateless = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}[path.suffix.lower()]
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), metadata=dateless or None)
    return path


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG, for the display of a notebook."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
