"""A contact sheet: images of a dataset side by side, the names of their classes on the segments.

Shapes: `H W` image.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ovstrans.datasets.overlay import FADED, INK, PAPER, font, legend, overlay, photograph
from ovstrans.datasets.sample import Dataset, Sample
from ovstrans.errors import InputError
from ovstrans.files import atomic_path

_COLUMNS, _CELL = 4, 300
"""Images in a row, and their width; each above its labels."""
_MARGIN, _GAP, _TITLE, _NOTE = 24, 12, 22, 13
_TALLEST = 1.5


def save_sheet(path: Path | str, samples: Iterable[Sample], dataset: Dataset, *, title: str = "") -> Path:
    """Write the sheet as a PNG, atomically; returns the path. dataset: whose vocabulary the labels are in."""
    picture = draw_sheet(samples, dataset, title=title)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    return Path(path)


def draw_sheet(samples: Iterable[Sample], dataset: Dataset, *, title: str = "") -> Image.Image:
    """Images above their label maps, four a row, a legend below; InputError where there is no image."""
    cells, classes = [], set()
    for sample in samples:
        cells.append(_cell(sample, dataset))
        if sample.label is not None:
            classes |= set(np.unique(sample.label.numpy()).tolist()) - {dataset.ignore}
    if not cells:
        raise InputError(f"{dataset.name}:{dataset.split}: no image to show")
    columns = min(_COLUMNS, len(cells))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    width = 2 * _MARGIN + columns * _CELL + (columns - 1) * _GAP
    key = legend([(index, "") for index in sorted(classes)], dataset.vocabulary, width - 2 * _MARGIN)
    top = _MARGIN + (_TITLE + 18 if title else 0)
    heights = [max(cell.height for cell in row) + _GAP for row in rows]
    page = Image.new("RGB", (width, top + sum(heights) + key.height + _MARGIN), PAPER)
    if title:
        ImageDraw.Draw(page).text((_MARGIN, _MARGIN), title, font=font(_TITLE, bold=True), fill=INK)
    for row, height in zip(rows, heights, strict=True):
        for place, cell in enumerate(row):
            page.paste(cell, (_MARGIN + place * (_CELL + _GAP), top))
        top += height
    page.paste(key, (_MARGIN, top))
    return page


def _cell(sample: Sample, dataset: Dataset) -> Image.Image:
    """An image, its labels below, its name below these."""
    rows, columns = (int(side) for side in sample.image.shape[1:])
    height = round(_CELL * min(rows / columns, _TALLEST))
    size = (max(1, round(columns * height / rows)), height)
    parts = [photograph(sample.image, size)]
    if sample.label is not None:
        parts.append(overlay(sample.image, sample.label, dataset.vocabulary, ignore=dataset.ignore, size=size))
    cell = Image.new("RGB", (_CELL, len(parts) * (height + 3) + _NOTE + 8), PAPER)
    for place, part in enumerate(parts):
        cell.paste(part, ((_CELL - size[0]) // 2, place * (height + 3)))
    draw, text = ImageDraw.Draw(cell), sample.name
    while len(text) > 1 and draw.textlength(text, font=font(_NOTE)) > _CELL:
        text = "…" + text[2:]
    draw.text((0, cell.height - _NOTE - 5), text, font=font(_NOTE), fill=FADED)
    return cell


def evenly_spaced(total: int, count: int) -> set[int]:
    """Indices of `count` images spread evenly over `total`, or of all where there are fewer."""
    count = min(count, total)
    return {total * number // count for number in range(count)}
