"""Pages of predictions beside the truth, as one PNG.

A row is an image; columns are the image, the truth, one or more predictions, and for a single
prediction the error (wrong pixels red). Class names stand on their segments, colours are the
vocabulary's, and a legend lists the classes that occur.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ovstrans.datasets.drawing import (
    FADED,
    IGNORED,
    INK,
    PAPER,
    TEXT,
    draw_legend,
    draw_overlay,
    load_font,
    resize_photo,
)
from ovstrans.errors import InputError
from ovstrans.files import atomic_path
from ovstrans.vocabulary.vocabulary import Vocabulary

_RIGHT, _WRONG = (222, 226, 230), (214, 40, 40)
_MARGIN, _GAP, _TITLE, _HEAD = 24, 10, 22, 15
_WIDEST = 3
_COMPRESSION = 6


@dataclass
class Row:
    """One image of a page.

    image: uint8 [3, H, W].  truth: class index [H, W] or None.
    predictions: class index [H, W] under the title of its column; every row of a page has the same titles.
    """

    image: Tensor
    truth: Tensor | None = None
    predictions: Mapping[str, Tensor] = field(default_factory=dict)


def save_page(
    path: Path | str,
    rows: Sequence[Row],
    vocabulary: Vocabulary,
    *,
    title: str = "",
    ignore: int = 255,
    cell_height: int = 240,
) -> Path:
    """Write `draw_page` as a PNG, atomically; returns the path."""
    picture = draw_page(rows, vocabulary, title=title, ignore=ignore, cell_height=cell_height)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=_COMPRESSION)
    return Path(path)


def draw_page(
    rows: Sequence[Row],
    vocabulary: Vocabulary,
    *,
    title: str = "",
    ignore: int = 255,
    cell_height: int = 240,
) -> Image.Image:
    """The page. A column of errors is added where there is a truth and a single prediction.

    cell_height: of every image on the page, in pixels.  Raises InputError for no row.
    """
    if not rows:
        raise InputError("a page of predictions needs at least one image")
    cells = [list(_cells(row, vocabulary, ignore, cell_height)) for row in rows]
    titles = [name for name, _, _ in max(cells, key=len)]
    widths = [max(picture.width for line in cells for name, picture, _ in line if name == column) for column in titles]
    width = max(2 * _MARGIN + sum(widths) + _GAP * (len(widths) - 1), 360)
    noted = any(note for line in cells for _, _, note in line)
    below = _HEAD + 14 if noted else _GAP
    names = draw_legend([(index, "") for index in _classes_of(rows, vocabulary)], vocabulary, width - 2 * _MARGIN)
    top = _MARGIN + (_TITLE + 18 if title else 0)
    body = top + _HEAD + 10
    page = Image.new("RGB", (width, body + len(rows) * (cell_height + below) + names.height + _MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((_MARGIN, _MARGIN), title, font=load_font(_TITLE, bold=True), fill=INK)
    lefts = [_MARGIN + sum(widths[:number]) + _GAP * number for number in range(len(widths))]
    for left, column in zip(lefts, titles, strict=True):
        draw.text((left, top), column, font=load_font(_HEAD, bold=True), fill=INK)
    for number, line in enumerate(cells):
        y = body + number * (cell_height + below)
        for column, picture, note in line:
            left = lefts[titles.index(column)]
            page.paste(picture, (left, y))
            draw.text((left, y + picture.height + 3), note, font=load_font(TEXT), fill=FADED)
    page.paste(names, (_MARGIN, body + len(rows) * (cell_height + below)))
    return page


def error_map(prediction: Tensor, truth: Tensor, size: tuple[int, int], *, ignore: int = 255) -> Image.Image:
    """Wrong pixels red, right ones light, ignored ones dark; `size` is (width, height)."""
    wrong, ignored = _array(prediction) != _array(truth), _array(truth) == ignore
    colors = np.empty((*wrong.shape, 3), dtype=np.uint8)
    colors[:] = _RIGHT
    colors[wrong] = _WRONG
    colors[ignored] = IGNORED
    return Image.fromarray(colors).resize(size, Image.Resampling.NEAREST)


def _cells(row: Row, vocabulary: Vocabulary, ignore: int, height: int) -> Iterator[tuple[str, Image.Image, str]]:
    """Column title, picture and note of every cell of a row."""
    size = _fit(row.image, height)
    yield "Image", resize_photo(row.image, size), ""
    if row.truth is not None:
        yield "Truth", draw_overlay(row.image, row.truth, vocabulary, ignore=ignore, size=size), ""
    for name, prediction in row.predictions.items():
        picture = draw_overlay(row.image, prediction, vocabulary, ignore=ignore, size=size)
        yield name, picture, "" if row.truth is None else _accuracy(prediction, row.truth, ignore)
    if row.truth is not None and len(row.predictions) == 1:
        (prediction,) = row.predictions.values()
        yield "Wrong pixels", error_map(prediction, row.truth, size, ignore=ignore), ""


def _fit(image: Tensor, height: int) -> tuple[int, int]:
    """The (width, height) of its cell; a panorama is made lower, not the page wider without end."""
    rows, columns = (int(side) for side in image.shape[-2:])
    factor = min(height / rows, _WIDEST * height / columns)
    return max(1, round(columns * factor)), max(1, round(rows * factor))


def _accuracy(prediction: Tensor, truth: Tensor, ignore: int) -> str:
    counted = _array(truth) != ignore
    if not counted.any():
        return ""
    return f"{100 * (_array(prediction) == _array(truth))[counted].mean():.0f} % of pixels right"


def _classes_of(rows: Sequence[Row], vocabulary: Vocabulary) -> list[int]:
    maps = [part for row in rows for part in (row.truth, *row.predictions.values()) if part is not None]
    found = {int(value) for part in maps for value in np.unique(_array(part))}
    return sorted(found & set(range(len(vocabulary))))


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.int64)
