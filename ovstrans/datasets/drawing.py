"""Drawing labelled images: class overlays, their legends, contact sheets.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from ovstrans.datasets.sample import Dataset, Sample
from ovstrans.errors import InputError
from ovstrans.figures import draw_text, drawable_names, measure_text
from ovstrans.files import atomic_path
from ovstrans.vocabulary.vocabulary import Vocabulary

INK, FADED, PAPER = (32, 33, 36), (110, 114, 120), (255, 255, 255)
"""Colours of text, of secondary text and of the page."""
IGNORED = (70, 72, 76)
"""Colour of pixels without a class."""
TEXT = 13
"""Height of class names in pixels, on a picture of ordinary size."""

_BRIGHT, _DARK = 0.5, 0.75  # how far a class's colour moves towards white and black with the light of the photo
_MIDDLE = 128
_EDGE = 110  # opacity of the line between segments, of 255
_LEAST_AREA = 0.012  # share of the picture from which on a class is labelled with its name
_LEAST_RADIUS = 0.55  # room for a name, in heights of its text
_NAMING_SIDE = 120
_SWATCH, _LINE = 15, 23
_COLUMNS, _CELL = 4, 300  # images in a row of a contact sheet, and their width
_MARGIN, _GAP, _TITLE, _NOTE = 24, 12, 22, 13
_TALLEST = 1.5


def draw_overlay(
    image: Tensor,
    classes: Tensor,
    vocabulary: Vocabulary,
    *,
    ignore: int = 255,
    size: tuple[int, int] | None = None,
    text: int = TEXT,
) -> Image.Image:
    """Draw an image under the colours and names of its classes.

    The image shows through by its brightness alone, so that none of its colours is mistaken for a class's.

    Args:
        image: uint8 [3, H, W].
        classes: Class indices [H, W].
        vocabulary: Names and colours of the classes.
        ignore: Index of pixels without a class.
        size: Width and height of the picture; None for those of `classes`.
        text: Height of the names in pixels.
    """
    values = classes.detach().cpu().numpy().astype(np.int64)
    size = size or (values.shape[1], values.shape[0])
    gray = np.asarray(resize_photo(image, size).convert("L"))
    scaled = _resize_nearest(values, size)
    picture = Image.fromarray(_shades(vocabulary)[_shade_rows(scaled, len(vocabulary), ignore), gray])
    _draw_outlines(picture, scaled)
    _draw_names(picture, values, vocabulary, ignore, text)
    return picture


def draw_legend(
    entries: Sequence[tuple[int, str]], vocabulary: Vocabulary, width: int, *, text: int = TEXT
) -> Image.Image:
    """Draw swatches with class names, in as many lines as they need; novel classes are starred.

    Args:
        entries: Class index and a note to write after its name, such as "12 %", or "".
        vocabulary: Names and colours of the classes.
        width: Width of the picture in pixels.
        text: Height of the names in pixels.
    """
    scale = text / TEXT
    swatch, line = round(_SWATCH * scale), round(_LINE * scale)
    palette, names = vocabulary.palette(), drawable_names(vocabulary.names)
    starred = any(index in vocabulary.novel for index, _ in entries)
    places, x, y = [], 0, 0
    for index, note in entries:
        name = names[index] + ("*" if index in vocabulary.novel else "")
        named, noted = (int(measure_text(part, text)) for part in (name, f" {note}" if note else ""))
        needed = swatch + round(7 * scale) + named + noted + round(18 * scale)
        if x and x + needed - round(18 * scale) > width:
            x, y = 0, y + line
        places.append((x, y, name, named, note, tuple(int(part) for part in palette[index])))
        x += needed
    lines = y + line if places else 0
    picture = Image.new("RGB", (width, lines + (line if starred else 0) + round(6 * scale)), PAPER)
    draw = ImageDraw.Draw(picture)
    for x, y, name, named, note, color in places:
        top = y + round(6 * scale)
        middle, left = top + swatch / 2, x + swatch + round(7 * scale)
        draw.rounded_rectangle((x, top, x + swatch, top + swatch), round(3 * scale), fill=color)
        draw_text(draw, (left, middle), name, text, fill=INK, anchor="lm")
        if note:
            draw_text(draw, (left + named, middle), f" {note}", text, fill=FADED, anchor="lm")
    if starred:
        words = "* novel: never labelled in training"
        draw_text(draw, (0, lines + line / 2), words, text, fill=FADED, anchor="lm")
    return picture


def resize_photo(image: Tensor, size: tuple[int, int]) -> Image.Image:
    """Return an image uint8 [3, H, W] as a picture of a size (width, height)."""
    pixels = Image.fromarray(np.ascontiguousarray(image.detach().cpu().numpy().transpose(1, 2, 0)))
    return pixels if pixels.size == size else pixels.resize(size, Image.Resampling.BICUBIC)


def _draw_names(picture: Image.Image, values: np.ndarray, vocabulary: Vocabulary, ignore: int, text: int) -> None:
    """Write each class name into the middle of its largest connected piece, if it fits there."""
    draw, names = ImageDraw.Draw(picture), drawable_names(vocabulary.names)
    step = max(1, min(values.shape) // _NAMING_SIDE)  # the place of a name need not be exact to the pixel
    values = np.ascontiguousarray(values[::step, ::step])
    scale = picture.width / values.shape[1]
    taken: list[tuple[float, float, float, float]] = []
    found: list[tuple[float, float, float, str]] = []
    for index, area in zip(*np.unique(values, return_counts=True), strict=True):
        if index == ignore or not 0 <= index < len(vocabulary) or area < _LEAST_AREA * values.size:
            continue
        pieces, count = ndimage.label(values == index)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        sizes[0] = 0
        if sizes.max() < _LEAST_AREA * values.size:
            continue
        depth = ndimage.distance_transform_edt(np.pad(pieces == sizes.argmax(), 1))
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        radius = float(depth[row, column]) * scale
        if radius >= _LEAST_RADIUS * text:
            found.append((radius, (column - 0.5) * scale, (row - 0.5) * scale, names[index]))
    stroke = max(2, round(2 * text / TEXT))
    for _, x, y, name in sorted(found, reverse=True):
        half = measure_text(name, text) / 2 + stroke
        if 2 * half > picture.width:
            continue
        x = min(max(x, half), picture.width - half)
        tall = text / 2 + stroke
        y = min(max(y, tall), max(tall, picture.height - tall))
        box = (x - half, y - tall, x + half, y + tall)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        draw_text(draw, (x, y), name, text, fill=PAPER, anchor="mm", stroke_width=stroke, stroke_fill=(0, 0, 0))


def _draw_outlines(picture: Image.Image, scaled: np.ndarray) -> None:
    """Draw thin dark lines between segments."""
    edge = np.zeros(scaled.shape, dtype=bool)
    edge[1:] |= scaled[1:] != scaled[:-1]
    edge[:, 1:] |= scaled[:, 1:] != scaled[:, :-1]
    picture.paste(Image.new("RGB", picture.size, INK), mask=Image.fromarray((edge * _EDGE).astype(np.uint8)))


def _resize_nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return class indices at a size (width, height), each pixel that of the nearest one."""
    if values.shape == (size[1], size[0]):
        return values
    rows = ((2 * np.arange(size[1]) + 1) * values.shape[0]) // (2 * size[1])
    columns = ((2 * np.arange(size[0]) + 1) * values.shape[1]) // (2 * size[0])
    resized: np.ndarray = values[rows][:, columns]
    return resized


