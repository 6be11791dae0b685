"""Published datasets that are missing, incomplete or broken: each fault is named with its path."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.check import find_faults
from ovstrans.datasets.images import find_images
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.published.registry import PUBLISHED, locate_dataset
from ovstrans.errors import InputError, MismatchError
from ovstrans.progress import ProgressReporter

from .folders import annotation, put_ade, put_gray, put_ids, put_image, put_json, put_lines, put_mat

ROWS = [[0, 1, 150], [7, 8, 9]]


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    for number in range(3):
        put_image(tmp_path / f"ADEChallengeData2016/images/validation/ADE_val_{number}.jpg", ROWS)
        put_gray(tmp_path / f"ADEChallengeData2016/annotations/validation/ADE_val_{number}.png", ROWS)
    return tmp_path


def fault(spec: str, root: Path) -> str:
    """The one line that opening and reading everything ends in."""
    with pytest.raises(InputError) as caught:
        dataset = open_dataset(spec, split="none", data_root=root)
        for index in range(len(dataset)):
            dataset[index]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_dataset_that_is_not_found_names_the_places_searched_and_the_layouts_read(tmp_path: Path) -> None:
    message = fault("context-459:val", tmp_path / "none")
    for words in (
        "dataset context-459:val: not found in",
        f"{tmp_path}/none (no such folder)",
        "pascal_ctx_d2/ with images/validation, annotations_ctx459/validation",
        "VOCdevkit/VOC2010/ with JPEGImages, trainval, ImageSets/SegmentationContext/val.txt or "
        "ImageSets/Main/val.txt or trainval_merged.json",
        "`data_root`",
        "OVSTRANS_DATASETS",
    ):
        assert words in message


def test_what_is_missing_of_one_that_is_half_there(tmp_path: Path) -> None:
    put_image(tmp_path / "VOCdevkit/VOC2012/JPEGImages/a.jpg", ROWS)
    put_gray(tmp_path / "VOCdevkit/VOC2012/SegmentationClass/a.png", ROWS)
    assert f"{tmp_path}/VOCdevkit/VOC2012 lacks ImageSets/Segmentation/val.txt;" in fault("pas-20:val", tmp_path)


def test_a_split_that_it_does_not_have(tmp_path: Path) -> None:
    assert "dataset camvid: no split 'test'; it has train, val" in fault("camvid:test", tmp_path)


def test_missing_label_maps_are_counted_and_the_first_is_named(ade: Path) -> None:
    for number in (1, 2):
        (ade / f"ADEChallengeData2016/annotations/validation/ADE_val_{number}.png").unlink()
    message = fault("ade20k-150:val", ade)
    assert "images/validation/ADE_val_1.jpg: has no label map" in message
    assert "annotations/validation/ADE_val_1.png" in message and "(and 1 more)" in message
    found = locate_dataset(PUBLISHED["ade20k-150"], "val", [ade])
    assert found is not None and len(found.missing) == 2
    dataset = PublishedDataset(found, allow_missing=True)
    assert len(dataset) == 3 and dataset[0].label is not None
    with pytest.raises(InputError, match=r"ADE_val_1\.png: no such file"):
        dataset[1]


def test_the_error_is_about_the_layout_with_fewest_missing_files(tmp_path: Path) -> None:
    for number in range(2):
        put_image(tmp_path / f"cityscapes/leftImg8bit/val/ulm/{number}_leftImg8bit.png", [[1]])
    put_gray(tmp_path / "cityscapes/gtFine/val/ulm/0_gtFine_labelIds.png", [[7]])
    assert "has no label map" in fault("cityscapes:val", tmp_path)
    assert "1_gtFine_labelIds.png" in fault("cityscapes:val", tmp_path)


def test_an_unfinished_preparation_is_not_taken_for_the_dataset(tmp_path: Path) -> None:
    top = tmp_path / "VOCdevkit/VOC2012"
    put_lines(top / "ImageSets/Segmentation/val.txt", "a", "b")
    for number, name in enumerate(("a", "b")):
        put_image(top / f"JPEGImages/{name}.jpg", ROWS)
        put_gray(top / f"SegmentationClass/{name}.png", [[1, 1, 1], [1, 1, 1]])
        put_image(tmp_path / f"pascal_voc_d2/images/validation/{name}.jpg", ROWS)
        put_gray(tmp_path / f"pascal_voc_d2/annotations_pascal20/validation/{name}.png", [[0, 0, 0], [0, 0, 0]])
        dataset = open_dataset("pas-20:val", split="val", data_root=tmp_path) if number else None
    assert isinstance(dataset, PublishedDataset) and dataset.location.layout.name == "prepared"
    for folder in ("images", "annotations_pascal20"):
        next((tmp_path / "pascal_voc_d2" / folder / "validation").glob("b.*")).unlink()
    dataset = open_dataset("pas-20:val", split="val", data_root=tmp_path)
    assert isinstance(dataset, PublishedDataset) and (len(dataset), dataset.location.layout.name) == (2, "original")


def test_an_unfinished_preparation_of_a_damaged_original_is_not_taken_for_the_dataset(tmp_path: Path) -> None:
    top = tmp_path / "VOCdevkit/VOC2012"
    put_lines(top / "ImageSets/Segmentation/val.txt", "a", "b")
    for name in ("a", "b"):
        put_image(top / f"JPEGImages/{name}.jpg", ROWS)
    put_gray(top / "SegmentationClass/a.png", [[1, 1, 1], [1, 1, 1]])
    put_image(tmp_path / "pascal_voc_d2/images/validation/a.jpg", ROWS)
    put_gray(tmp_path / "pascal_voc_d2/annotations_pascal20/validation/a.png", [[0, 0, 0], [0, 0, 0]])
    assert "JPEGImages/b.jpg: has no label map" in fault("pas-20:val", tmp_path)


def test_dangling_symlinks_are_missing_files(ade: Path) -> None:
    """With a listing or without, of images and of label maps: opening names the first, a check every one."""
    image = ade / "ADEChallengeData2016/images/validation/ADE_val_1.jpg"
    label = ade / "ADEChallengeData2016/annotations/validation/ADE_val_2.png"
    for path in (image, label):
        path.unlink()
        path.symlink_to("gone/it")
    assert f"{image}: no such file, only a link to gone/it" in fault("ade20k-150:val", ade)
    dataset = open_dataset("ade20k-150:val", split="none", data_root=ade, allow_missing=True)
    assert isinstance(dataset, PublishedDataset)
    named = find_faults(dataset, ProgressReporter(None, "check", 3), workers=1)
    assert len(named) == 2 and str(image) in named[0] and f"has no label map {label}" in named[1]


def test_dangling_symlinks_in_the_ade_tree_and_among_frames(tmp_path: Path) -> None:
    scene = tmp_path / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    put_ade(scene / "ADE_val_00000001_seg.png", ROWS)
    (scene / "ADE_val_00000001.jpg").symlink_to("gone.jpg")
    assert "ADE_val_00000001.jpg: no such file, only a link to gone.jpg" in fault("ade20k-847:val", tmp_path)
    video = tmp_path / "VSPW_480p/data/one"
    put_lines(tmp_path / "VSPW_480p/val.txt", "one")
    put_image(video / "origin/1.jpg", ROWS)
    for number in (1, 2):
        put_gray(video / f"mask/{number}.png", [[1, 2, 3], [4, 5, 6]])
    (video / "origin/2.jpg").symlink_to(tmp_path / "gone.jpg")
    assert f"origin/2.jpg: no such file, only a link to {tmp_path}/gone.jpg" in fault("vspw:val", tmp_path)


def test_what_may_not_be_read_is_named(ade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir, closed = os.scandir, str(ade / "ADEChallengeData2016/annotations/validation")

    def refuse(path: str | Path) -> object:
        if str(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"{closed}: no permission to read this folder" in fault("ade20k-150:val", ade)
    closed = str(ade / "ADEChallengeData2016/images/validation")
    with pytest.raises(InputError, match="images/validation: no permission"):
        find_images(ade)
    monkeypatch.undo()
    exists = Path.exists

    def closed_above(path: Path) -> bool:
        if "annotations" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", closed_above)
    message = fault("ade20k-150:val", ade)
    assert "annotations/validation: cannot be read (Permission denied)" in message and "`data_root`" in message


def test_a_missing_panoptic_png(tmp_path: Path) -> None:
    top = tmp_path / "ADEChallengeData2016"
    put_image(top / "images/validation/a.jpg", ROWS)
    put_gray(top / "annotations/validation/a.png", ROWS)
    put_json(top / "ade20k_panoptic_val.json", {"annotations": [annotation("b.png", {})]})
    (top / "ade20k_panoptic_val").mkdir()
    message = fault("ade20k-150:val", tmp_path)
    assert "images/validation/a.jpg: has no panoptic PNG" in message and "ade20k_panoptic_val/a.png" in message
    put_ids(top / "ade20k_panoptic_val/a.png", ROWS)
    assert "ade20k_panoptic_val.json: does not annotate a.png" in fault("ade20k-150:val", tmp_path)


def test_an_illegal_label_value(ade: Path) -> None:
    path = ade / "ADEChallengeData2016/annotations/validation/ADE_val_1.png"
    put_gray(path, [[0, 151, 200], [1, 1, 1]])
    assert fault("ade20k-150:val", ade).startswith(
        f"{path}: label value 151 (and 1 more) is not allowed (1 to 150, 0 ignored)"
    )


def test_sizes_that_differ(ade: Path) -> None:
    put_gray(ade / "ADEChallengeData2016/annotations/validation/ADE_val_2.png", [[1, 2]])
    dataset = open_dataset("ade20k-150:val", split="val", data_root=ade)
    with pytest.raises(MismatchError, match=r"ADE_val_2\.png: the label map is 2x1, its image .*ADE_val_2\.jpg is 3x2"):
        dataset[2]


def test_truncated_files(ade: Path, tmp_path: Path) -> None:
    label = ade / "ADEChallengeData2016/annotations/validation/ADE_val_0.png"
    generator = np.random.default_rng(0)
    put_gray(label, generator.integers(0, 150, (40, 40)).tolist())
    label.write_bytes(label.read_bytes()[:500])
    assert f"{label}: a broken image" in fault("ade20k-150:val", ade)
    mat = tmp_path / "VOC2010/trainval/a.mat"
    put_image(tmp_path / "VOC2010/JPEGImages/a.jpg", ROWS)
    put_mat(mat, ROWS)
    put_lines(tmp_path / "VOC2010/ImageSets/Main/val.txt", "a")
    mat.write_bytes(mat.read_bytes()[:150])
    assert f"{mat}: a broken .mat file" in fault("context-459:val", tmp_path)
    mat.write_bytes(b"")
    assert f"{mat}: a broken .mat file" in fault("context-459:val", tmp_path)


def test_a_mat_file_of_another_dataset(tmp_path: Path) -> None:
    from scipy.io import savemat

    put_image(tmp_path / "VOC2010/JPEGImages/a.jpg", ROWS)
    put_lines(tmp_path / "VOC2010/ImageSets/Main/val.txt", "a")
    (tmp_path / "VOC2010/trainval").mkdir()
    savemat(tmp_path / "VOC2010/trainval/a.mat", {"GTcls": np.zeros((2, 3))})
    assert "a.mat: holds no LabelMap" in fault("context-59:val", tmp_path)
    put_mat(tmp_path / "VOC2010/trainval/a.mat", [[1, 460, 0], [1, 1, 1]])
    assert "a.mat: label value 460 is not allowed" in fault("context-59:val", tmp_path)


def test_colours_where_numbers_are_needed_and_the_reverse(tmp_path: Path) -> None:
    folder = tmp_path / "ADE20K_2021_17_01/images/ADE/validation/x"
    put_image(folder / "ADE_val_1.jpg", ROWS)
    put_gray(folder / "ADE_val_1_seg.png", ROWS)
    assert "ADE_val_1_seg.png: holds one number per pixel (L), but three (RGB) are needed" in fault(
        "ade20k-847:val", tmp_path
    )
    put_image(tmp_path / "camvid/val/a.png", ROWS)
    put_image(tmp_path / "camvid/valannot/a.png", ROWS)
    assert "a.png: a label map must hold one number per pixel" in fault("camvid:val", tmp_path)


def test_listings(tmp_path: Path) -> None:
    top = tmp_path / "VOC2012"
    put_image(top / "JPEGImages/a.jpg", ROWS)
    put_gray(top / "SegmentationClass/a.png", [[0, 1, 2], [3, 4, 5]])
    put_lines(top / "ImageSets/Segmentation/val.txt", "a", "b")
    put_gray(top / "SegmentationClass/b.png", [[0]])
    assert "JPEGImages/b.jpg: no such image, though" in fault("pas-21:val", tmp_path)
    put_lines(top / "ImageSets/Segmentation/val.txt")
    assert "val.txt: lists nothing for split 'val'" in fault("pas-21:val", tmp_path)
    (top / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff\xfe\x00")
    assert "val.txt: not a UTF-8 text file" in fault("pas-21:val", tmp_path)


def test_a_video_that_is_listed_and_missing_or_without_masks(tmp_path: Path) -> None:
    put_lines(tmp_path / "VSPW_480p/val.txt", "a", "b")
    put_image(tmp_path / "VSPW_480p/data/a/origin/0.jpg", ROWS)
    message = fault("vspw:val", tmp_path)
    assert "data/a/origin/0.jpg: has no label map" in message and "(and 1 more)" in message
    put_gray(tmp_path / "VSPW_480p/data/a/mask/0.png", [[1, 1, 1], [1, 1, 1]])
    assert "data/b/origin: no such folder, though" in fault("vspw:val", tmp_path)


def test_empty_folders(tmp_path: Path) -> None:
    for name in ("images/validation", "annotations/validation"):
        (tmp_path / "ADEChallengeData2016" / name).mkdir(parents=True)
    assert "images/validation: no image of split 'val' in it" in fault("ade20k-150:val", tmp_path)


def test_the_detail_list_and_the_tree_of_ade_keep_splits_apart(tmp_path: Path) -> None:
    images = [{"file_name": f"{name}.jpg", "phase": phase} for name, phase in (("a", "val"), ("b", "train"))]
    put_json(tmp_path / "VOC2010/trainval_merged.json", {"images": images})
    for name in ("a", "b"):
        put_image(tmp_path / f"VOC2010/JPEGImages/{name}.jpg", [[1]])
        put_mat(tmp_path / f"VOC2010/trainval/{name}.mat", [[1]])
    assert open_dataset("context-459:val", split="val", data_root=tmp_path)[0].name == "a"
    put_json(tmp_path / "VOC2010/trainval_merged.json", {"images": [{}]})
    assert "trainval_merged.json: not a list of images of the detail API" in fault("context-459:val", tmp_path)

    tree = tmp_path / "ADE20K_2021_17_01/images/ADE"
    for name in ("training/x/ADE_train_1", "training/y/ADE_frame_2", "validation/x/ADE_val_1"):
        put_image(tree / f"{name}.jpg", [[1]])
        put_ade(tree / f"{name}_seg.png", [[1]])
        put_ade(tree / f"{name}_parts_1.png", [[1]])
        put_image(tree / name / "ADE_val_9.jpg", [[1]])  # in a folder of masks
    for split, names in (("train", ["ADE_frame_2", "ADE_train_1"]), ("val", ["ADE_val_1"])):
        found = locate_dataset(PUBLISHED["ade20k-847"], split, [tmp_path])
        assert found is not None and [pair.name for pair in found.pairs] == names
