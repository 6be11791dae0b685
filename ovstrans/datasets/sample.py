"""The samples that datasets yield, and the interface of a dataset.

Shapes: `H W` image, `N` segments, `S` side of a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ovstrans.vocabulary.vocabulary import Vocabulary

IGNORE = 255
"""Label of pixels that are ignored, in datasets of up to 254 classes."""
IGNORE_WIDE = 65535
"""Label of pixels that are ignored, in datasets of more classes."""


def get_ignore_label(num_classes: int) -> int:
    """Return the ignore label of a dataset: 255 for up to 254 classes, else 65535."""
    return IGNORE if num_classes < IGNORE else IGNORE_WIDE


@dataclass
class Segment:
    """A panoptic segment: one thing, or all of one kind of stuff in an image.

    Attributes:
        id: Value of its pixels in the segment map; 0 means no segment.
        class_index: Its class in the vocabulary, or the ignore label.
        isthing: Whether its class is countable.
        area: Number of its visible pixels.
        attributes: Properties beyond the class, such as colour and texture.
        iscrowd: Whether it is a group of things that were not annotated one by one. Panoptic quality neither expects
            such a segment nor counts a prediction on it as wrong.
    """

    id: int
    class_index: int
    isthing: bool
    area: int
    attributes: dict[str, str] = field(default_factory=dict)
    iscrowd: bool = False


@dataclass(repr=False)
class Sample:
    """An image with its annotations.

    Attributes:
        image: uint8 [3, H, W], RGB.
        label: Class index of each pixel [H, W]: uint8 if the ignore label is 255, else int64. None if unlabelled.
        name: Name of the image, unique in its dataset and split.
        caption: A sentence about the image, or "".
        segments: Its panoptic segments; empty if there are none.
        segment_map: Segment id of each pixel, int32 [H, W], or None.
        regions: Crop of each segment for the teacher, uint8 [N, 3, S, S] (see `datasets.segments.crop_region`), or
            None.
    """

    image: Tensor
    label: Tensor | None = None
    name: str = ""
    caption: str = ""
    segments: list[Segment] = field(default_factory=list)
    segment_map: Tensor | None = None
    regions: Tensor | None = None

    def __repr__(self) -> str:
        parts = {
            "no labels": self.label is None,
            f"{len(self.segments)} segments": bool(self.segments),
            f"{self.caption!r}": bool(self.caption),
        }
        more = "".join(f", {text}" for text, shown in parts.items() if shown)
        return f"Sample({self.name}: {self.image.shape[-2]}x{self.image.shape[-1]}{more})"


def describe_dataset(dataset: Dataset) -> str:
    """Return the text of a dataset: its class, name, split, and the number of images and classes."""
    words = f"{len(dataset)} images, {len(dataset.vocabulary)} classes"
    return f"{type(dataset).__name__}({dataset.name}:{dataset.split}, {words})"


class Dataset(Protocol):
    """A split of a dataset: a sequence of samples with one vocabulary.

    Attributes:
        name: Name of the dataset in reports.
        split: Name of the split.
        vocabulary: Its classes; empty if nothing is labelled.
        ignore: Label of pixels that are ignored.
        published_size: Short and long side of the image at evaluation in papers that use the dataset. None means the
            image's own size.
        videos: Range of indices of each video, whose frames follow each other. Empty for single images.
    """

    name: str
    split: str
    vocabulary: Vocabulary
    ignore: int
    published_size: tuple[int, int] | None
    videos: Sequence[range]

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int, /) -> Sample:
        """Read the sample with the given index."""
