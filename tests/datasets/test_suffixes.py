"""Suffixes of images and of label files are compared without case."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.check import check_dataset

from .published.folders import annotation, put_ade, put_gray, put_ids, put_image, put_json, put_lines

ROWS = [[0, 1], [1, 0]]


def rename(folder: Path, old: str, new: str) -> None:
    for path in folder.rglob(f"*{old}"):
        path.rename(path.with_name(path.name.replace(old, new)))


def put_folder(top: Path, extra: str = "") -> None:
    for name in ("a", "deep/b"):
        put_image(top / f"images/{name}.jpg", ROWS)
        put_gray(top / f"labels/{name}.png", ROWS)
    (top / "dataset.toml").write_text(f'classes = ["x", "y"]\nimages = "images"\nlabels = "labels"\n{extra}')


@pytest.mark.parametrize("suffix", [".PNG", ".Png"])
def test_label_maps_of_a_folder(tmp_path: Path, suffix: str) -> None:
    put_folder(tmp_path)
    rename(tmp_path / "labels", ".png", suffix)
    rename(tmp_path / "images", ".jpg", ".JPG")
    assert check_dataset(f"folder:{tmp_path}").faults == ()
    label = open_dataset(f"folder:{tmp_path}", split="val")[1].label
    assert label is not None and label.tolist() == ROWS


def test_listed_images_and_long_suffixes(tmp_path: Path) -> None:
    put_folder(tmp_path, 'list = "all.txt"\nimage_suffix = "_left.jpg"\nlabel_suffix = "_ids.png"\n')
    rename(tmp_path / "images", ".jpg", "_LEFT.JPG")
    rename(tmp_path / "labels", ".png", "_Ids.PNG")
    put_lines(tmp_path / "all.txt", "deep/b", "a_left.jpg")
    result = check_dataset(f"folder:{tmp_path}")
    assert result.faults == () and list(result.images.values()) == [2]
    put_lines(tmp_path / "all.txt", "deep/b", "c")
    assert "c: listed, but there is no such image" in check_dataset(f"folder:{tmp_path}").faults[0]


def test_published_datasets(tmp_path: Path) -> None:
    put_image(tmp_path / "camvid/val/a.png", ROWS)
    put_gray(tmp_path / "camvid/valannot/a.png", ROWS)
    rename(tmp_path / "camvid/valannot", ".png", ".PNG")
    scene = tmp_path / "ADE20K_2021_17_01/images/ADE/validation/street"
    put_image(scene / "ADE_val_00000001.JPG", ROWS)
    put_ade(scene / "ADE_val_00000001_seg.png", [[2978, 3148], [2420, 0]])
    rename(scene, "_seg.png", "_seg.PNG")
    top = tmp_path / "ADEChallengeData2016"
    put_image(top / "images/validation/b.jpg", ROWS)
    put_gray(top / "annotations/validation/b.png", ROWS)
    put_ids(top / "ade20k_panoptic_val/b.png", [[0, 9], [9, 0]])
    rename(top, ".png", ".PNG")
    put_json(top / "ade20k_panoptic_val.json", {"annotations": [annotation("b.png", {9: (1, 0)})]})
    for name in ("camvid", "ade20k-847", "ade20k-150"):
        assert check_dataset(f"{name}:val", data_root=tmp_path).faults == (), name
        assert len(open_dataset(f"{name}:val", split="val", data_root=tmp_path)) == 1
    assert [each.id for each in open_dataset("ade20k-150:val", split="val", data_root=tmp_path)[0].segments] == [9]


def test_the_suffix_in_the_message_is_the_usual_one(tmp_path: Path) -> None:
    put_folder(tmp_path)
    Image.new("L", (2, 2)).save(tmp_path / "labels/a.PNG")
    (tmp_path / "labels/a.png").unlink()
    (tmp_path / "labels/deep/b.png").unlink()
    (fault,) = check_dataset(f"folder:{tmp_path}").faults
    assert f"images/deep/b.jpg: has no label map {tmp_path}/labels/deep/b.png" in fault
