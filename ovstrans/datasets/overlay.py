"""A photograph under the colours and names of its classes, and the legend that goes with it.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from ovstrans.vocabulary.vocabulary import Vocabulary

INK, FADED, PAPER = (32, 33, 36), (110, 114, 120), (255, 255, 255)
"""Text, lesser text and the ground of a page."""
IGNORED = (70, 72, 76)
"""What has no class."""
TEXT = 13
"""Height of class names in pixels, on a picture of ordinary size."""

_BRIGHT, _DARK = 0.5, 0.75
_MIDDLE = 128
_EDGE = 110
_LEAST_AREA = 0.012
_LEAST_RADIUS = 0.55
_NAMING_SIDE = 120
_SWATCH, _LINE = 15, 23


def overlay(
    image: Tensor,
    classes: Tensor,
    vocabulary: Vocabulary,
    *,
    ignore: int = 255,
    size: tuple[int, int] | None = None,
    text: int = TEXT,
) -> Image.Image:
    """An image uint8 [3, H, W] under the colours and names of its classes [H, W].

    size: (width, height) of the picture, by default the classes'.  text: height of the names in pixels.
    The photograph shows through by its light alone, so that no colour of it is taken for a class's.
    """
    values = _array(classes)
    size = size or (values.shape[1], values.shape[0])
    gray = np.asarray(photograph(image, size).convert("L"))
    scaled = _resized(values, size)
    picture = Image.fromarray(_shades(vocabulary)[_places(scaled, len(vocabulary), ignore), gray])
    _outline(picture, scaled)
    _write_names(picture, values, vocabulary, ignore, text)
    return picture


def legend(entries: Sequence[tuple[int, str]], vocabulary: Vocabulary, width: int, *, text: int = TEXT) -> Image.Image:
    """Swatches with class names, novel ones starred, in as many lines as they need.

    entries: class index and what stands behind its name ("12 %", or "").
    """
    scale = text / TEXT
    swatch, line = round(_SWATCH * scale), round(_LINE * scale)
    type_, palette = font(text), vocabulary.palette()
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    starred = any(index in vocabulary.novel for index, _ in entries)
    places, x, y = [], 0, 0
    for index, note in entries:
        name = vocabulary.names[index] + ("*" if index in vocabulary.novel else "")
        named, noted = (int(measure.textlength(part, font=type_)) for part in (name, f" {note}" if note else ""))
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
        draw.text((left, middle), name, font=type_, fill=INK, anchor="lm")
        if note:
            draw.text((left + named, middle), f" {note}", font=type_, fill=FADED, anchor="lm")
    if starred:
        words = "* novel: never labelled in training"
        draw.text((0, lines + line / 2), words, font=type_, fill=FADED, anchor="lm")
    return picture


def photograph(image: Tensor, size: tuple[int, int]) -> Image.Image:
    """An image uint8 [3, H, W] at (width, height)."""
    pixels = Image.fromarray(np.ascontiguousarray(image.detach().cpu().numpy().transpose(1, 2, 0)))
    return pixels if pixels.size == size else pixels.resize(size, Image.Resampling.BICUBIC)


@lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which matplotlib brings along and which knows most scripts; else pillow's own."""
    from matplotlib import get_data_path

    file = Path(get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    try:
        return ImageFont.truetype(str(file), size)
    except OSError:
        return ImageFont.load_default(size)


def _write_names(picture: Image.Image, values: np.ndarray, vocabulary: Vocabulary, ignore: int, text: int) -> None:
    """Each class name in the middle of its largest connected piece, where it is large enough."""
    draw = ImageDraw.Draw(picture)
    step = max(1, min(values.shape) // _NAMING_SIDE)  # where a name goes need not be known to the pixel
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
            found.append((radius, (column - 0.5) * scale, (row - 0.5) * scale, vocabulary.names[index]))
    stroke = max(2, round(2 * text / TEXT))
    for _, x, y, name in sorted(found, reverse=True):
        half = draw.textlength(name, font=font(text)) / 2 + stroke
        if 2 * half > picture.width:
            continue
        x = min(max(x, half), picture.width - half)
        tall = text / 2 + stroke
        y = min(max(y, tall), max(tall, picture.height - tall))
        box = (x - half, y - tall, x + half, y + tall)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        draw.text((x, y), name, font=font(text), fill=PAPER, anchor="mm", stroke_width=stroke, stroke_fill=(0, 0, 0))


def _outline(picture: Image.Image, scaled: np.ndarray) -> None:
    """A thin dark line between segments."""
    edge = np.zeros(scaled.shape, dtype=bool)
    edge[1:] |= scaled[1:] != scaled[:-1]
    edge[:, 1:] |= scaled[:, 1:] != scaled[:, :-1]
    picture.paste(Image.new("RGB", picture.size, INK), mask=Image.fromarray((edge * _EDGE).astype(np.uint8)))


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class indices at (width, height), each pixel the nearest one's."""
    if values.shape == (size[1], size[0]):
        return values
    rows = ((2 * np.arange(size[1]) + 1) * values.shape[0]) // (2 * size[1])
    columns = ((2 * np.arange(size[0]) + 1) * values.shape[1]) // (2 * size[0])
    resized: np.ndarray = values[rows][:, columns]
    return resized


def _shades(vocabulary: Vocabulary) -> np.ndarray:
    """Colours of the classes and, last, of what has none, under every light: uint8 [K + 1, 256, 3].

    Towards white in bright places and towards black in dark ones; in middle gray the colour itself, so that it
    matches its swatch in the legend.
    """
    colors = np.concatenate([vocabulary.palette(), np.array([IGNORED], dtype=np.uint8)]).astype(np.float32)[:, None]
    light = (np.arange(256, dtype=np.float32)[:, None] - _MIDDLE) / _MIDDLE
    shades = np.where(light > 0, colors + _BRIGHT * light * (255 - colors), colors * (1 + _DARK * light))
    return np.rint(shades).astype(np.uint8)


def _places(values: np.ndarray, count: int, ignore: int) -> np.ndarray:
    """Rows of `_shades`: what is ignored or unknown goes to the last."""
    known = (values != ignore) & (values >= 0) & (values < count)
    return np.where(known, values, count)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.int64)
