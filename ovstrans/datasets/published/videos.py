"""Videos with a label map each frame: VSPW (Miao et al., CVPR 2021) and VIPSeg (Miao et al., CVPR 2022).

VSPW's classes are numbered from 1, "others" (0) and 255 count nowhere. VIPSeg's panoptic masks hold the
class, numbered from 1, or 100 times it plus the number of the instance; its authors' scripts make 720P
copies in COCO's format from them.
"""

from __future__ import annotations

from ovstrans.datasets.published.encodings import make_encoding, make_index_encoding, make_one_based_encoding
from ovstrans.datasets.published.layouts import ORIGINAL, PREPARED, DatasetInfo, Layout
from ovstrans.datasets.published.pairing import pair_by_annotation, pair_by_name, pair_by_video
from ovstrans.datasets.published.panoptic import Panoptic

_CLASSES = 124
_INSTANCES = 100
"""Instances of a class that VIPSeg has numbers for."""
_THING_NUMBERS = {number: number // _INSTANCES - 1 for number in range(_CLASSES + 1, (_CLASSES + 1) * _INSTANCES)}
_CLASS_NUMBERS = {number: number - 1 for number in range(1, _CLASSES + 1)}

VIDEOS = (
    DatasetInfo(
        name="vspw",
        title="VSPW, 124 classes, video",
        vocabulary="vspw",
        classes=_CLASSES,
        layouts=(
            Layout(
                name=ORIGINAL,
                tops=("VSPW_480p", "VSPW_480P", "VSPW", "VSPW_data"),
                images="data/{video}/origin",
                labels="data/{video}/mask",
                encoding=make_one_based_encoding(_CLASSES, ignored=(0, 254, 255)),
                pairing=pair_by_video,
                listings=("{part}.txt",),
            ),
            Layout(
                name="GKC",
                tops=("VSPW_minival",),
                images=".",
                labels=".",
                encoding=make_index_encoding(_CLASSES),
                pairing=pair_by_name,
                words={"val": "val"},
                image_suffixes=(".jpg",),
            ),
        ),
        source="https://github.com/sssdddwww2/vspw_dataset_download",
    ),
    DatasetInfo(
        name="vipseg",
        title="VIPSeg, 112 base and 12 novel classes, video",
        vocabulary="vipseg",
        classes=_CLASSES,
        layouts=(
            Layout(
                name=PREPARED,
                tops=("VIPSeg/VIPSeg_720P", "VIPSeg_720P"),
                images="images",
                labels="",
                encoding=None,
                pairing=pair_by_annotation,
                panoptic=Panoptic(
                    "panomasksRGB", "panoptic_gt_VIPSeg_{part}.json", {index: index for index in range(_CLASSES)}
                ),
            ),
            Layout(
                name=ORIGINAL,
                tops=("VIPSeg",),
                images="imgs/{video}",
                labels="panomasks/{video}",
                encoding=make_encoding(
                    _CLASS_NUMBERS | _THING_NUMBERS,
                    _CLASSES,
                    legal="1 to 124, 100 times that plus an instance, 0 ignored",
                    ignored=(0,),
                ),
                pairing=pair_by_video,
                listings=("{part}.txt",),
                instances=True,
            ),
        ),
        source="https://github.com/VIPSeg-Dataset/VIPSeg-Dataset",
    ),
)
