"""PASCAL VOC 2012 (Everingham et al., IJCV 2010) and PASCAL-Context (Mottaghi et al., CVPR 2014).

PAS-20 ignores the background, PAS-21 has it as a class. Unless it is prepared, Context-59 is read from the label maps
of all 459 classes: its classes have the same numbers there, and all others are ignored.
"""

from __future__ import annotations

from ovstrans.datasets.published.encodings import (
    Encoding,
    make_encoding,
    make_index_encoding,
    make_one_based_encoding,
    read_matlab_map,
)
from ovstrans.datasets.published.layouts import ORIGINAL, PREPARED, DatasetInfo, Layout
from ovstrans.datasets.published.pairing import pair_by_name

# fmt: off
CONTEXT_59 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158,
    159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366,
    368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
"""Numbers of the 59 frequent classes among the 459."""
# fmt: on

_SPLIT_NAMES = {"train": "training", "val": "validation"}
_VOC = ("VOCdevkit/VOC2012", "VOC2012")
_CONTEXT = ("VOCdevkit/VOC2010", "VOC2010")
_CONTEXT_LIST = "ImageSets/SegmentationContext/{part}.txt"
_VOC_SOURCE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
_CONTEXT_SOURCE = "https://www.cs.stanford.edu/~roozbeh/pascal-context"
_ALL_CONTEXT = range(1, 460)


def _voc_prepared(labels: str, classes: int) -> Layout:
    return Layout(
        name=PREPARED,
        folders=("pascal_voc_d2",),
        images="images/{split}",
        labels=labels + "/{split}",
        encoding=make_index_encoding(classes),
        pairing=pair_by_name,
        split_names=_SPLIT_NAMES,
    )


def _voc_original(encoding: Encoding) -> Layout:
    return Layout(
        name=ORIGINAL,
        folders=_VOC,
        images="JPEGImages",
        labels="SegmentationClass",
        encoding=encoding,
        pairing=pair_by_name,
        listings=("ImageSets/Segmentation/{part}.txt",),
    )


def _context_prepared(labels: str, classes: int) -> Layout:
    return Layout(
        name=PREPARED,
        folders=("pascal_ctx_d2",),
        images="images/{split}",
        labels=labels + "/{split}",
        encoding=make_index_encoding(classes),
        pairing=pair_by_name,
        split_names=_SPLIT_NAMES,
        label_suffixes=(".tif", ".tiff", ".png") if classes > len(CONTEXT_59) else (".png",),
    )


def _context_original(encoding: Encoding) -> Layout:
    return Layout(
        name=ORIGINAL,
        folders=_CONTEXT,
        images="JPEGImages",
        labels="trainval",
        encoding=encoding,
        pairing=pair_by_name,
        label_suffixes=(".mat",),
        listings=(_CONTEXT_LIST, "ImageSets/Main/{part}.txt", "trainval_merged.json"),  # the last is a large file
    )


def _context_gkc(labels: str, classes: int) -> Layout:
    return Layout(
        name="GKC",
        folders=_CONTEXT,
        images="JPEGImages",
        labels=labels,
        encoding=make_index_encoding(classes),
        pairing=pair_by_name,
        listings=(_CONTEXT_LIST,),
    )


_VOC_20 = (
    _voc_prepared("annotations_pascal20", 20),
    _voc_original(make_one_based_encoding(20, ignored=(0, 255))),
    Layout(
        name="DeOP",
        folders=("VOC2012", "VOCdevkit/VOC2012"),
        images="JPEGImages",
        labels="annotations_detectron2/{part}",
        encoding=make_index_encoding(20),
        pairing=pair_by_name,
        partial=True,
    ),
)

PASCAL = (
    DatasetInfo(
        name="pas-20",
        title="PASCAL VOC, 20 classes",
        vocabulary="pascal-20",
        classes=20,
        layouts=_VOC_20,
        source=_VOC_SOURCE,
    ),
    DatasetInfo(
        name="pas-20-15-5",
        title="PASCAL VOC, 15 base and 5 novel classes",
        vocabulary="pascal-20-15-5",
        classes=20,
        layouts=_VOC_20,
        source=_VOC_SOURCE,
    ),
    DatasetInfo(
        name="pas-21",
        title="PASCAL VOC, 20 classes and background",
        vocabulary="pascal-21",
        classes=21,
        layouts=(_voc_prepared("annotations_pascal21", 21), _voc_original(make_index_encoding(21))),
        source=_VOC_SOURCE,
    ),
    DatasetInfo(
        name="context-59",
        title="PASCAL-Context, 59 classes",
        vocabulary="context-59",
        classes=59,
        layouts=(
            _context_prepared("annotations_ctx59", 59),
            _context_original(
                make_encoding(
                    {number: index for index, number in enumerate(CONTEXT_59)},
                    59,
                    legal="0 to 459, all but 59 of them ignored",
                    ignored=(0, *(number for number in _ALL_CONTEXT if number not in CONTEXT_59)),
                    numbers=read_matlab_map,
                )
            ),
            _context_gkc("SegmentationClassContext", 59),
        ),
        source=_CONTEXT_SOURCE,
    ),
    DatasetInfo(
        name="context-459",
        title="PASCAL-Context, 459 classes",
        vocabulary="context-459",
        classes=459,
        layouts=(
            _context_prepared("annotations_ctx459", 459),
            _context_original(make_one_based_encoding(459, numbers=read_matlab_map)),
            _context_gkc("SegmentationClassContext_459", 459),
        ),
        source=_CONTEXT_SOURCE,
    ),
)
