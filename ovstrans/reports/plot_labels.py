"""Labels beside the marks of a plot, placed where they overlap least with marks and other labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovstrans.figures import text_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FONT = 7.0
_LETTER = (0.56, 1.3)
"""Width and height of a letter, relative to the font size."""
_MARK = 9.0
"""Size of a mark, in points."""
_PLACES = (("left", "center", 8, 0), ("right", "center", -8, 0), ("center", "bottom", 0, 6), ("center", "top", 0, -6))
"""Positions of a label, the best first: alignment, and distance from the mark in points."""


@dataclass(frozen=True)
class Label:
    """A label.

    Attributes:
        x: Position of the mark, in data coordinates.
        y: The same.
        text: Text.
        color: Color of the text.
        left: Prefer the left side of the mark to the right.
    """

    x: float
    y: float
    text: str
    color: str
    left: bool = False


@dataclass(frozen=True)
class Box:
    """A rectangle, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area of the intersection with another box."""
        across = min(self.right, other.right) - max(self.left, other.left)
        along = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, across) * max(0.0, along)

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.top - self.bottom)


def aligned(x: float, y: float, size: tuple[float, float], across: str, along: str) -> Box:
    """Return a box of (width, height) whose left, right or center, and bottom, top or center, is at (x, y)."""
    left = x - {"left": 0.0, "center": 0.5, "right": 1.0}[across] * size[0]
    bottom = y - {"bottom": 0.0, "center": 0.5, "top": 1.0}[along] * size[1]
    return Box(left, bottom, left + size[0], bottom + size[1])


def place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Draw every label beside its mark. The limits of the axes must be final."""
    extent, dots = axes.get_window_extent(), axes.get_figure().dpi  # type: ignore[union-attr]
    room = Box(0, 0, extent.width / dots * 72, extent.height / dots * 72)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    spots = [
        ((label.x - left) / (right - left) * room.right, (label.y - bottom) / (top - bottom) * room.top)
        for label in labels
    ]
    taken = [aligned(x, y, (_MARK, _MARK), "center", "center") for x, y in spots]
    for label, (x, y) in zip(labels, spots, strict=True):
        size = (_LETTER[0] * _FONT * text_columns(label.text), _LETTER[1] * _FONT)
        boxes = [aligned(x + dx, y + dy, size, across, along) for across, along, dx, dy in _PLACES]
        costs = [box.area - box.overlap(room) + sum(box.overlap(other) for other in taken) for box in boxes]
        order = (1, 0, 2, 3) if label.left else (0, 1, 2, 3)
        best = min(order, key=lambda number: costs[number])
        taken.append(boxes[best])
        across, along, dx, dy = _PLACES[best]
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha=across,
            va=along,
            fontsize=_FONT,
            color=label.color,
        )
