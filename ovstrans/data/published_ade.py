"""ADE20K (Zhou et al., CVPR 2017), with the 150 classes of its parsing challenge and with all 847."""

from __future__ import annotations

from ovstrans.data.encodings import indices, numbered_from_one
from ovstrans.data.layouts import ORIGINAL, PREPARED, Layout, Published, split_words
from ovstrans.data.pairing import by_name
from ovstrans.data.panoptic import Panoptic

_PANOPTIC = Panoptic(
    "ade20k_panoptic_{part}", "ade20k_panoptic_{part}.json", classes={index: index for index in range(150)}
)
_FOLDERS = split_words("training", "validation")
_CHALLENGE = ("ADEChallengeData2016", "ade/ADEChallengeData2016")

ADE20K_150 = Published(
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
)
