"""Predictions as files that any program reads.

    classes.json         what the numbers mean: schema "ovstrans.prediction/1", `classes` (index, name, synonyms,
                         color as RGB), `encoding` ("8-bit palette" or "16-bit gray"), and how it was made
    labels/NAME.png      class indices, at the size of the image (upright, as EXIF has it): up to 255 classes 8 bits
                         with the colours as palette, more 16-bit gray
    confidence/NAME.png  8-bit gray, 0..255 for 0..1: how sure the model is of the class in `labels`
    overlays/NAME.png    for the eye: the image under the colours, with a legend of the classes and their areas

With segments also those of `segment_files`, and overlays-panoptic/NAME.png, overlays-instances/NAME.png for the eye.
Reading a label map takes pillow and numpy: `np.asarray(Image.open(path))` are the indices.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovstrans import files
from ovstrans.datasets.drawing import PAPER, TEXT, draw_legend
from ovstrans.datasets.drawing import draw_overlay as draw_names_and_colors
from ovstrans.datasets.images import read_label
from ovstrans.datasets.sample import get_ignore_label
from ovstrans.vocabulary.vocabulary import Vocabulary

SCHEMA = "ovstrans.prediction/1"
CLASSES, LABELS, OVERLAYS, CONFIDENCE = "classes.json", "labels", "overlays", "confidence"
"""The entries of a folder of predictions."""

SHOWN_SHARE = 0.0005
"""A legend tells of a class from this share of the pixels on."""

_NARROW = 255
_LARGEST_OVERLAY, _SMALLEST_OVERLAY = 2048, 360
_TEXT_SHARE = 40
_LEVEL = 6
_PHOTO_LEVEL = 3
"""zlib's: beyond it a photograph takes several times as long and gets hardly smaller."""


def write_label_map(path: Path | str, classes: Tensor, vocabulary: Vocabulary) -> None:
    """Write class indices [H, W] as an indexed PNG, atomically; 16-bit gray where there are more than 255 classes."""
    values = classes.detach().cpu().numpy()
    if len(vocabulary) > _NARROW:
        picture = Image.fromarray(values.astype(np.uint16))
    else:
        colors = np.zeros((256, 3), dtype=np.uint8)  # all 256, or pillow packs several pixels into a byte
        colors[: len(vocabulary)] = vocabulary.palette()
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette(colors.tobytes())
    _save(path, picture, _LEVEL)


def read_label_map(path: Path | str) -> Tensor:
    """What `write_label_map` wrote: int64 [H, W]; InputError where the file is missing or broken."""
    return torch.from_numpy(read_label(path).astype(np.int64))


def write_confidence(path: Path | str, confidence: Tensor) -> None:
    """Write confidences [H, W] from 0 to 1 as 8-bit gray, atomically."""
    scaled = (confidence.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    _save(path, Image.fromarray(scaled.cpu().numpy()), _PHOTO_LEVEL)


def read_confidence(path: Path | str) -> Tensor:
    """What `write_confidence` wrote, to within 1/510: float32 [H, W] from 0 to 1."""
    return torch.from_numpy(read_label(path).astype(np.float32) / 255)


def write_overlay(path: Path | str, image: Tensor, classes: Tensor, vocabulary: Vocabulary) -> None:
    """Write `draw_overlay` as a PNG, atomically."""
    save_picture(path, draw_overlay(image, classes, vocabulary))


def save_picture(path: Path | str, picture: Image.Image) -> None:
    """Write a picture for the eye as a PNG, atomically."""
    _save(path, picture, _PHOTO_LEVEL)


def draw_overlay(image: Tensor, classes: Tensor, vocabulary: Vocabulary) -> Image.Image:
    """The image uint8 [3, H, W] under its classes [H, W], above a legend of those that occur, the largest first.

    A small image is enlarged and one beyond 2048 pixels reduced: this is for the eye.
    """
    entries = [(index, percent(share)) for index, share in shares(classes) if share >= SHOWN_SHARE]
    ignore = get_ignore_label(len(vocabulary))
    return page(image, classes, vocabulary, entries, vocabulary, ignore=ignore)


def page(
    image: Tensor,
    values: Tensor,
    painted: Vocabulary,
    entries: Sequence[tuple[int, str]],
    vocabulary: Vocabulary,
    *,
    ignore: int,
) -> Image.Image:
    """The image uint8 [3, H, W] under the colours and names of `values` [H, W], indices of `painted`, above a legend.

    entries: of `vocabulary`, as `legend` has them.
    """
    height, width = (int(side) for side in values.shape)
    factor = min(max(1, -(-_SMALLEST_OVERLAY // width)), _LARGEST_OVERLAY / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    text = max(TEXT, round(min(size) / _TEXT_SHARE))
    picture = draw_names_and_colors(image, values, painted, ignore=ignore, size=size, text=text)
    margin = text // 2
    page_width = max(size[0], _SMALLEST_OVERLAY)
    below = draw_legend(entries, vocabulary, page_width - 2 * margin, text=text)
    whole = Image.new("RGB", (page_width, size[1] + below.height + margin), PAPER)
    whole.paste(picture, (0, 0))
    whole.paste(below, (margin, size[1]))
    return whole


def shares(classes: Tensor) -> list[tuple[int, float]]:
    """The classes that occur in a map [H, W] and their shares of its pixels, the largest first."""
    counts = torch.bincount(classes.flatten())
    found = [(int(index), int(counts[index]) / classes.numel()) for index in counts.nonzero().flatten()]
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))


def about(vocabulary: Vocabulary, **made: Any) -> dict[str, Any]:
    """The contents of classes.json; `made` says how the predictions were made, as plain values."""
    palette = vocabulary.palette().tolist()
    entries = [
        {
            "index": index,
            "name": name,
            "synonyms": [other for other in vocabulary.classes[index] if other != name],
            "color": palette[index],
        }
        for index, name in enumerate(vocabulary.names)
    ]
    encoding = "16-bit gray" if len(vocabulary) > _NARROW else "8-bit palette"
    return {"schema": SCHEMA, "encoding": encoding, "classes": entries, **made}


def read_about(folder: Path | str) -> Mapping[str, Any]:
    """The classes.json of a folder of predictions; InputError where there is none or another file."""
    found: Mapping[str, Any] = files.read_json(Path(folder) / CLASSES, SCHEMA)
    return found


def percent(share: float) -> str:
    """A share as a legend has it."""
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"


def _save(path: Path | str, picture: Image.Image, level: int) -> None:
    with files.atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=level)
