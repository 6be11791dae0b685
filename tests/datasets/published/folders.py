"""Tiny datasets in the layouts that users have, written by hand.

Each writer puts one split below a root. Images are 4x2 or as large as their label map.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Rows = Sequence[Sequence[int]]


def put_image(path: Path, rows: Rows) -> None:
    """A grey image of a label map's size, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (len(rows[0]), len(rows)), (90, 120, 150)).save(path)


def put_gray(path: Path, rows: Rows, dtype: type = np.uint8) -> None:
    """A label map that holds the numbers as they are; uint16 makes a 16-bit file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, dtype=dtype)).save(path)


def put_palette(path: Path, rows: Rows) -> None:
    """A palette PNG whose colours are others than its indices, as VOC's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.array(rows, dtype=np.uint8)).convert("P")
    picture.putdata([value for row in rows for value in row])
    picture.putpalette([(channel * 37 + 11) % 256 for channel in range(768)])
    picture.save(path)


def put_ids(path: Path, rows: Rows) -> None:
    """A panoptic PNG: id = R + 256 G + 65536 B."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.array(rows, dtype=np.int64)
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(colors.astype(np.uint8)).save(path)


def put_ade(path: Path, rows: Rows, extra: int = 0) -> None:
    """ADE20K's `_seg.png`: tens of red times 256, plus green, are the object; the rest is something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = np.array(rows, dtype=np.int64)
    colors = np.stack([objects // 256 * 10 + extra, objects % 256, objects * 0 + 77], axis=-1)
    Image.fromarray(colors.astype(np.uint8)).save(path)


def put_mat(path: Path, rows: Rows) -> None:
    """PASCAL-Context's .mat."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"LabelMap": np.array(rows, dtype=np.uint16)})


def put_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def put_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def annotation(file_name: str, segments: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    """An entry of panoptic JSON, from the category and iscrowd of each segment."""
    return {
        "image_id": file_name.rpartition(".")[0],
        "file_name": file_name,
        "segments_info": [
            {"id": number, "category_id": category, "iscrowd": crowd, "area": 0}
            for number, (category, crowd) in segments.items()
        ],
    }
