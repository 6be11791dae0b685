"""Label maps, confidence maps and classes.json: predictions as files that any program reads.

    classes.json         what the numbers mean: schema "ovstrans.prediction/1", `classes` (index, name, synonyms,
                         color as RGB), `encoding` ("8-bit palette" or "16-bit gray"), and how it was made
    labels/NAME.png      class indices, at the size of the image (upright, as its EXIF has it): up to 255 classes
                         8 bits with the colours as palette, more than that 16-bit gray
    confidence/NAME.png  8-bit gray, 0..255 for 0..1: the confidence in the class in `labels`
    overlays/NAME.png    for people: the image under the colours, with a legend of the classes and their areas

Segments add the files of `segmenter.coco`, and overlays-panoptic/NAME.png and overlays-instances/NAME.png for people.
A label map is read by pillow and numpy alone: `np.asarray(Image.open(path))` are the indices.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovstrans import files
from ovstrans.datasets.images import read_label
from ovstrans.vocabulary.vocabulary import Vocabulary

SCHEMA = "ovstrans.prediction/1"
CLASSES, LABELS, OVERLAYS, CONFIDENCE = "classes.json", "labels", "overlays", "confidence"
"""Entries of a folder of predictions."""

_MOST_IN_PALETTE = 255
_LEVEL = 6
_PHOTO_LEVEL = 3
"""zlib's compression level for pictures; a higher one takes several times as long and hardly makes them smaller."""


def write_label_map(path: Path | str, labels: Tensor, vocabulary: Vocabulary) -> None:
    """Write class indices [H, W] as an indexed PNG, or as 16-bit gray for more than 255 classes; atomically."""
    values = labels.detach().cpu().numpy()
    if len(vocabulary) > _MOST_IN_PALETTE:
        picture = Image.fromarray(values.astype(np.uint16))
    else:
        colors = np.zeros((256, 3), dtype=np.uint8)  # all 256, or pillow packs several pixels into a byte
        colors[: len(vocabulary)] = vocabulary.palette()
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette(colors.tobytes())
    _save(path, picture, _LEVEL)


def read_label_map(path: Path | str) -> Tensor:
    """Read what `write_label_map` wrote: int64 [H, W].

    Raises:
        InputError: If the file is missing or broken.
    """
    return torch.from_numpy(read_label(path).astype(np.int64))


def write_confidence(path: Path | str, confidence: Tensor) -> None:
    """Write confidences [H, W] from 0 to 1 as 8-bit gray, atomically."""
    scaled = (confidence.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    _save(path, Image.fromarray(scaled.cpu().numpy()), _PHOTO_LEVEL)


def read_confidence(path: Path | str) -> Tensor:
    """Read what `write_confidence` wrote, exact to 1/510: float32 [H, W] from 0 to 1."""
    return torch.from_numpy(read_label(path).astype(np.float32) / 255)


def save_picture(path: Path | str, picture: Image.Image) -> None:
    """Write a picture for people as a PNG, atomically."""
    _save(path, picture, _PHOTO_LEVEL)


def class_shares(labels: Tensor) -> list[tuple[int, float]]:
    """Return the classes that occur in a label map [H, W] and their shares of its pixels, the largest first."""
    counts = torch.bincount(labels.flatten())
    found = [(int(index), int(counts[index]) / labels.numel()) for index in counts.nonzero().flatten()]
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))


def describe_classes(vocabulary: Vocabulary, **made: Any) -> dict[str, Any]:
    """Return the contents of classes.json.

    Args:
        vocabulary: The classes.
        **made: How the predictions were made, as plain values.
    """
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
    encoding = "16-bit gray" if len(vocabulary) > _MOST_IN_PALETTE else "8-bit palette"
    return {"schema": SCHEMA, "encoding": encoding, "classes": entries, **made}


def read_description(folder: Path | str) -> Mapping[str, Any]:
    """Read the classes.json of a folder of predictions.

    Raises:
        InputError: If there is none, or it is another file.
    """
    found: Mapping[str, Any] = files.read_json(Path(folder) / CLASSES, SCHEMA)
    return found


def _save(path: Path | str, picture: Image.Image, level: int) -> None:
    with files.atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=level)
