"""Panoptic ground truth of published datasets: label map, segments and segment map; captions; videos."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.sample import Sample
from ovstrans.errors import InputError

from .folders import annotation, put_gray, put_ids, put_image, put_json, put_lines

IDS = [[0, 70000, 70000, 300], [5, 5, 300, 0]]
COCO = {70000: (1, 0), 300: (13, 1), 5: (200, 0)}  # person, a crowd of stop signs, rug
COCO_CLASSES = [[255, 0, 0, 11], [132, 132, 11, 255]]


def opened(spec: str, root: Path) -> PublishedDataset:
    dataset = open_dataset(spec, split="none", data_root=root)
    assert isinstance(dataset, PublishedDataset)
    return dataset


def segments(sample: Sample) -> dict[int, tuple[int, bool, int, bool]]:
    assert sample.segment_map is not None and str(sample.segment_map.dtype) == "torch.int32"
    found = {s.id: (s.class_index, s.isthing, s.area, s.iscrowd) for s in sample.segments}
    assert all((sample.segment_map == number).sum() == area for number, (_, _, area, _) in found.items())
    return found


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    put_image(tmp_path / "coco/val2017/000000000139.jpg", IDS)
    put_image(tmp_path / "coco/val2017/000000000001.jpg", IDS)  # not annotated
    put_ids(tmp_path / "coco/panoptic_val2017/000000000139.png", IDS)
    put_json(
        tmp_path / "coco/annotations/panoptic_val2017.json",
        {"annotations": [annotation("000000000139.png", COCO)], "categories": []},
    )
    return tmp_path


def test_coco_as_downloaded_paints_every_segment_crowds_included(coco: Path) -> None:
    dataset = opened("coco-panoptic:val", coco)
    assert (dataset.location.layout.name, len(dataset)) == ("original", 1)
    sample = dataset[0]
    assert sample.label is not None and sample.label.tolist() == COCO_CLASSES
    assert sample.segment_map is not None and sample.segment_map.tolist() == IDS
    assert segments(sample) == {70000: (0, True, 2, False), 300: (11, True, 2, True), 5: (132, False, 2, False)}
    assert dataset.paths(0)[1] == coco / "coco/panoptic_val2017/000000000139.png"


def test_coco_prepared_reads_its_label_map_and_the_segments_beside_it(coco: Path) -> None:
    (coco / "coco/val2017/000000000001.jpg").unlink()
    prepared = [[255, 0, 0, 11], [132, 132, 11, 7]]
    put_gray(coco / "coco/panoptic_semseg_val2017/000000000139.png", prepared)
    dataset = opened("coco-panoptic:val", coco)
    assert dataset.location.layout.name == "prepared"
    assert dataset[0].label is not None and dataset[0].label.tolist() == prepared
    assert set(segments(dataset[0])) == {70000, 300, 5}
    (coco / "coco/annotations/panoptic_val2017.json").unlink()
    sample = opened("coco-panoptic:val", coco)[0]
    assert sample.label is not None and sample.label.tolist() == prepared
    assert sample.segments == [] and sample.segment_map is None


def test_a_half_prepared_dataset_is_read_as_downloaded(coco: Path) -> None:
    (coco / "coco/panoptic_semseg_val2017").mkdir()
    assert opened("coco-panoptic:val", coco).location.layout.name == "original"


def test_captions_of_coco(coco: Path) -> None:
    captions = [{"image_id": 139, "caption": "A room. "}, {"image_id": 139, "caption": "Chairs."}]
    put_json(coco / "coco/annotations/captions_val2017.json", {"annotations": captions})
    assert opened("coco-panoptic:val", coco)[0].caption == "A room."
    (coco / "coco/annotations/captions_val2017.json").write_text("{")
    with pytest.raises(InputError, match=r"^[^(]*captions_val2017\.json: not valid JSON"):
        opened("coco-panoptic:val", coco)
    put_json(coco / "coco/annotations/captions_val2017.json", {"annotations": [{"image_id": 139}]})
    with pytest.raises(InputError, match=r"captions_val2017\.json: not captions in COCO's format .*caption"):
        opened("coco-panoptic:val", coco)


def test_the_sample_of_panopticapi(tmp_path: Path) -> None:
    put_image(tmp_path / "sample_data/input_images/000000000139.jpg", IDS)
    put_ids(tmp_path / "sample_data/panoptic_examples/000000000139.png", IDS)
    entries = {"annotations": [annotation("000000000139.png", COCO)]}
    put_json(tmp_path / "sample_data/panoptic_examples.json", entries)
    sample = opened("coco-panoptic:val", tmp_path)[0]
    assert sample.label is not None and sample.label.tolist() == COCO_CLASSES


def test_ade_keeps_its_label_map_where_segments_leave_gaps(tmp_path: Path) -> None:
    top = tmp_path / "ADEChallengeData2016"
    put_image(top / "images/validation/ADE_val_1.jpg", IDS)
    put_gray(top / "annotations/validation/ADE_val_1.png", [[1, 13, 13, 4], [8, 8, 4, 0]])
    put_ids(top / "ade20k_panoptic_val/ADE_val_1.png", IDS)
    entries = {70000: (12, 0), 300: (3, 0), 5: (7, 0)}  # person, floor, bed
    put_json(top / "ade20k_panoptic_val.json", {"annotations": [annotation("ADE_val_1.png", entries)]})
    sample = opened("ade20k-150:val", tmp_path)[0]
    assert sample.label is not None and sample.label.tolist() == [[0, 12, 12, 3], [7, 7, 3, 255]]
    assert segments(sample) == {70000: (12, True, 2, False), 300: (3, False, 2, False), 5: (7, True, 2, False)}


def test_cityscapes_finds_flat_panoptic_files_of_images_by_city(tmp_path: Path) -> None:
    name, top = "ulm_000001_000019", tmp_path / "cityscapes"
    put_image(top / f"leftImg8bit/val/ulm/{name}_leftImg8bit.png", IDS)
    put_gray(top / f"gtFine/val/ulm/{name}_gtFine_labelIds.png", [[3, 24, 24, 26], [7, 7, 26, 0]])
    put_ids(top / f"gtFine/cityscapes_panoptic_val/{name}_gtFine_panoptic.png", IDS)
    entry = annotation(f"{name}_gtFine_panoptic.png", {70000: (24, 0), 300: (26, 1), 5: (7, 0)})
    put_json(top / "gtFine/cityscapes_panoptic_val.json", {"annotations": [{**entry, "image_id": name}]})
    sample = opened("cityscapes:val", tmp_path)[0]
    assert sample.label is not None and sample.label.tolist() == [[255, 11, 11, 13], [0, 0, 13, 255]]
    assert segments(sample) == {70000: (11, True, 2, False), 300: (13, True, 2, True), 5: (0, False, 2, False)}


def test_vspw_videos(tmp_path: Path) -> None:
    top = tmp_path / "VSPW_480p"
    rows = [[0, 1, 124], [254, 255, 60]]
    for video, frames in (("b_clip", 2), ("a_clip", 3), ("unlisted", 1)):
        for frame in range(frames):
            put_image(top / f"data/{video}/origin/{frame:08d}.jpg", rows)
            put_gray(top / f"data/{video}/mask/{frame:08d}.png", rows)
    put_lines(top / "val.txt", "b_clip", "a_clip")
    dataset = opened("vspw:val", tmp_path)
    assert list(dataset.videos) == [range(0, 2), range(2, 5)]
    assert [dataset[i].name for i in (0, 2)] == ["b_clip/00000000", "a_clip/00000000"]
    label = dataset[4].label
    assert label is not None and label.tolist() == [[255, 0, 123], [255, 255, 59]]


def test_vspw_as_gkc_has_it(tmp_path: Path) -> None:
    put_image(tmp_path / "VSPW_minival/1.jpg", [[0, 123, 255]])
    put_gray(tmp_path / "VSPW_minival/1.png", [[0, 123, 255]])
    label = opened("vspw:val", tmp_path)[0].label
    assert label is not None and label.tolist() == [[0, 123, 255]]


def test_vipseg_as_downloaded_has_an_instance_a_number(tmp_path: Path) -> None:
    top = tmp_path / "VIPSeg"
    rows = [[0, 1, 6100, 6101], [124, 61, 61, 12400]]  # void, wall, two persons, train, person, train
    put_image(top / "imgs/v1/00000.jpg", rows)
    put_gray(top / "panomasks/v1/00000.png", rows, np.uint16)
    put_lines(top / "train.txt", "v1")
    dataset = opened("vipseg:train", tmp_path)
    sample = dataset[0]
    assert sample.label is not None and sample.label.tolist() == [[255, 0, 60, 60], [123, 60, 60, 123]]
    assert segments(sample)[6101] == (60, True, 1, False) and segments(sample)[1] == (0, False, 1, False)
    assert len(sample.segments) == 6 and list(dataset.videos) == [range(1)]
    assert len(dataset.vocabulary.novel) == 12


def test_vipseg_720p_in_cocos_format(tmp_path: Path) -> None:
    top = tmp_path / "VIPSeg/VIPSeg_720P"
    videos = []
    for video in ("v2", "v1"):
        put_image(top / f"images/{video}/00000.jpg", IDS)
        put_ids(top / f"panomasksRGB/{video}/00000.png", IDS)
        frame = annotation("00000.png", {70000: (60, 0), 300: (0, 0), 5: (123, 0)})
        videos.append({"video_id": video, "annotations": [frame]})
    put_json(top / "panoptic_gt_VIPSeg_val.json", {"videos": [], "annotations": videos, "categories": []})
    dataset = opened("vipseg:val", tmp_path)
    assert (len(dataset), list(dataset.videos)) == (2, [range(0, 1), range(1, 2)])
    sample = dataset[1]
    assert sample.label is not None and sample.label.tolist() == [[255, 60, 60, 0], [123, 123, 0, 255]]
    assert segments(sample)[300] == (0, False, 2, False)
    assert len(open_dataset("vipseg:val", split="val", data_root=tmp_path, labels=False)) == 2


def test_worker_processes_can_take_a_dataset_along(coco: Path) -> None:
    dataset = opened("coco-panoptic:val", coco)
    copy = pickle.loads(pickle.dumps(dataset))
    label = copy[0].label
    assert label is not None and label.tolist() == COCO_CLASSES


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ({70000: (1, 0), 300: (13, 0)}, r"000000000139\.png: segment 5 \(2 pixels\) is not among the 2"),
        ({**COCO, 5: (12, 0)}, r"panoptic_val2017\.json: 000000000139: category_id 12 is none of the 133"),
    ],
)
def test_segments_that_fit_no_json(coco: Path, segments: dict[int, tuple[int, int]], message: str) -> None:
    put_json(
        coco / "coco/annotations/panoptic_val2017.json", {"annotations": [annotation("000000000139.png", segments)]}
    )
    with pytest.raises(InputError, match=message):
        opened("coco-panoptic:val", coco)[0]


def test_a_json_that_is_none_of_panoptic_annotations(coco: Path) -> None:
    for content, message in (
        ({"annotations": [{"file_name": "000000000139.png"}]}, r"lacks 'segments_info'"),
        ({"images": []}, r"lacks 'annotations'"),
        ([], r"not panoptic annotations"),
        ({"annotations": []}, r"annotates no image"),
    ):
        put_json(coco / "coco/annotations/panoptic_val2017.json", content)
        with pytest.raises(InputError, match=rf"panoptic_val2017\.json: .*{message}"):
            opened("coco-panoptic:val", coco)
