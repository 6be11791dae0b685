"""Panoptic ground truth in COCO's format: a PNG of segment ids, and a JSON with the class of each.

Kirillov et al., Panoptic Segmentation, CVPR 2019, and its API: the id of a pixel is R + 256 G + 65536 B, 0 is
no segment. VIPSeg's JSON holds a list of annotations for each video.

Shapes: `H W` image, `N` segments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovstrans.datasets.images import read_colors
from ovstrans.datasets.sample import IGNORE, Segment
from ovstrans.errors import InputError
from ovstrans.files import read_json

Annotations = Mapping[str, np.ndarray]
"""By PNG, its path below their folder without suffix: its segments' id, class index and iscrowd, int64 [N, 3]."""


@dataclass(frozen=True)
class Panoptic:
    """Where a layout has panoptic segments.

    folder, json: the PNGs and their JSON, as in a layout.
    classes: the class index of each `category_id`.
    suffix: what follows an image's name in its PNG's.
    flat: the PNGs are in no folders, where images are.
    """

    folder: str
    json: str
    classes: Mapping[int, int]
    suffix: str = ".png"
    flat: bool = False

    def png(self, name: str) -> str:
        """The PNG of an image, below the folder."""
        return (name.rpartition("/")[2] if self.flat else name) + self.suffix


def read_annotations(path: Path, classes: Mapping[int, int]) -> Annotations:
    """The segments of every annotated image; InputError where the JSON is another one or has other classes."""
    content = read_json(path)
    found: dict[str, np.ndarray] = {}
    try:
        for name, entry in _entries(content):
            rows = [(int(s["id"]), classes[int(s["category_id"])], int(s["iscrowd"])) for s in entry["segments_info"]]
            found[name] = np.array(rows, dtype=np.int64).reshape(-1, 3)
    except KeyError as error:
        if isinstance(error.args[0], int):
            raise InputError(
                f"{path}: {name}: category_id {error} is none of the {len(classes)} there may be"
            ) from error
        raise InputError(f"{path}: not panoptic annotations in COCO's format (an entry lacks {error})") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not panoptic annotations in COCO's format ({error})") from error
    if not found:
        raise InputError(f"{path}: annotates no image")
    return found


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    for entry in content["annotations"]:
        if "annotations" in entry:
            for frame in entry["annotations"]:
                yield f"{entry['video_id']}/{_without_suffix(frame['file_name'])}", frame
        else:
            yield _without_suffix(entry["file_name"]), entry


def _without_suffix(file: str) -> str:
    return file.rpartition(".")[0] or file


def read_segment_ids(path: Path) -> np.ndarray:
    """The segment id of each pixel, int32 [H, W]; InputError where the file is broken or has no colours."""
    colors = read_colors(path).astype(np.int32)
    return colors[..., 0] + (colors[..., 1] << 8) + (colors[..., 2] << 16)


def extract_segments(
    ids: np.ndarray, rows: np.ndarray, things: Collection[int], ignore: int, path: Path
) -> tuple[list[Segment], np.ndarray]:
    """The segments that are to be seen, and the label map painted from all of them, crowds included.

    ids: int [H, W], read from `path`.  rows: an entry of `Annotations`.  things: countable classes.
    The label map is uint8 [H, W] where `ignore` is 255, else int64. Raises InputError for an id without entry.
    """
    values, places, areas = np.unique(ids, return_inverse=True, return_counts=True)
    known = {int(number): (int(index), bool(crowd)) for number, index, crowd in rows}
    classes = np.full(len(values), ignore, dtype=np.uint8 if ignore == IGNORE else np.int64)
    segments = []
    for place, (value, area) in enumerate(zip(values.tolist(), areas.tolist(), strict=True)):
        if value in known:
            classes[place], crowd = known[value]
            index = known[value][0]
            segments.append(Segment(value, index, index in things, area, iscrowd=crowd))
        elif value:
            raise InputError(
                f"{path}: segment {value} ({area} pixels) is not among the {len(known)} that its JSON lists; "
                "the two are not of one release, copy both again"
            )
    return segments, classes[places.reshape(ids.shape)]
