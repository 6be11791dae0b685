"""Videos with a label map for each frame: VSPW (Miao et al., CVPR 2021) and VIPSeg (Miao et al., CVPR 2022).

VSPW numbers its classes from 1; 0 ("others") and 255 are ignored. VIPSeg's panoptic masks hold the number of the class,
counted from 1, or 100 times that number plus the number of the instance. Its authors' scripts convert them to copies at
720P in COCO's format.
"""

from __future__ import annotations

from ovstrans.datasets.published.encodings import make_encoding, make_index_encoding, make_one_based_encoding
from ovstrans.datasets.published.layouts import ORIGINAL, PREPARED, DatasetInfo, Layout
from ovstrans.datasets.published.pairing import pair_by_annotation, pair_by_name, pair_by_video
from ovstrans.datasets.published.panoptic import Panoptic

_CLASSES = 124
_NUMBERS_PER_CLASS = 100
"""VIPSeg's numbers per class."""
_CLASS_OF_INSTANCE = {
    number: number // _NUMBERS_PER_CLASS - 1 for number in range(_CLASSES + 1, (_CLASSES + 1) * _NUMBERS_PER_CLASS)
}
_CLASS_OF_NUMBER = {number: number - 1 for number in range(1, _CLASSES + 1)}

VIDEOS = (
    DatasetInfo(
        name="vspw",
        title="VSPW, 124 classes, video",
        vocabulary="vspw",
        classes=_CLASSES,
        layouts=(
            Layout(
                name=ORIGINAL,
                folders=("VSPW_480p", "VSPW_480P", "VSPW", "VSPW_data"),
                images="data/{video}/origin",
                labels="data/{video}/mask",
                encoding=make_one_based_encoding(_CLASSES, ignored=(0, 254, 255)),
                pairing=pair_by_video,
                listings=("{part}.txt",),
            ),
            Layout(
                name="GKC",
                folders=("VSPW_minival",),
                images=".",
                labels=".",
                encoding=make_index_encoding(_CLASSES),
                pairing=pair_by_name,
                split_names={"val": "val"},
                image_suffixes=(".jpg",),
                sign=None,
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
                folders=("VIPSeg/VIPSeg_720P", "VIPSeg_720P"),
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
                folders=("VIPSeg",),
                images="imgs/{video}",
                labels="panomasks/{video}",
                encoding=make_encoding(
                    _CLASS_OF_NUMBER | _CLASS_OF_INSTANCE,
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
