"""COCO 2017 with panoptic labels (133 classes) and with those of COCO-Stuff-164k (171, of which 15 may be novel).

Category ids are from Kirillov et al., CVPR 2019, and Caesar et al., CVPR 2018. The label map of a panoptic image holds
the class of each segment, crowds included; pixels without segment are ignored, as in Mask2Former's
`prepare_coco_semantic_annos_from_panoptic_annos.py`. Label maps of COCO-Stuff hold the category id minus 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ovstrans.datasets.published.encodings import Encoding, make_encoding, make_index_encoding
from ovstrans.datasets.published.layouts import ORIGINAL, PREPARED, DatasetInfo, Layout
from ovstrans.datasets.published.pairing import pair_by_annotation, pair_by_name
from ovstrans.datasets.published.panoptic import Panoptic

# fmt: off
COCO_PANOPTIC = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 27, 28, 31, 32, 33, 34,
    35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
    64, 65, 67, 70, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90, 92, 93, 95, 100, 107,
    109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145, 147, 148, 149, 151, 154, 155, 156, 159, 161,
    166, 168, 171, 175, 176, 177, 178, 180, 181, 184, 185, 186, 187, 188, 189, 190, 191, 192, 193, 194, 195, 196,
    197, 198, 199, 200,
)
"""Category ids of the 80 things and 53 kinds of stuff."""
COCO_UNUSED = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
"""Category ids from 1 to 182 that COCO-Stuff does not use."""
COCO_STUFF = tuple(number for number in range(1, 183) if number not in COCO_UNUSED)
"""Category ids of the 80 things and 91 kinds of stuff."""
COCO_STUFF_NOVEL = (21, 25, 33, 34, 41, 57, 87, 100, 106, 124, 145, 148, 149, 169, 172)
"""Category ids of the 15 novel classes of zero-shot segmentation (Xian et al., CVPR 2019; DeOP's split)."""
# fmt: on

_DATASET_FOLDERS = ("coco", "COCO")
_SPLIT_NAMES = {"train": "train2017", "val": "val2017"}
_CAPTIONS = "annotations/captions_{split}.json"
_CATEGORIES = {number: index for index, number in enumerate(COCO_PANOPTIC)}
_PANOPTIC = Panoptic("panoptic_{split}", "annotations/panoptic_{split}.json", _CATEGORIES)
_ELSEWHERE = {
    "{split}": ("images/{split}",),
    "panoptic_{split}": ("annotations/panoptic_{split}",),
    "stuffthingmaps/{split}": ("stuffthingmaps_trainval2017/{split}",),
}
"""Where else the archives are unpacked to."""
_STUFF_NOVEL = frozenset(COCO_STUFF.index(number) for number in COCO_STUFF_NOVEL)
_STUFF_BASE = tuple(index for index in range(len(COCO_STUFF)) if index not in _STUFF_NOVEL)
_SOURCE = "https://cocodataset.org"


def _stuff_prepared(ignored: Collection[int]) -> Encoding:
    """Make the encoding of prepared label maps, which hold class indices."""
    return _ignore_classes(ignored, {index: index for index in range(171)}, "0 to 170, 255 ignored")


def _stuff_original(ignored: Collection[int]) -> Encoding:
    """Make the encoding of original label maps, which hold the category id minus 1."""
    numbers = {number - 1: index for index, number in enumerate(COCO_STUFF)}
    return _ignore_classes(ignored, numbers, "0 to 181 except 11 unused numbers, 255 ignored")


def _ignore_classes(ignored: Collection[int], classes: Mapping[int, int], legal: str) -> Encoding:
    """Make an encoding from the class index of each number, with some classes ignored."""
    used = {number: index for number, index in classes.items() if index not in ignored}
    return make_encoding(used, 171, legal=legal, ignored=(255, *(number for number in classes if number not in used)))


def _stuff_layouts(split_names: Mapping[str, str], ignored: Collection[int]) -> tuple[Layout, ...]:
    """Make the layouts of COCO-Stuff.

    Args:
        split_names: The layouts' own name of each split.
        ignored: Indices of classes whose pixels are ignored, because training must not see them.
    """
    return (
        Layout(
            name=PREPARED,
            folders=_DATASET_FOLDERS,
            images="{split}",
            labels="stuffthingmaps_detectron2/{split}",
            encoding=_stuff_prepared(ignored),
            pairing=pair_by_name,
            split_names=split_names,
            captions=_CAPTIONS,
            elsewhere=_ELSEWHERE,
        ),
        Layout(
            name=ORIGINAL,
            folders=_DATASET_FOLDERS,
            images="{split}",
            labels="stuffthingmaps/{split}",
            encoding=_stuff_original(ignored),
            pairing=pair_by_name,
            split_names=split_names,
            captions=_CAPTIONS,
            elsewhere=_ELSEWHERE,
        ),
        Layout(
            name="mmsegmentation",
            folders=("coco_stuff164k",),
            images="images/{split}",
            labels="annotations/{split}",
            encoding=_stuff_original(ignored),
            pairing=pair_by_name,
            split_names=split_names,
        ),
    )


COCO = (
    DatasetInfo(
        name="coco-panoptic",
        title="COCO panoptic, 133 classes",
        vocabulary="coco-panoptic",
        classes=133,
        layouts=(
            Layout(
                name=PREPARED,
                folders=_DATASET_FOLDERS,
                images="{split}",
                labels="panoptic_semseg_{split}",
                encoding=make_index_encoding(133),
                pairing=pair_by_name,
                split_names=_SPLIT_NAMES,
                panoptic=_PANOPTIC,
                captions=_CAPTIONS,
                elsewhere=_ELSEWHERE,
            ),
            Layout(
                name=ORIGINAL,
                folders=_DATASET_FOLDERS,
                images="{split}",
                labels="",
                encoding=None,
                pairing=pair_by_annotation,
                split_names=_SPLIT_NAMES,
                panoptic=_PANOPTIC,
                captions=_CAPTIONS,
                elsewhere=_ELSEWHERE,
            ),
            Layout(
                name="panopticapi's sample",
                folders=("panopticapi/sample_data", "sample_data", "coco-panoptic-sample"),
                images="input_images",
                labels="",
                encoding=None,
                pairing=pair_by_annotation,
                split_names={"val": "val2017"},
                panoptic=Panoptic("panoptic_examples", "panoptic_examples.json", _CATEGORIES),
            ),
        ),
        source=_SOURCE,
    ),
    DatasetInfo(
        name="coco-stuff",
        title="COCO-Stuff-164k, 171 classes",
        vocabulary="coco-stuff",
        classes=171,
        layouts=_stuff_layouts(_SPLIT_NAMES, ()),
        source="https://github.com/nightrome/cocostuff",
    ),
    DatasetInfo(
        name="coco-stuff-156-15",
        title="COCO-Stuff-164k, 156 base and 15 novel classes",
        vocabulary="coco-stuff-156-15",
        classes=171,
        layouts=(
            Layout(
                name="DeOP",  # base classes are renumbered, images without any are left out
                folders=_DATASET_FOLDERS,
                images="{split}",
                labels="stuffthingmaps_detectron2/{split}_base",
                encoding=make_encoding(
                    dict(enumerate(_STUFF_BASE)), 171, legal="0 to 155, 255 ignored", ignored=(255,)
                ),
                pairing=pair_by_name,
                split_names={"train": "train2017"},
                partial=True,
                captions=_CAPTIONS,
                elsewhere=_ELSEWHERE,
            ),
            *_stuff_layouts({"train": "train2017"}, _STUFF_NOVEL),
            *_stuff_layouts({"val": "val2017"}, ()),
        ),
        source="https://github.com/nightrome/cocostuff",
    ),
)