def _shades(vocabulary: Vocabulary) -> np.ndarray:
    """Return the colour of each class, and last of pixels without one, at each brightness: uint8 [K + 1, 256, 3].

    Bright places move it towards white and dark ones towards black. Middle gray leaves it as it is, so that it matches
    its swatch in the legend.
    """
    colors = np.concatenate([vocabulary.palette(), np.array([IGNORED], dtype=np.uint8)]).astype(np.float32)[:, None]
    light = (np.arange(256, dtype=np.float32)[:, None] - _MIDDLE) / _MIDDLE
    shades = np.where(light > 0, colors + _BRIGHT * light * (255 - colors), colors * (1 + _DARK * light))
    return np.rint(shades).astype(np.uint8)


def _shade_rows(values: np.ndarray, count: int, ignore: int) -> np.ndarray:
    """Return each pixel's row of `_shades`; the last for pixels that are ignored or of no known class."""
    known = (values != ignore) & (values >= 0) & (values < count)
    return np.where(known, values, count)


def draw_contact_sheet(samples: Iterable[Sample], dataset: Dataset, *, title: str = "") -> Image.Image:
    """Draw images with their label maps below, four in a row, and a legend at the bottom.

    Args:
        samples: The images to show.
        dataset: The dataset they are from, which has their vocabulary.
        title: Heading of the sheet.

    Raises:
        InputError: If there is no image.
    """
    cells, classes = [], set()
    for sample in samples:
        cells.append(_draw_cell(sample, dataset))
        if sample.label is not None:
            classes |= set(np.unique(sample.label.numpy()).tolist()) - {dataset.ignore}
    if not cells:
        raise InputError(f"{dataset.name}:{dataset.split}: no image to show")
    columns = min(_COLUMNS, len(cells))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    width = 2 * _MARGIN + columns * _CELL + (columns - 1) * _GAP
    legend = draw_legend([(index, "") for index in sorted(classes)], dataset.vocabulary, width - 2 * _MARGIN)
    top = _MARGIN + (_TITLE + 18 if title else 0)
    heights = [max(cell.height for cell in row) + _GAP for row in rows]
    page = Image.new("RGB", (width, top + sum(heights) + legend.height + _MARGIN), PAPER)
    if title:
        draw_text(ImageDraw.Draw(page), (_MARGIN, _MARGIN), title, _TITLE, bold=True, fill=INK)
    for row, height in zip(rows, heights, strict=True):
        for place, cell in enumerate(row):
            page.paste(cell, (_MARGIN + place * (_CELL + _GAP), top))
        top += height
    page.paste(legend, (_MARGIN, top))
    return page


