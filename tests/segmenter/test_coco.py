"""Segments as files: read again with pillow, numpy and json, and by the readers of COCO's ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ovstrans.datasets.published.panoptic import extract_segments, read_annotations, read_segment_ids
from ovstrans.datasets.sample import Segment
from ovstrans.errors import InputError
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.segmenter.coco import (
    make_annotation,
    make_instance_rows,
    read_instances,
    read_panoptic,
    select_distinct,
    to_image_id,
    to_image_name,
    write_instances,
    write_panoptic,
    write_segment_map,
)
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.datasets.test_run_lengths import walked

STREET = Vocabulary("street", (("sky",), ("car",)), things=frozenset({1}), colors=((30, 60, 200), (200, 30, 30)))

MAP = torch.tensor([[1, 1, 1, 1], [2, 2, 0, 3], [2, 2, 0, 3]], dtype=torch.int32)
SEGMENTS = [Segment(1, 0, False, 4), Segment(2, 1, True, 4), Segment(3, 1, True, 2)]


def masks(*rows: str) -> torch.Tensor:
    """A mask a string, its rows between slashes."""
    return torch.tensor([[[pixel == "#" for pixel in row] for row in each.split("/")] for each in rows])


def test_panoptic_by_hand(tmp_path: Path) -> None:
    write_segment_map(tmp_path / "panoptic" / "day" / "a.png", MAP)
    write_panoptic(tmp_path / "panoptic.json", [make_annotation("day/a", MAP, SEGMENTS)], STREET, STREET.things)
    assert json.loads((tmp_path / "panoptic.json").read_text()) == {
        "annotations": [
            {
                "image_id": "day/a",
                "file_name": "day/a.png",
                "segments_info": [
                    {"id": 1, "category_id": 0, "isthing": 0, "iscrowd": 0, "area": 4, "bbox": [0, 0, 4, 1]},
                    {"id": 2, "category_id": 1, "isthing": 1, "iscrowd": 0, "area": 4, "bbox": [0, 1, 2, 2]},
                    {"id": 3, "category_id": 1, "isthing": 1, "iscrowd": 0, "area": 2, "bbox": [3, 1, 1, 2]},
                ],
            }
        ],
        "categories": [
            {"id": 0, "name": "sky", "isthing": 0, "color": [30, 60, 200]},
            {"id": 1, "name": "car", "isthing": 1, "color": [200, 30, 30]},
        ],
    }
    with Image.open(tmp_path / "panoptic" / "day" / "a.png") as picture:
        assert picture.mode == "RGB" and picture.size == (4, 3)
        assert np.asarray(picture)[1].tolist() == [[2, 0, 0], [2, 0, 0], [0, 0, 0], [3, 0, 0]]


@given(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=20))
def test_ids_are_kept_to_the_last_of_24_bits(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    path = tmp_path_factory.mktemp("ids") / "a.png"
    write_segment_map(path, torch.tensor([ids]))
    with Image.open(path) as picture:
        pixels = np.asarray(picture).astype(np.int64)
    assert (pixels @ [1, 256, 256**2]).tolist() == [ids] == read_segment_ids(path).tolist()


@given(st.integers(0, 2**16), st.integers(1, 9), st.integers(1, 9), st.integers(0, 6))
def test_cocos_reader_gives_the_same_segments(
    tmp_path_factory: pytest.TempPathFactory, seed: int, height: int, width: int, count: int
) -> None:
    """Areas and boxes are those of the map, whatever the segments say; one without a pixel is not written."""
    folder = tmp_path_factory.mktemp("panoptic")
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, count + 1, (height, width))
    kinds = rng.integers(0, 2, count).tolist()
    segments = [Segment(number + 1, kind, kind == 1, -1) for number, kind in enumerate(kinds)]
    write_segment_map(folder / "a.png", torch.from_numpy(ids))
    entry = make_annotation("a", torch.from_numpy(ids), segments)
    write_panoptic(folder / "panoptic.json", [entry], STREET, STREET.things)
    rows = read_annotations(folder / "panoptic.json", {0: 0, 1: 1})["a"]
    read, label = extract_segments(read_segment_ids(folder / "a.png"), rows, STREET.things, 255, folder / "a.png")
    seen = [segment for segment in segments if (ids == segment.id).any()]
    assert read == [Segment(each.id, each.class_index, each.isthing, int((ids == each.id).sum())) for each in seen]
    assert np.array_equal(label, np.array([255, *kinds])[ids])
    for info in entry["segments_info"]:
        ys, xs = np.nonzero(ids == info["id"])
        assert info["area"] == len(ys)
        assert info["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]


def test_instances_by_hand(tmp_path: Path) -> None:
    found = Instances(
        torch.tensor([0.875, 0.25, 0.125]), torch.tensor([1, 0, 1]), masks(".##/.#.", ".../...", "#../###")
    )
    rows = make_instance_rows("a", found)
    write_instances(tmp_path / "instances.json", map(json.dumps, rows))
    assert json.loads((tmp_path / "instances.json").read_text()) == [
        {
            "image_id": "a",
            "category_id": 1,
            "score": 0.875,
            "bbox": [1, 0, 2, 2],
            "segmentation": {"size": [2, 3], "counts": [2, 3, 1]},
        },
        {
            "image_id": "a",
            "category_id": 1,
            "score": 0.125,
            "bbox": [0, 0, 3, 2],
            "segmentation": {"size": [2, 3], "counts": [0, 2, 1, 1, 1, 1]},
        },
    ]
    assert read_instances(tmp_path / "instances.json") == rows
    assert np.array_equal(walked(rows[1]["segmentation"]), found.masks[2].numpy())


def test_no_instance_is_an_empty_list(tmp_path: Path) -> None:
    write_instances(tmp_path / "instances.json", [])
    assert json.loads((tmp_path / "instances.json").read_text()) == []


@pytest.mark.parametrize(
    ("name", "identity"), [("000000000139", 139), ("139", "139"), ("a/000000000139", "a/000000000139"), ("ö", "ö")]
)
def test_an_image_of_coco_has_its_number(name: str, identity: int | str) -> None:
    assert to_image_id(name) == identity and to_image_name(identity) == name


def test_instances_are_counted_once() -> None:
    """The second lies on the first, the third half on it, the fourth more than half beside it, the last is unsure."""
    found = masks("####....", ".###....", "..####..", "...####.", "......##").numpy()
    assert select_distinct([0.9, 0.9, 0.8, 0.7, 0.4], found) == [0, 3]
    assert select_distinct([0.9, 0.8, 0.8, 0.7, 0.5], found[[0, 1, 2, 4, 3]]) == [0, 3]
    assert select_distinct([], found[:0]) == []
    assert select_distinct([0.5], found[:1]) == [0] and select_distinct([0.499], found[:1]) == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"annotations": []}')
    (tmp_path / "b.json").write_text('[{"image_id": 1}]')
    with pytest.raises(InputError, match=r"a\.json: no panoptic segments in COCO's format"):
        read_panoptic(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"b\.json: no list of instances in COCO's format"):
        read_instances(tmp_path / "b.json")
