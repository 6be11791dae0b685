"""Published datasets on real files: those below OVSTRANS_TEST_DATA, skipped where they are not there.

Expected there: `coco-panoptic-sample` (the `sample_data` of cocodataset/panopticapi) and `camvid` (of the
SegNet tutorial).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.published.dataset import PublishedDataset


def below(folder: str) -> Path:
    root = Path(os.environ.get("OVSTRANS_TEST_DATA", ""))
    if not os.environ.get("OVSTRANS_TEST_DATA") or not (root / folder).is_dir():
        pytest.skip(f"OVSTRANS_TEST_DATA has no {folder}")
    return root


def test_coco_panoptic() -> None:
    root = below("coco-panoptic-sample")
    dataset = open_dataset("coco-panoptic:val", split="val", data_root=root)
    assert isinstance(dataset, PublishedDataset) and len(dataset) == 2
    content = json.loads((root / "coco-panoptic-sample/panoptic_examples.json").read_text())
    categories = sorted(content["categories"], key=lambda category: category["id"])
    place = {category["id"]: index for index, category in enumerate(categories)}
    assert dataset.vocabulary.things == {place[category["id"]] for category in categories if category["isthing"]}
    for index in range(2):
        sample, (_, png) = dataset[index], dataset.paths(index)
        assert png is not None and sample.label is not None and sample.segment_map is not None
        colors = np.array(Image.open(png)).astype(int)
        ids = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
        (entry,) = [entry for entry in content["annotations"] if entry["file_name"] == png.name]
        want = np.full(ids.shape, 255)
        for segment in entry["segments_info"]:
            want[ids == segment["id"]] = place[segment["category_id"]]
        assert np.array_equal(sample.label.numpy(), want)
        assert np.array_equal(sample.segment_map.numpy(), ids)
        found = {(s.id, s.class_index, s.area, s.iscrowd) for s in sample.segments}
        assert found == {
            (s["id"], place[s["category_id"]], s["area"], bool(s["iscrowd"])) for s in entry["segments_info"]
        }


@pytest.mark.parametrize(("split", "size"), [("train", 367), ("val", 101)])
def test_camvid(split: str, size: int) -> None:
    root = below("camvid")
    dataset = open_dataset(f"camvid:{split}", split=split, data_root=root)
    assert isinstance(dataset, PublishedDataset) and len(dataset) == size
    for index in (0, size // 2, size - 1):
        (image, label), sample = dataset.paths(index), dataset[index]
        assert label is not None and image.name == label.name and sample.label is not None
        values = np.array(Image.open(label))
        assert np.array_equal(sample.label.numpy(), np.where(values == 11, 255, values))
