"""COCO 2017 with panoptic labels (133 classes) and with those of COCO-Stuff-164k (171, or 156 and 15 held back).

The label map of a panoptic image starts from ignored, and every segment is painted, crowds included, as
Mask2Former's `prepare_coco_semantic_annos_from_panoptic_annos.py` does. The maps of COCO-Stuff hold the
category id less one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ovstrans.datasets.published import ids
from ovstrans.datasets.published.encodings import Encoding, encoding, indices
from ovstrans.datasets.published.layouts import ORIGINAL, PREPARED, Layout, Published, split_words
from ovstrans.datasets.published.pairing import by_annotation, by_name
from ovstrans.datasets.published.panoptic import Panoptic

_TOPS = ("coco", "COCO")
_FOLDERS = split_words("train2017", "val2017")
_CAPTIONS = "annotations/captions_{split}.json"
_CATEGORIES = {number: index for index, number in enumerate(ids.COCO_PANOPTIC)}
_PANOPTIC = Panoptic("panoptic_{split}", "annotations/panoptic_{split}.json", _CATEGORIES)
_STUFF_NOVEL = frozenset(ids.COCO_STUFF.index(number) for number in ids.COCO_STUFF_NOVEL)
_STUFF_BASE = tuple(index for index in range(len(ids.COCO_STUFF)) if index not in _STUFF_NOVEL)
_SOURCE = "https://cocodataset.org"


def _stuff_prepared(held_back: Collection[int]) -> Encoding:
    """Class indices, some of which training does not see."""
    return _without(held_back, {index: index for index in range(171)}, "0 to 170, 255 ignored")


def _stuff_original(held_back: Collection[int]) -> Encoding:
    """Category ids less one."""
    numbers = {number - 1: index for index, number in enumerate(ids.COCO_STUFF)}
    return _without(held_back, numbers, "0 to 181 but for 11 that no category has, 255 ignored")


def _without(held_back: Collection[int], classes: Mapping[int, int], legal: str) -> Encoding:
    seen = {number: index for number, index in classes.items() if index not in held_back}
    return encoding(seen, 171, legal=legal, ignored=(255, *(number for number in classes if number not in seen)))


def _stuff_layouts(words: Mapping[str, str], held_back: Collection[int]) -> tuple[Layout, ...]:
    return (
        Layout(
            name=PREPARED,
            tops=_TOPS,
            images="{split}",
            labels="stuffthingmaps_detectron2/{split}",
            encoding=_stuff_prepared(held_back),
            pairing=by_name,
            words=words,
            captions=_CAPTIONS,
        ),
        Layout(
            name=ORIGINAL,
            tops=_TOPS,
            images="{split}",
            labels="stuffthingmaps/{split}",
            encoding=_stuff_original(held_back),
            pairing=by_name,
            words=words,
            captions=_CAPTIONS,
        ),
        Layout(
            name="mmsegmentation",
            tops=("coco_stuff164k",),
            images="images/{split}",
            labels="annotations/{split}",
            encoding=_stuff_original(held_back),
            pairing=by_name,
            words=words,
        ),
    )


COCO = (
    Published(
        name="coco-panoptic",
        title="COCO panoptic, 133 classes",
        vocabulary="coco-panoptic",
        classes=133,
        layouts=(
            Layout(
                name=PREPARED,
                tops=_TOPS,
                images="{split}",
                labels="panoptic_semseg_{split}",
                encoding=indices(133),
                pairing=by_name,
                words=_FOLDERS,
                panoptic=_PANOPTIC,
                captions=_CAPTIONS,
            ),
            Layout(
                name=ORIGINAL,
                tops=_TOPS,
                images="{split}",
                labels="",
                encoding=None,
                pairing=by_annotation,
                words=_FOLDERS,
                panoptic=_PANOPTIC,
                captions=_CAPTIONS,
            ),
            Layout(
                name="panopticapi's sample",
                tops=("panopticapi/sample_data", "sample_data", "coco-panoptic-sample"),
                images="input_images",
                labels="",
                encoding=None,
                pairing=by_annotation,
                words={"val": "val2017"},
                panoptic=Panoptic("panoptic_examples", "panoptic_examples.json", _CATEGORIES),
            ),
        ),
        source=_SOURCE,
    ),
    Published(
        name="coco-stuff",
        title="COCO-Stuff-164k, 171 classes",
        vocabulary="coco-stuff",
        classes=171,
        layouts=_stuff_layouts(_FOLDERS, ()),
        source="https://github.com/nightrome/cocostuff",
    ),
    Published(
        name="coco-stuff-156-15",
        title="COCO-Stuff-164k, 156 base and 15 novel classes",
        vocabulary="coco-stuff-156-15",
        classes=171,
        layouts=(
            Layout(
                name="DeOP",  # base classes renumbered; images without any are left out
                tops=_TOPS,
                images="{split}",
                labels="stuffthingmaps_detectron2/{split}_base",
                encoding=encoding(dict(enumerate(_STUFF_BASE)), 171, legal="0 to 155, 255 ignored", ignored=(255,)),
                pairing=by_name,
                words={"train": "train2017"},
                partial=True,
                captions=_CAPTIONS,
            ),
            *_stuff_layouts({"train": "train2017"}, _STUFF_NOVEL),
            *_stuff_layouts({"val": "val2017"}, ()),
        ),
        source="https://github.com/nightrome/cocostuff",
    ),
)
