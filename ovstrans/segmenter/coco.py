"""Segments in COCO's file formats, which its evaluators read; masks as run lengths.

    panoptic/NAME.png    segment ids as colours, id = R + 256 G + 65536 B, 0 for no segment; RGB, 8 bits each
    panoptic.json        `annotations`, one an image: image_id, file_name (below panoptic/), segments_info: id,
                         category_id, isthing, iscrowd (0), area, bbox; `categories`: id, name, isthing, color
    instances.json       a list with an entry for each thing, those of an image by falling score: image_id,
                         category_id, score in 0..1, bbox, segmentation (run lengths)

A category_id is the class's index in classes.json, a bbox [x, y, width, height]. An image_id is the name of the
image's predictions; for a name of 12 digits, as COCO's images have, that number.

Run lengths are COCO's, uncompressed: {"size": [H, W], "counts": [n0, n1, n2, ...]}. Column by column, n0 pixels are
outside the mask (maybe none), then n1 inside, n2 outside, and so on; they sum to H * W.

Sources: the panoptic format: Kirillov et al., Panoptic Segmentation, CVPR 2019, and panopticapi; both formats:
cocodataset.org.

Shapes: `H W` image, `N` instances.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ovstrans import files
from ovstrans.datasets.run_lengths import encode_mask
from ovstrans.datasets.sample import Segment
from ovstrans.errors import InputError
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.parsing import LARGEST_ANNOTATIONS
from ovstrans.vocabulary.vocabulary import Vocabulary

PANOPTIC, PANOPTIC_JSON, INSTANCES_JSON = "panoptic", "panoptic.json", "instances.json"
"""Entries of a folder of predictions."""

CONFIDENT_SCORE = 0.5
"""Score from which on an instance is drawn, and counted in summaries."""

Row = dict[str, Any]
"""An entry of panoptic.json or instances.json."""

_COCO_DIGITS = 12
_SCORE_DIGITS = 6
_LEVEL = 6


def to_image_id(name: str) -> int | str:
    """Return the id in COCO's files of the image whose predictions have a name."""
    digits = len(name) == _COCO_DIGITS and name.isascii() and name.isdigit()
    return int(name) if digits else name


def to_image_name(image_id: int | str) -> str:
    """Return the name that `to_image_id` made an id of."""
    return f"{image_id:0{_COCO_DIGITS}d}" if isinstance(image_id, int) else image_id


def write_segment_map(path: Path | str, segment_map: Tensor) -> None:
    """Write segment ids [H, W] from 0 to 2**24 - 1 as colours, atomically; `datasets` reads such files."""
    ids = segment_map.detach().cpu().numpy().astype(np.int64)
    colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)
    with files.atomic_path(path) as temporary:
        Image.fromarray(colors).save(temporary, format="PNG", compress_level=_LEVEL)


def make_annotation(name: str, segment_map: Tensor, segments: Sequence[Segment]) -> Row:
    """Return the entry of an image in panoptic.json, without segments that have no pixel.

    Args:
        name: Name of the image's predictions.
        segment_map: Segment ids [H, W]; areas and boxes are counted here.
        segments: What the ids are.
    """
    ids = segment_map.detach().cpu().numpy()
    highest = max((segment.id for segment in segments), default=0)
    areas = np.bincount(ids.reshape(-1), minlength=highest + 1)
    slices = ndimage.find_objects(ids, max_label=highest) if highest else []
    infos = []
    for segment in segments:
        if box := slices[segment.id - 1]:
            rows, columns = box
            infos.append(
                {
                    "id": segment.id,
                    "category_id": segment.class_index,
                    "isthing": int(segment.isthing),
                    "iscrowd": 0,
                    "area": int(areas[segment.id]),
                    "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                }
            )
    return {"image_id": to_image_id(name), "file_name": f"{name}.png", "segments_info": infos}


def make_instance_rows(name: str, instances: Instances) -> list[Row]:
    """Return the entries of an image in instances.json, without instances that have no pixel."""
    rows = []
    for score, index, mask in zip(
        instances.scores.tolist(), instances.classes.tolist(), instances.masks.numpy(), strict=True
    ):
        if mask.any():
            rows.append(
                {
                    "image_id": to_image_id(name),
                    "category_id": index,
                    "score": round(score, _SCORE_DIGITS),
                    "bbox": bounding_box(mask),
                    "segmentation": encode_mask(mask),
                }
            )
    return rows


def select_distinct(scores: Sequence[float], masks: Sequence[np.ndarray]) -> list[int]:
    """Select the instances to draw and count: confident ones that instances of higher score leave mostly uncovered.

    COCO's evaluator needs all the others too: its measure depends on the order, not the score, and a query may be
    right about a thing that another query found as well.

    Args:
        scores: [N], the highest first.
        masks: bool [N, H, W].

    Returns:
        Their indices.
    """
    selected: list[int] = []
    covered: np.ndarray | None = None
    for number, (score, mask) in enumerate(zip(scores, masks, strict=True)):
        if score < CONFIDENT_SCORE:
            break
        covered = np.zeros_like(mask) if covered is None else covered
        if 2 * np.count_nonzero(mask & ~covered) > np.count_nonzero(mask):
            selected.append(number)
            covered |= mask
    return selected


def write_panoptic(
    path: Path | str, annotations: Iterable[Row], vocabulary: Vocabulary, things: Collection[int]
) -> None:
    """Write panoptic.json, atomically, an entry a line."""
    palette = vocabulary.palette().tolist()
    categories = [
        {"id": index, "name": name, "isthing": int(index in things), "color": palette[index]}
        for index, name in enumerate(vocabulary.names)
    ]
    parts = f'"annotations": {_json_lines(annotations)},\n"categories": {_json_lines(categories)}'
    files.write_text(path, f"{{{parts}}}\n")


def read_panoptic(path: Path | str) -> dict[str, Any]:
    """Read what `write_panoptic` wrote.

    Raises:
        InputError: If the file is missing or another one.
    """
    content = files.read_json(path, limit=LARGEST_ANNOTATIONS)
    if not isinstance(content, dict) or not {"annotations", "categories"} <= set(content):
        raise InputError(f"{path}: no panoptic segments in COCO's format; give the panoptic.json of `ovstrans predict`")
    return content


def write_instances(path: Path | str, rows: Iterable[str]) -> None:
    """Write instances.json, atomically, an entry a line.

    Args:
        path: The file.
        rows: The entries as JSON text, which takes less memory than objects.
    """
    with files.atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(f"{',' if number else '['}\n{row}")
        file.write("\n]\n" if file.tell() else "[]\n")


def read_instances(path: Path | str) -> list[Row]:
    """Read what `write_instances` wrote.

    Raises:
        InputError: If the file is missing or another one.
    """
    content = files.read_json(path, limit=LARGEST_ANNOTATIONS)
    if not isinstance(content, list) or not all(isinstance(row, dict) and "segmentation" in row for row in content):
        raise InputError(
            f"{path}: no list of instances in COCO's format; give the instances.json of `ovstrans predict`"
        )
    return content


def bounding_box(mask: np.ndarray) -> list[int]:
    """Return [x, y, width, height] of the pixels in a mask, bool [H, W]; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a JSON list with an entry a line; indented, run lengths would take a line for each number."""
    return "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]"
