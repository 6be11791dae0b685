"""Panoptic ground truth in COCO's format: a PNG of segment ids, and a JSON file with the class of each segment.

Format of Kirillov et al., Panoptic Segmentation, CVPR 2019, and its API: a pixel's segment id is R + 256 G + 65536 B,
where 0 means no segment. VIPSeg's JSON holds a list of annotations per video.

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
from ovstrans.parsing import LARGEST_ANNOTATIONS

Annotations = Mapping[str, np.ndarray]
"""Maps each PNG, by its path below their folder without suffix, to its segments: id, class index and iscrowd, int64
[N, 3]."""


@dataclass(frozen=True)
class Panoptic:
    """Paths of the panoptic ground truth in a layout.

    Attributes:
        folder: Folder of the PNGs, as in a `Layout`.
        json: Their JSON file, likewise.
        classes: Class index of each `category_id`.
        suffix: What follows the image's name in the name of its PNG.
        flat: Whether all PNGs are directly in the folder, although images are in subfolders.
    """

    folder: str
    json: str
    classes: Mapping[int, int]
    suffix: str = ".png"
    flat: bool = False

    def png_name(self, name: str) -> str:
        """Return the path of an image's PNG below the folder."""
        return (name.rpartition("/")[2] if self.flat else name) + self.suffix


def read_annotations(path: Path, classes: Mapping[int, int]) -> Annotations:
    """Read the segments of every annotated image.

    Args:
        path: The JSON file.
        classes: Class index of each `category_id`.

    Raises:
        InputError: The file is missing or not in the format, or a `category_id` is unknown.
    """
    content = read_json(path, limit=LARGEST_ANNOTATIONS)
    annotations: dict[str, np.ndarray] = {}
    try:
        for name, entry in _iterate_entries(content):
            rows = [(int(s["id"]), classes[int(s["category_id"])], int(s["iscrowd"])) for s in entry["segments_info"]]
            annotations[name] = np.array(rows, dtype=np.int64).reshape(-1, 3)
    except KeyError as error:
        if isinstance(error.args[0], int):
            raise InputError(
                f"{path}: {name}: category_id {error} is none of the {len(classes)} of this dataset"
            ) from error
        raise InputError(f"{path}: not panoptic annotations in COCO's format (an entry lacks {error})") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not panoptic annotations in COCO's format ({error})") from error
    if not annotations:
        raise InputError(f"{path}: annotates no image")
    return annotations


def _iterate_entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield the key of each PNG in `Annotations` with its entry in the JSON file."""
    for entry in content["annotations"]:
        if "annotations" in entry:
            for frame in entry["annotations"]:
                yield f"{entry['video_id']}/{_remove_suffix(frame['file_name'])}", frame
        else:
            yield _remove_suffix(entry["file_name"]), entry


def _remove_suffix(file: str) -> str:
    return file.rpartition(".")[0] or file


def read_segment_ids(path: Path) -> np.ndarray:
    """Read the segment id of each pixel, int32 [H, W]; InputError if the file is missing, broken or not in colour."""
    colors = read_colors(path).astype(np.int32)
    ids: np.ndarray = colors[..., 0] + (colors[..., 1] << 8) + (colors[..., 2] << 16)
    return ids


def extract_segments(
    ids: np.ndarray, annotation: np.ndarray, things: Collection[int], ignore: int, path: Path
) -> tuple[list[Segment], np.ndarray]:
    """Return the segments that are visible in a segment map, and the label map made from them, crowds included.

    Args:
        ids: The segment map, int [H, W].
        annotation: Entry of the image in `Annotations`, int64 [N, 3].
        things: Indices of countable classes.
        ignore: Label of pixels without segment.
        path: The PNG, for error messages.

    Returns:
        The segments, and the label map [H, W]: uint8 if `ignore` is 255, else int64.

    Raises:
        InputError: A segment id is not in the annotation.
    """
    values, positions, areas = np.unique(ids, return_inverse=True, return_counts=True)
    known = {int(number): (int(index), bool(crowd)) for number, index, crowd in annotation}
    classes = np.full(len(values), ignore, dtype=np.uint8 if ignore == IGNORE else np.int64)
    segments = []
    for position, (value, area) in enumerate(zip(values.tolist(), areas.tolist(), strict=True)):
        if value in known:
            index, crowd = known[value]
            classes[position] = index
            segments.append(Segment(value, index, index in things, area, iscrowd=crowd))
        elif value:
            raise InputError(
                f"{path}: segment {value} ({area} pixels) is not among the {len(known)} that its JSON lists; "
                "the two are not of the same release, copy both again"
            )
    return segments, classes[positions.reshape(ids.shape)]
