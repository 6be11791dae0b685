"""Pictures of an evaluation: pages of predictions beside the ground truth, as PNG files.

A row of a page is an image; columns are the image, the truth, one or more predictions, and for a single prediction the
error (wrong pixels red). Class names stand on their segments, colours are the vocabulary's, and a legend lists the
classes that occur.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ovstrans.datasets.drawing import (
    FADED,
    IGNORED,
    INK,
    PAPER,
    TEXT,
    draw_legend,
    draw_overlay,
    resize_photo,
)
from ovstrans.errors import InputError
from ovstrans.figures import draw_text
from ovstrans.files import atomic_path
from ovstrans.reports.confusion_plot import save_confusion
from ovstrans.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovstrans.datasets.sample import Dataset
    from ovstrans.evaluation.evaluate import DatasetResult
    from ovstrans.evaluation.metrics import ConfusionMatrix

SOURCE = "ovstrans bench"
"""Source that the PNG files record. A file that records it is replaced, or deleted, when its folder is renewed."""
PAGE_ROWS = 8
"""Largest number of images on a page."""

_RIGHT, _WRONG = (222, 226, 230), (214, 40, 40)
_MARGIN, _GAP, _TITLE, _HEAD = 24, 10, 22, 15
_WIDEST = 3
_COMPRESSION = 6


@dataclass
class Row:
    """One image of a page.

    Attributes:
        image: uint8 [3, H, W].
        truth: Class index [H, W], or None.
        predictions: Title of a column to class index [H, W]. Every row of a page has the same titles.
    """

    image: Tensor
    truth: Tensor | None = None
    predictions: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class _DatasetPictures:
    """Pictures of a dataset to draw: predictions by image and column title, and confusion matrices by title."""

    name: str
    dataset: Dataset
    predictions: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    confusions: dict[str, ConfusionMatrix] = field(default_factory=dict)


class Pages:
    """Collects the predictions and confusion matrices of several targets on several datasets, and draws them."""

    def __init__(self) -> None:
        self._parts: dict[int, _DatasetPictures] = {}

    def add(
        self, name: str, dataset: Dataset, title: str, result: DatasetResult, predictions: Mapping[int, Tensor]
    ) -> None:
        """Add the evaluation of a target on a dataset.

        Args:
            name: Name of the dataset in reports.
            dataset: The dataset.
            title: Short name of the target.
            result: Its metrics, with their confusion matrix.
            predictions: Index of an image to the predicted classes [H, W].
        """
        part = self._parts.setdefault(id(dataset), _DatasetPictures(name, dataset))
        for index, prediction in predictions.items():
            part.predictions.setdefault(index, {})[title] = prediction
        if result.confusion is not None:
            part.confusions[title] = result.confusion

    def save(self, folder: Path) -> Iterator[Path]:
        """Write the pictures of each dataset into a folder.

        They are `NAME.png`, `NAME-2.png` and so on if one page has no room for all images, and `NAME-confusion.png`, or
        `NAME-confusion-TITLE.png` for each of several targets. Pictures of an earlier `bench` in the folder are deleted
        first; other files stay.

        Yields:
            The path of each file, once it is written.
        """
        if self._parts:
            _delete_pictures(folder)
        used: list[str] = []
        for part in self._parts.values():
            indices = sorted(part.predictions)
            stem = _file_name(part.name)
            used.append(stem)
            if used.count(stem) > 1:  # the same data at another size
                stem = f"{stem}-again{used.count(stem)}"
            count = -(-len(indices) // PAGE_ROWS)
            for page in range(count):
                rows = []
                for index in indices[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]:
                    sample = part.dataset[index]
                    rows.append(Row(sample.image, sample.label, part.predictions[index]))
                title = part.name if count == 1 else f"{part.name}, page {page + 1} of {count}"
                path = folder / (f"{stem}-{page + 1}.png" if page else f"{stem}.png")
                yield save_page(path, rows, part.dataset.vocabulary, title=title, ignore=part.dataset.ignore)
            for target, confusion in part.confusions.items():
                suffix = f"-{_file_name(target)}" if len(part.confusions) > 1 else ""
                path = folder / f"{stem}-confusion{suffix}.png"
                names = part.dataset.vocabulary.names
                yield save_confusion(path, confusion, names, title=f"{target} on {part.name}", source=SOURCE)


def save_page(
    path: Path | str,
    rows: Sequence[Row],
    vocabulary: Vocabulary,
    *,
    title: str = "",
    ignore: int = 255,
    cell_height: int = 240,
) -> Path:
    """Write a page as a PNG file, atomically; arguments as of `draw_page`. Return the path."""
    picture = draw_page(rows, vocabulary, title=title, ignore=ignore, cell_height=cell_height)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=_COMPRESSION, pnginfo=_source_info())
    return Path(path)


def _source_info() -> PngInfo:
    info = PngInfo()
    info.add_text("Source", SOURCE)
    return info


def _delete_pictures(folder: Path) -> None:
    """Delete the pictures in a folder that an earlier `bench` drew; files of others have another source, or none."""
    for path in sorted(folder.glob("*.png")):
        try:
            with Image.open(path) as picture:
                ours = picture.info.get("Source") == SOURCE
        except (OSError, ValueError):  # no picture
            continue
        if ours:
            path.unlink()


def draw_page(
    rows: Sequence[Row],
    vocabulary: Vocabulary,
    *,
    title: str = "",
    ignore: int = 255,
    cell_height: int = 240,
) -> Image.Image:
    """Draw a page. If there is a truth and a single prediction, a column of errors is added.

    Args:
        rows: Images of the page.
        vocabulary: Their classes.
        title: Title of the page.
        ignore: Label of pixels that are ignored.
        cell_height: Height of every image on the page, in pixels.

    Raises:
        InputError: If there is no row.
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
        draw_text(draw, (_MARGIN, _MARGIN), title, _TITLE, bold=True, fill=INK)
    lefts = [_MARGIN + sum(widths[:number]) + _GAP * number for number in range(len(widths))]
    for left, column in zip(lefts, titles, strict=True):
        draw_text(draw, (left, top), column, _HEAD, bold=True, fill=INK)
    for number, line in enumerate(cells):
        y = body + number * (cell_height + below)
        for column, picture, note in line:
            left = lefts[titles.index(column)]
            page.paste(picture, (left, y))
            draw_text(draw, (left, y + picture.height + 3), note, TEXT, fill=FADED)
    page.paste(names, (_MARGIN, body + len(rows) * (cell_height + below)))
    return page


def error_map(prediction: Tensor, truth: Tensor, size: tuple[int, int], *, ignore: int = 255) -> Image.Image:
    """Draw wrong pixels red, right ones light, ignored ones dark, resized to `size` (width, height)."""
    wrong, ignored = _array(prediction) != _array(truth), _array(truth) == ignore
    colors = np.empty((*wrong.shape, 3), dtype=np.uint8)
    colors[:] = _RIGHT
    colors[wrong] = _WRONG
    colors[ignored] = IGNORED
    return Image.fromarray(colors).resize(size, Image.Resampling.NEAREST)


def _cells(row: Row, vocabulary: Vocabulary, ignore: int, height: int) -> Iterator[tuple[str, Image.Image, str]]:
    """Yield column title, picture and note of every cell of a row."""
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
    """Return the (width, height) of an image's cell; a panorama becomes lower, so that the page stays narrow."""
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


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-")
