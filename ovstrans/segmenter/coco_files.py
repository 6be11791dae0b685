"""Segments as files in COCO's formats, which its evaluators read.

    panoptic/NAME.png    segment ids as colours, id = R + 256 G + 65536 B, 0 for no segment; RGB, 8 bits each
    panoptic.json        `annotations`, one an image: image_id, file_name (below panoptic/), segments_info: id,
                         category_id, isthing, iscrowd (0), area, bbox; `categories`: id, name, isthing, color
    instances.json       a list, one entry a thing, the surest of each image first: image_id, category_id, score in
                         0..1, bbox, segmentation (run lengths, see `segmenter.rle`)

A category_id is the class's index in classes.json, a bbox [x, y, width, height]. An image_id is the image's name
among the predictions; of a name of 12 digits, as COCO's images have, that number.

(The panoptic format: Kirillov et al., Panoptic Segmentation, CVPR 2019, and panopticapi; both: cocodataset.org.)

Shapes: `H W` image.
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
from ovstrans.datasets.sample import Segment
from ovstrans.errors import InputError
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.segmenter import rle
from ovstrans.vocabulary.vocabulary import Vocabulary

PANOPTIC, PANOPTIC_JSON, INSTANCES_JSON = "panoptic", "panoptic.json", "instances.json"
"""The entries of a folder of predictions."""

SURE = 0.5
"""An instance is drawn, and counted in summaries, from this score on."""

Row = dict[str, Any]

_COCO_DIGITS = 12
_SCORE_DIGITS = 6
_LEVEL = 6


def image_id(name: str) -> int | str:
    """What COCO's files call the image of a prediction."""
    digits = len(name) == _COCO_DIGITS and name.isascii() and name.isdigit()
    return int(name) if digits else name


def name_of(identity: int | str) -> str:
    """The name that `image_id` was made of."""
    return f"{identity:0{_COCO_DIGITS}d}" if isinstance(identity, int) else identity


def write_segment_map(path: Path | str, segment_map: Tensor) -> None:
    """Write segment ids [H, W] from 0 to 2**24 - 1 as colours, atomically; see `panoptic.read_ids` of `data`."""
    ids = segment_map.detach().cpu().numpy().astype(np.int64)
    colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)
    with files.atomic_path(path) as temporary:
        Image.fromarray(colors).save(temporary, format="PNG", compress_level=_LEVEL)


def annotation(name: str, segment_map: Tensor, segments: Sequence[Segment]) -> Row:
    """The entry of an image in `annotations`: its segments [H, W] that have pixels, areas and boxes counted there."""
    ids = segment_map.detach().cpu().numpy()
    highest = max((segment.id for segment in segments), default=0)
    areas = np.bincount(ids.reshape(-1), minlength=highest + 1)
    places = ndimage.find_objects(ids, max_label=highest) if highest else []
    infos = []
    for segment in segments:
        if place := places[segment.id - 1]:
            rows, columns = place
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
    return {"image_id": image_id(name), "file_name": f"{name}.png", "segments_info": infos}


def results(name: str, found: Instances) -> list[Row]:
    """The entries of an image in instances.json; a mask without pixels has none."""
    rows = []
    for score, kind, mask in zip(found.scores.tolist(), found.classes.tolist(), found.masks.numpy(), strict=True):
        if mask.any():
            rows.append(
                {
                    "image_id": image_id(name),
                    "category_id": kind,
                    "score": round(score, _SCORE_DIGITS),
                    "bbox": rle.box(mask),
                    "segmentation": rle.encode(mask),
                }
            )
    return rows


def told_apart(scores: Sequence[float], masks: Sequence[np.ndarray]) -> list[int]:
    """Which instances an eye would count: those of score `SURE` and more that are mostly under no surer one.

    scores: [N], the surest first.  masks: bool [N, H, W].  COCO's evaluator wants all the others too: its measure
    takes the order, not the score, and a query may well be right about a thing that another one found.
    """
    seen: list[int] = []
    taken: np.ndarray | None = None
    for number, (score, mask) in enumerate(zip(scores, masks, strict=True)):
        if score < SURE:
            break
        taken = np.zeros_like(mask) if taken is None else taken
        if 2 * np.count_nonzero(mask & ~taken) > np.count_nonzero(mask):
            seen.append(number)
            taken |= mask
    return seen


def write_panoptic(
    path: Path | str, annotations: Iterable[Row], vocabulary: Vocabulary, things: Collection[int]
) -> None:
    """Write panoptic.json, atomically, an entry a line."""
    palette = vocabulary.palette().tolist()
    categories = [
        {"id": index, "name": name, "isthing": int(index in things), "color": palette[index]}
        for index, name in enumerate(vocabulary.names)
    ]
    parts = f'"annotations": {_lines(annotations)},\n"categories": {_lines(categories)}'
    files.write_text(path, f"{{{parts}}}\n")


def read_panoptic(path: Path | str) -> dict[str, Any]:
    """What `write_panoptic` wrote; InputError where it is missing or another file."""
    content = files.read_json(path)
    if not isinstance(content, dict) or not {"annotations", "categories"} <= set(content):
        raise InputError(f"{path}: no panoptic segments in COCO's format; give the panoptic.json of `ovstrans predict`")
    return content


def write_instances(path: Path | str, rows: Iterable[str]) -> None:
    """Write instances.json, atomically, an entry a line; rows: the entries as JSON, which takes little memory."""
    with files.atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(f"{',' if number else '['}\n{row}")
        file.write("\n]\n" if file.tell() else "[]\n")


def read_instances(path: Path | str) -> list[Row]:
    """What `write_instances` wrote; InputError where it is missing or another file."""
    content = files.read_json(path)
    if not isinstance(content, list) or not all(isinstance(row, dict) and "segmentation" in row for row in content):
        raise InputError(
            f"{path}: no list of instances in COCO's format; give the instances.json of `ovstrans predict`"
        )
    return content


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """A JSON list with an entry a line: run lengths, one number a line, would be unreadable."""
    return "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]"
