"""Pages of predictions beside the truth, as one PNG.

A row is an image; columns are the image, the truth, one or more predictions, and for a single
prediction the error (wrong pixels red). Class names stand on their segments, colours are the
vocabulary's, and a legend lists the classes that occur.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from ovstrans.data.vocabulary import Vocabulary
from ovstrans.errors import InputError
from ovstrans.files import atomic_path

_INK, _FADED, _PAPER = (32, 33, 36), (110, 114, 120), (255, 255, 255)
_IGNORED, _RIGHT, _WRONG = (70, 72, 76), (222, 226, 230), (214, 40, 40)
_MARGIN, _GAP, _TITLE, _TEXT, _LABEL = 24, 10, 22, 15, 13
_WIDEST = 3
_RELIEF = 0.35
_LEAST_AREA = 0.012
_LEAST_RADIUS = 0.55


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
        picture.save(temporary, format="PNG", optimize=True)
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
    below = _TEXT + 14 if noted else _GAP
    legend = _legend(_classes_of(rows, ignore), vocabulary, width - 2 * _MARGIN)
    top = _MARGIN + (_TITLE + 18 if title else 0)
    body = top + _TEXT + 10
    page = Image.new("RGB", (width, body + len(rows) * (cell_height + below) + legend.height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((_MARGIN, _MARGIN), title, font=_font(_TITLE, bold=True), fill=_INK)
    lefts = [_MARGIN + sum(widths[:number]) + _GAP * number for number in range(len(widths))]
    for left, column in zip(lefts, titles, strict=True):
        draw.text((left, top), column, font=_font(_TEXT, bold=True), fill=_INK)
    for number, line in enumerate(cells):
        y = body + number * (cell_height + below)
        for column, picture, note in line:
            left = lefts[titles.index(column)]
            page.paste(picture, (left, y))
            draw.text((left, y + picture.height + 3), note, font=_font(_LABEL), fill=_FADED)
    page.paste(legend, (_MARGIN, body + len(rows) * (cell_height + below)))
    return page


def overlay(
    image: Tensor,
    classes: Tensor,
    vocabulary: Vocabulary,
    *,
    ignore: int = 255,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """An image [3, H, W] under the colours and names of its classes [H, W]; `size` is (width, height)."""
    size = size or (int(classes.shape[1]), int(classes.shape[0]))
    values = _array(classes)
    colors = _colors(values, vocabulary, ignore)
    gray = np.asarray(_photo(image, size).convert("L"), dtype=np.float32)[..., None]
    flat = np.asarray(Image.fromarray(colors).resize(size, Image.Resampling.NEAREST), dtype=np.float32)
    # the photograph shows through by its light alone, around middle gray, so that colours match the legend
    shaded = flat + _RELIEF * (gray - 128)
    picture = Image.fromarray(shaded.clip(0, 255).astype(np.uint8))
    _outline(picture, values)
    _write_names(picture, values, vocabulary, ignore)
    return picture


def error_map(prediction: Tensor, truth: Tensor, size: tuple[int, int], *, ignore: int = 255) -> Image.Image:
    """Wrong pixels red, right ones light, ignored ones dark; `size` is (width, height)."""
    wrong, ignored = _array(prediction) != _array(truth), _array(truth) == ignore
    colors = np.empty((*wrong.shape, 3), dtype=np.uint8)
    colors[:] = _RIGHT
    colors[wrong] = _WRONG
    colors[ignored] = _IGNORED
    return Image.fromarray(colors).resize(size, Image.Resampling.NEAREST)


def _cells(row: Row, vocabulary: Vocabulary, ignore: int, height: int) -> Iterator[tuple[str, Image.Image, str]]:
    """Column title, picture and note of every cell of a row."""
    size = _fit(row.image, height)
    yield "Image", _photo(row.image, size), ""
    if row.truth is not None:
        yield "Truth", overlay(row.image, row.truth, vocabulary, ignore=ignore, size=size), ""
    for name, prediction in row.predictions.items():
        picture = overlay(row.image, prediction, vocabulary, ignore=ignore, size=size)
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


def _write_names(picture: Image.Image, values: np.ndarray, vocabulary: Vocabulary, ignore: int) -> None:
    """Each class name in the middle of its largest connected piece, where it is large enough."""
    draw = ImageDraw.Draw(picture)
    scale = picture.width / values.shape[1]
    font = _font(_LABEL)
    taken: list[tuple[float, float, float, float]] = []
    found: list[tuple[float, float, float, str]] = []
    for index in np.unique(values):
        if index == ignore or not 0 <= index < len(vocabulary):
            continue
        pieces, count = ndimage.label(values == index)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        sizes[0] = 0
        largest = np.pad(pieces == sizes.argmax(), 1)
        depth = ndimage.distance_transform_edt(largest)
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        radius = float(depth[row, column]) * scale
        if sizes.max() >= _LEAST_AREA * values.size and radius >= _LEAST_RADIUS * _LABEL:
            found.append((radius, (column - 0.5) * scale, (row - 0.5) * scale, vocabulary.names[index]))
    for _, x, y, name in sorted(found, reverse=True):
        half = draw.textlength(name, font=font) / 2
        if 2 * half > picture.width - 4:
            continue
        x = min(max(x, half + 2), picture.width - half - 2)
        box = (x - half - 2, y - _LABEL / 2 - 1, x + half + 2, y + _LABEL / 2 + 1)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        draw.text((x, y), name, font=font, fill=(255, 255, 255), anchor="mm", stroke_width=2, stroke_fill=(0, 0, 0))


def _outline(picture: Image.Image, values: np.ndarray) -> None:
    """A thin dark line between segments."""
    size = picture.size
    rows = (np.arange(size[1]) * values.shape[0]) // size[1]
    columns = (np.arange(size[0]) * values.shape[1]) // size[0]
    scaled = values[rows][:, columns]
    edge = np.zeros(scaled.shape, dtype=bool)
    edge[1:] |= scaled[1:] != scaled[:-1]
    edge[:, 1:] |= scaled[:, 1:] != scaled[:, :-1]
    picture.paste(Image.new("RGB", size, _INK), mask=Image.fromarray((edge * 110).astype(np.uint8)))


def _legend(classes: Sequence[int], vocabulary: Vocabulary, width: int) -> Image.Image:
    """Swatches with class names, novel ones starred, in as many lines as they need."""
    font, palette = _font(_LABEL), vocabulary.palette()
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    entries = [(vocabulary.names[i] + ("*" if i in vocabulary.novel else ""), palette[i]) for i in classes]
    starred = any(name.endswith("*") for name, _ in entries)
    places, x, y = [], 0, 0
    for name, color in entries:
        needed = 22 + int(measure.textlength(name, font=font)) + 18
        if x and x + needed - 18 > width:
            x, y = 0, y + _LABEL + 10
        places.append((x, y, name, color))
        x += needed
    lines = y + _LABEL + 10 if places else 0
    legend = Image.new("RGB", (width, lines + (_LABEL + 10 if starred else 0) + 6), _PAPER)
    draw = ImageDraw.Draw(legend)
    for x, y, name, color in places:
        draw.rounded_rectangle((x, y + 6, x + 15, y + 19), 3, fill=tuple(int(part) for part in color))
        draw.text((x + 22, y + 13), name, font=font, fill=_INK, anchor="lm")
    if starred:
        draw.text((0, lines + 13), "* novel: never labelled in training", font=font, fill=_FADED, anchor="lm")
    return legend


def _classes_of(rows: Sequence[Row], ignore: int) -> list[int]:
    maps = [part for row in rows for part in (row.truth, *row.predictions.values()) if part is not None]
    found = {int(value) for part in maps for value in np.unique(_array(part))}
    return sorted(found - {ignore})


def _colors(values: np.ndarray, vocabulary: Vocabulary, ignore: int) -> np.ndarray:
    """uint8 [H, W, 3] of class indices [H, W]."""
    palette = np.concatenate([vocabulary.palette(), np.array([_IGNORED], dtype=np.uint8)])
    known = (values != ignore) & (values >= 0) & (values < len(vocabulary))
    colors: np.ndarray = palette[np.where(known, values, len(vocabulary))]
    return colors


def _photo(image: Tensor, size: tuple[int, int]) -> Image.Image:
    pixels = image.detach().cpu().numpy().transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.int64)


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which matplotlib brings along and which knows most scripts; else pillow's own."""
    from matplotlib import get_data_path

    file = Path(get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    try:
        return ImageFont.truetype(str(file), size)
    except OSError:
        return ImageFont.load_default(size)