def save_contact_sheet(path: Path | str, samples: Iterable[Sample], dataset: Dataset, *, title: str = "") -> Path:
    """Write `draw_contact_sheet` as a PNG, atomically; return the path."""
    picture = draw_contact_sheet(samples, dataset, title=title)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    return Path(path)


def choose_evenly(total: int, number: int) -> set[int]:
    """Return the indices of `number` images spread evenly over `total`; all of them if there are fewer."""
    number = min(number, total)
    return {total * place // number for place in range(number)}


def _draw_cell(sample: Sample, dataset: Dataset) -> Image.Image:
    """Draw an image, below it its labels, and below these its name."""
    rows, columns = (int(side) for side in sample.image.shape[1:])
    height = round(_CELL * min(rows / columns, _TALLEST))
    size = (max(1, round(columns * height / rows)), height)
    parts = [resize_photo(sample.image, size)]
    if sample.label is not None:
        parts.append(draw_overlay(sample.image, sample.label, dataset.vocabulary, ignore=dataset.ignore, size=size))
    cell = Image.new("RGB", (_CELL, len(parts) * (height + 3) + _NOTE + 8), PAPER)
    for place, part in enumerate(parts):
        cell.paste(part, ((_CELL - size[0]) // 2, place * (height + 3)))
    name = sample.name
    while len(name) > 1 and measure_text(name, _NOTE) > _CELL:
        name = "…" + name[2:]
    draw_text(ImageDraw.Draw(cell), (0, cell.height - _NOTE - 5), name, _NOTE, fill=FADED)
    return cell
