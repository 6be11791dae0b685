"""What every dataset yields: an image with its label map, and the shape of a dataset.

Shapes: `H W` image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ovstrans.vocabulary.vocabulary import Vocabulary

IGNORE = 255
"""The label of pixels that count nowhere, for up to 254 classes."""
IGNORE_WIDE = 65535
"""The same for larger vocabularies."""


def get_ignore_label(num_classes: int) -> int:
    """The ignore label of a dataset with that many classes: 255, or 65535 above 254 classes."""
    return IGNORE if num_classes < IGNORE else IGNORE_WIDE


@dataclass
class Segment:
    """One panoptic segment: a thing, or all of one kind of stuff.

    id: its value in the segment map (0 is no segment).
    class_index: its class in the vocabulary, or the ignore label.
    isthing: whether it is countable.
    area: its visible pixels.
    iscrowd: whether it is a group of things that nobody told apart; evaluation neither wants nor minds it.
    attributes: what is known beyond the class, such as colour and texture.
    """

    id: int
    class_index: int
    isthing: bool
    area: int
    attributes: dict[str, str] = field(default_factory=dict)
    iscrowd: bool = False


@dataclass
class Sample:
    """One image and what is known of it.

    image: uint8 [3, H, W], RGB.
    label: class index per pixel [H, W], uint8 where the ignore label is 255, else int64; None unlabelled.
    name: unique in its dataset and split.
    caption: a sentence about the image, or "".
    segments: panoptic segments, or none.
    segment_map: int32 [H, W] of segment ids, or None.
    regions: uint8 [N, 3, S, S], what a teacher sees of each segment, or None (see `datasets.segments`).
    """

    image: Tensor
    label: Tensor | None = None
    name: str = ""
    caption: str = ""
    segments: list[Segment] = field(default_factory=list)
    segment_map: Tensor | None = None
    regions: Tensor | None = None


class Dataset(Protocol):
    """A sized, indexed set of samples with one vocabulary.

    name: as reports call it.
    split: which part of it this is.
    vocabulary: its classes; empty where nothing is labelled.
    ignore: the label of pixels that count nowhere.
    published_size: short and long side of images at evaluation, as papers on this dataset have it; None for
    the images' own.
    videos: index ranges of the frames that follow each other, a range a video; empty for single images.
    """

    name: str
    split: str
    vocabulary: Vocabulary
    ignore: int
    published_size: tuple[int, int] | None
    videos: Sequence[range]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...
