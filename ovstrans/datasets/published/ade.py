"""ADE20K (Zhou et al., CVPR 2017), with the 150 classes of its parsing challenge and with all 847.

The 847 are evaluated on images and label maps whose short side was reduced to 512 (FC-CLIP's preparation, which
takes images as they are stored). That script writes below `ade/`, FC-CLIP reads beside it: both will do here.
"""

from __future__ import annotations

from ovstrans.datasets.published import ids
from ovstrans.datasets.published.encodings import ade_objects, encoding, indices, numbered_from_one
from ovstrans.datasets.published.layouts import ORIGINAL, PREPARED, Layout, Published, split_words
from ovstrans.datasets.published.pairing import by_name, in_ade_tree
from ovstrans.datasets.published.panoptic import Panoptic

_FOLDERS = split_words("training", "validation")
_CHALLENGE = ("ADEChallengeData2016", "ade/ADEChallengeData2016")
_RELEASE = ("ADE20K_2021_17_01", "ade/ADE20K_2021_17_01")
_PANOPTIC = Panoptic(
    "ade20k_panoptic_{part}", "ade20k_panoptic_{part}.json", classes={index: index for index in range(150)}
)

ADE = (
    Published(
        name="ade20k-150",
        title="ADE20K, 150 classes",
        vocabulary="ade20k-150",
        classes=150,
        layouts=(
            Layout(
                name=PREPARED,
                tops=_CHALLENGE,
                images="images/{split}",
                labels="annotations_detectron2/{split}",
                encoding=indices(150),
                pairing=by_name,
                words=_FOLDERS,
                panoptic=_PANOPTIC,
            ),
            Layout(
                name=ORIGINAL,
                tops=_CHALLENGE,
                images="images/{split}",
                labels="annotations/{split}",
                encoding=numbered_from_one(150),
                pairing=by_name,
                words=_FOLDERS,
                panoptic=_PANOPTIC,
            ),
        ),
        source="http://sceneparsing.csail.mit.edu",
    ),
    Published(
        name="ade20k-847",
        title="ADE20K, 847 classes",
        vocabulary="ade20k-847",
        classes=847,
        layouts=(
            Layout(
                name=PREPARED,
                tops=_RELEASE,
                images="images_detectron2/{split}",
                labels="annotations_detectron2/{split}",
                encoding=indices(847),
                pairing=by_name,
                words=_FOLDERS,
                label_suffixes=(".tif", ".tiff", ".png"),
            ),
            Layout(
                name=ORIGINAL,
                tops=_RELEASE,
                images="images",
                labels="images",
                encoding=encoding(
                    {number: index for index, number in enumerate(ids.ADE_847)},
                    847,
                    legal="any object",
                    others="ignored",
                    numbers=ade_objects,
                ),
                pairing=in_ade_tree,
                image_suffixes=(".jpg",),
                label_suffixes=("_seg.png",),
                short_side=512,
                upright=False,
            ),
        ),
        source="https://groups.csail.mit.edu/vision/datasets/ADE20K",
    ),
)
