"""Published datasets give the right label, pixel by pixel, from every layout that users have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.published.layouts import DatasetLocation, SplitIndex
from ovstrans.datasets.published.registry import PUBLISHED, locate_dataset
from ovstrans.errors import MissingFileError
from ovstrans.vocabulary.catalog import load_published_vocabulary

from .folders import put_ade, put_gray, put_image, put_lines, put_mat, put_palette

Rows = list[list[int]]
Put = Callable[[Path, Rows], None]


def put_wide(path: Path, rows: Rows) -> None:
    put_gray(path, rows, np.uint16)


# case: dataset and split, layout, image, label file, how it is written, its numbers, their classes, other files
CASES: dict[str, tuple[str, str, str, str, Put, Rows, Rows, dict[str, list[str]]]] = {
    "ade150-prepared": (
        "ade20k-150:val",
        "prepared",
        "ADEChallengeData2016/images/validation/ADE_val_1.jpg",
        "ADEChallengeData2016/annotations_detectron2/validation/ADE_val_1.png",
        put_gray,
        [[0, 149, 255], [7, 8, 9]],
        [[0, 149, 255], [7, 8, 9]],
        {},
    ),
    "ade150-original": (
        "ade20k-150:train",
        "original",
        "ADEChallengeData2016/images/training/ADE_train_1.jpg",
        "ADEChallengeData2016/annotations/training/ADE_train_1.png",
        put_gray,
        [[0, 1, 150], [7, 8, 9]],
        [[255, 0, 149], [6, 7, 8]],
        {},
    ),
    "ade847-prepared": (
        "ade20k-847:val",
        "prepared",
        "ADE20K_2021_17_01/images_detectron2/validation/ADE_val_1.jpg",
        "ADE20K_2021_17_01/annotations_detectron2/validation/ADE_val_1.tif",
        put_wide,
        [[0, 846, 65535], [255, 256, 300]],
        [[0, 846, 65535], [255, 256, 300]],
        {},
    ),
    "ade847-prepared-below-ade": (
        "ade20k-847:train",
        "prepared",
        "ade/ADE20K_2021_17_01/images_detectron2/training/ADE_train_1.jpg",
        "ade/ADE20K_2021_17_01/annotations_detectron2/training/ADE_train_1.tif",
        put_wide,
        [[846, 3]],
        [[846, 3]],
        {},
    ),
    "ade847-original": (  # wall, adding machine, sky, no object, one of the objects left out, building
        "ade20k-847:val",
        "original",
        "ADE20K_2021_17_01/images/ADE/validation/home/kitchen/ADE_val_00000001.jpg",
        "ADE20K_2021_17_01/images/ADE/validation/home/kitchen/ADE_val_00000001_seg.png",
        put_ade,
        [[2978, 3148, 2420], [0, 5, 312]],
        [[0, 846, 2], [65535, 65535, 1]],
        {},
    ),
    "ade847-original-below-ade": (
        "ade20k-847:train",
        "original",
        "ade/ADE20K_2021_17_01/images/ADE/training/street/ADE_frame_00000007.jpg",
        "ade/ADE20K_2021_17_01/images/ADE/training/street/ADE_frame_00000007_seg.png",
        lambda path, rows: put_ade(path, rows, extra=9),
        [[2978, 3148]],
        [[0, 846]],
        {},
    ),
    "stuff-prepared": (
        "coco-stuff:val",
        "prepared",
        "coco/val2017/000000000009.jpg",
        "coco/stuffthingmaps_detectron2/val2017/000000000009.png",
        put_gray,
        [[0, 170, 255]],
        [[0, 170, 255]],
        {},
    ),
    "stuff-original": (  # person 1, stop sign 13 (12 is not used), toothbrush 90, branch 94, wood 182
        "coco-stuff:train",
        "original",
        "coco/train2017/000000000009.jpg",
        "coco/stuffthingmaps/train2017/000000000009.png",
        put_gray,
        [[0, 12, 89], [93, 181, 255]],
        [[0, 11, 79], [82, 170, 255]],
        {},
    ),
    "stuff-mmsegmentation": (
        "coco-stuff:val",
        "mmsegmentation",
        "coco_stuff164k/images/val2017/000000000009.jpg",
        "coco_stuff164k/annotations/val2017/000000000009.png",
        put_gray,
        [[0, 12, 89], [93, 181, 255]],
        [[0, 11, 79], [82, 170, 255]],
        {},
    ),
    "split-val": (  # cow 21, tree 169, person
        "coco-stuff-156-15:val",
        "original",
        "coco/val2017/000000000009.jpg",
        "coco/stuffthingmaps/val2017/000000000009.png",
        put_gray,
        [[20, 168, 0]],
        [[19, 157, 0]],
        {},
    ),
    "split-train": (
        "coco-stuff-156-15:train",
        "original",
        "coco/train2017/000000000009.jpg",
        "coco/stuffthingmaps/train2017/000000000009.png",
        put_gray,
        [[20, 168, 0, 21]],
        [[255, 255, 0, 20]],
        {},
    ),
    "split-train-prepared": (
        "coco-stuff-156-15:train",
        "prepared",
        "coco/train2017/000000000009.jpg",
        "coco/stuffthingmaps_detectron2/train2017/000000000009.png",
        put_gray,
        [[19, 157, 0, 20]],
        [[255, 255, 0, 20]],
        {},
    ),
    "split-train-deop": (  # renumbered: 19 is the class after cow, 155 the last
        "coco-stuff-156-15:train",
        "DeOP",
        "coco/train2017/000000000009.jpg",
        "coco/stuffthingmaps_detectron2/train2017_base/000000000009.png",
        put_gray,
        [[18, 19, 155, 255]],
        [[18, 20, 170, 255]],
        {},
    ),
    "cityscapes-prepared": (
        "cityscapes:val",
        "prepared",
        "cityscapes/leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png",
        "cityscapes/gtFine/val/ulm/ulm_000001_000019_gtFine_labelTrainIds.png",
        put_gray,
        [[0, 18, 255]],
        [[0, 18, 255]],
        {},
    ),
    "cityscapes-original": (  # road 7, bicycle 33, person 24, unlabelled 0, caravan 29
        "cityscapes:train",
        "original",
        "cityscapes/leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png",
        "cityscapes/gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png",
        put_gray,
        [[7, 33, 24, 0, 29]],
        [[0, 18, 11, 255, 255]],
        {},
    ),
    "camvid": (
        "camvid:train",
        "original",
        "camvid/train/0001TP_006690.png",
        "camvid/trainannot/0001TP_006690.png",
        put_gray,
        [[0, 10, 11]],
        [[0, 10, 255]],
        {},
    ),
    "pas20-prepared": (
        "pas-20:val",
        "prepared",
        "pascal_voc_d2/images/validation/2007_000033.jpg",
        "pascal_voc_d2/annotations_pascal20/validation/2007_000033.png",
        put_gray,
        [[0, 19, 255]],
        [[0, 19, 255]],
        {},
    ),
    "pas20-original": (
        "pas-20:val",
        "original",
        "VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg",
        "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png",
        put_palette,
        [[0, 1, 20, 255]],
        [[255, 0, 19, 255]],
        {"VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt": ["2007_000033"]},
    ),
    "pas20-deop": (
        "pas-20:val",
        "DeOP",
        "VOC2012/JPEGImages/2007_000033.jpg",
        "VOC2012/annotations_detectron2/val/2007_000033.png",
        put_gray,
        [[0, 19, 255]],
        [[0, 19, 255]],
        {},
    ),
    "pas21-prepared": (
        "pas-21:train",
        "prepared",
        "pascal_voc_d2/images/training/2007_000032.jpg",
        "pascal_voc_d2/annotations_pascal21/training/2007_000032.png",
        put_palette,
        [[0, 20, 255]],
        [[0, 20, 255]],
        {},
    ),
    "pas21-original": (
        "pas-21:train",
        "original",
        "VOC2012/JPEGImages/2007_000032.jpg",
        "VOC2012/SegmentationClass/2007_000032.png",
        put_palette,
        [[0, 20, 255]],
        [[0, 20, 255]],
        {"VOC2012/ImageSets/Segmentation/train.txt": ["2007_000032"]},
    ),
    "context59-prepared": (
        "context-59:val",
        "prepared",
        "pascal_ctx_d2/images/validation/2008_000002.jpg",
        "pascal_ctx_d2/annotations_ctx59/validation/2008_000002.png",
        put_gray,
        [[0, 58, 255]],
        [[0, 58, 255]],
        {},
    ),
    "context59-original": (  # aeroplane 2, bag 9, wood 458; accordion 1 is none of the 59
        "context-59:val",
        "original",
        "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg",
        "VOCdevkit/VOC2010/trainval/2008_000002.mat",
        put_mat,
        [[2, 9, 458], [0, 1, 459]],
        [[0, 1, 58], [255, 255, 255]],
        {"VOCdevkit/VOC2010/ImageSets/Main/val.txt": ["2008_000002"]},
    ),
    "context59-gkc": (
        "context-59:val",
        "GKC",
        "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg",
        "VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png",
        put_gray,
        [[0, 58, 255]],
        [[0, 58, 255]],
        {"VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt": ["2008_000002"]},
    ),
    "context459-prepared": (
        "context-459:val",
        "prepared",
        "pascal_ctx_d2/images/validation/2008_000002.jpg",
        "pascal_ctx_d2/annotations_ctx459/validation/2008_000002.tif",
        put_wide,
        [[0, 458, 65535, 300]],
        [[0, 458, 65535, 300]],
        {},
    ),
    "context459-original": (
        "context-459:train",
        "original",
        "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg",
        "VOCdevkit/VOC2010/trainval/2008_000002.mat",
        put_mat,
        [[1, 459, 0, 301]],
        [[0, 458, 65535, 300]],
        {"VOCdevkit/VOC2010/ImageSets/SegmentationContext/train.txt": ["2008_000002"]},
    ),
    "context459-gkc": (
        "context-459:val",
        "GKC",
        "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg",
        "VOCdevkit/VOC2010/SegmentationClassContext_459/2008_000002.png",
        put_wide,
        [[0, 458, 65535, 300]],
        [[0, 458, 65535, 300]],
        {"VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt": ["2008_000002"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_labels_of_a_layout(case: str, tmp_path: Path) -> None:
    spec, layout, image, label, put, numbers, classes, others = CASES[case]
    put_image(tmp_path / image, numbers)
    put(tmp_path / label, numbers)
    for name, lines in others.items():
        put_lines(tmp_path / name, *lines)
    dataset = open_dataset(spec, split="none", data_root=tmp_path)
    assert (f"{dataset.name}:{dataset.split}", len(dataset)) == (spec, 1)
    assert dataset.location.layout.name == layout  # type: ignore[attr-defined]
    assert dataset.paths(0) == (tmp_path / image, tmp_path / label)  # type: ignore[attr-defined]
    sample = dataset[0]
    assert sample.label is not None and sample.label.tolist() == classes
    assert dataset.ignore == (65535 if len(dataset.vocabulary) > 254 else 255)
    assert tuple(sample.image.shape) == (3, len(numbers), len(numbers[0]))
    assert list(dataset.videos) == [] and sample.segment_map is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_table_says(name: str) -> None:
    published = PUBLISHED[name]
    assert len(load_published_vocabulary(published.vocabulary)) == published.classes
    assert set(published.splits) == {"train", "val"}
    assert published.published_size == {"cityscapes": (1024, 2560), "camvid": None}.get(name, (800, 1333))
    for layout in published.layouts:
        if layout.encoding is not None:
            legal = set(layout.encoding.table[layout.encoding.table >= 0].tolist())
            assert legal <= {*range(published.classes), layout.encoding.ignore}


def test_an_ade_image_shares_its_size_with_its_labels_at_512(tmp_path: Path) -> None:
    """Reduced as OpenCV does it: bilinear between pixel centres without smoothing, and the pixel to the upper left."""
    from PIL import Image

    generator = np.random.default_rng(0)
    folder = tmp_path / "ADE20K_2021_17_01/images/ADE/validation/x"
    folder.mkdir(parents=True)
    image = generator.integers(0, 256, (600, 700, 3), dtype=np.uint8)
    objects = generator.choice([2978, 312, 2420, 0], (600, 700))
    Image.fromarray(image).save(folder / "ADE_val_1.jpg", "PNG")  # lossless, whatever it is called
    put_ade(folder / "ADE_val_1_seg.png", objects.tolist())
    sample = open_dataset("ade20k-847:val", split="val", data_root=tmp_path)[0]
    rows, columns = 512, 597  # 700 / 600 * 512 = 597.33
    assert sample.image.shape == (3, rows, columns) and sample.label is not None
    classes = np.select([objects == 2978, objects == 312, objects == 2420], [0, 1, 2], 65535)
    nearest = classes[np.arange(rows) * 600 // rows][:, np.arange(columns) * 700 // columns]
    assert np.array_equal(sample.label.numpy(), nearest)
    linear = _linear(_linear(image.astype(float), rows, 0), columns, 1)
    assert np.abs(sample.image.numpy().transpose(1, 2, 0) - linear).max() <= 0.51


@pytest.mark.parametrize(("name", "turned"), [("ade20k-150", True), ("ade20k-847", False)])
def test_images_are_turned_by_their_orientation_as_the_preparation_does(
    name: str, turned: bool, tmp_path: Path
) -> None:
    from PIL import Image

    rows = [[1, 2, 3]]
    folder = {
        "ade20k-150": tmp_path / "ADEChallengeData2016/images/validation",
        "ade20k-847": tmp_path / "ADE20K_2021_17_01/images/ADE/validation/x",
    }[name]
    put_image(folder / "ADE_val_1.jpg", rows)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    with Image.open(folder / "ADE_val_1.jpg") as picture:
        picture.load()
        picture.save(folder / "ADE_val_1.jpg", exif=exif)
    if turned:
        put_gray(tmp_path / "ADEChallengeData2016/annotations/validation/ADE_val_1.png", [[1], [2], [3]])
    else:
        put_ade(folder / "ADE_val_1_seg.png", rows)
    sample = open_dataset(f"{name}:val", split="val", data_root=tmp_path)[0]
    assert tuple(sample.image.shape) == ((3, 3, 1) if turned else (3, 1, 3))


def _linear(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    old = values.shape[axis]
    places = ((np.arange(size) + 0.5) * old / size - 0.5).clip(0, old - 1)
    left = np.floor(places).astype(int)
    share = (places - left).reshape([-1 if dimension == axis else 1 for dimension in range(values.ndim)])
    right = (left + 1).clip(max=old - 1)
    return values.take(left, axis) * (1 - share) + values.take(right, axis) * share


def test_suffixes_are_compared_without_case(tmp_path: Path) -> None:
    put_image(tmp_path / "camvid/val/a.PNG", [[0, 1]])
    put_gray(tmp_path / "camvid/valannot/a.png", [[0, 1]])
    dataset = open_dataset("camvid:val", split="val", data_root=tmp_path)
    assert len(dataset) == 1 and dataset[0].name == "a"


def test_a_partial_layout_leaves_out_images_without_label_map(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put_image(tmp_path / f"VOC2012/JPEGImages/{name}.jpg", [[0, 1]])
    put_gray(tmp_path / "VOC2012/annotations_detectron2/val/b.png", [[0, 255]])
    dataset = open_dataset("pas-20:val", split="val", data_root=tmp_path)
    assert [dataset[index].name for index in range(len(dataset))] == ["b"]


def test_a_file_that_vanishes_while_it_is_read_is_named_by_its_own_message(tmp_path: Path) -> None:
    def fail(location: DatasetLocation) -> SplitIndex:
        raise MissingFileError("list.txt: no such file")

    put_image(tmp_path / "camvid/val/a.png", [[0]])
    put_gray(tmp_path / "camvid/valannot/a.png", [[0]])
    camvid = PUBLISHED["camvid"]
    with pytest.raises(MissingFileError, match=r"^list\.txt: no such file$"):
        locate_dataset(replace(camvid, layouts=(replace(camvid.layouts[0], pairing=fail),)), "val", [tmp_path])
