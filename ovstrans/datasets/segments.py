"""Panoptic training targets: the segments of an image, and their crops for the teacher.

Frameworks that classify masks learn from segments, as DeepLab learns from a label map. Datasets with panoptic ground
truth have segments of their own. In any other dataset all pixels of a class in an image form one segment.

Shapes: `H W` image, `N` segments, `S` side of a region.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ovstrans.datasets.augment import Transform
from ovstrans.datasets.sample import Sample, Segment

GREY = 128
"""Gray level around a segment in its region, as in GKC's crops."""


@dataclass
class Segments:
    """The segments of one augmented image.

    Attributes:
        masks: bool [N, H, W].
        classes: Class indices in the dataset's vocabulary, int64 [N].
        ids: Segment ids in the segment map of the image on disk, int64 [N].
        regions: Crop of each segment for the teacher, uint8 [N, 3, S, S], see `crop_region`. None if no teacher needs
            them.
    """

    masks: Tensor
    classes: Tensor
    ids: Tensor
    regions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def to(self, device: torch.device | str) -> Segments:
        """Return the segments on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        regions = None if self.regions is None else move(self.regions)
        return Segments(move(self.masks), move(self.classes), move(self.ids), regions)


@dataclass(frozen=True)
class WithSegments:
    """A transform that finds the segments of a sample before another transform augments it.

    Attributes:
        augment: The other transform.
        ignore: Label of pixels that are ignored.
        novel: Classes that must not be trained on; their segments are left out.
        region_size: Side of the regions in pixels; 0 for no regions.
    """

    augment: Transform
    ignore: int
    novel: Collection[int] = ()
    region_size: int = 0

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the augmented sample with the segments that are visible in it, and their regions."""
        sample = add_segment_map(sample, self.ignore)
        augmented = self.augment(sample, generator)
        assert sample.segment_map is not None and augmented.segment_map is not None
        visible = set(torch.unique(augmented.segment_map).tolist())
        segments = [
            segment
            for segment in sample.segments
            if segment.id in visible and segment.class_index != self.ignore and segment.class_index not in self.novel
        ]
        regions = None
        if self.region_size:
            crops = [crop_region(sample.image, sample.segment_map == each.id, self.region_size) for each in segments]
            regions = torch.stack(crops) if crops else torch.zeros(0, 3, self.region_size, self.region_size).byte()
        return replace(augmented, segments=segments, regions=regions)


def add_segment_map(sample: Sample, ignore: int) -> Sample:
    """Return the sample with one segment per class of its label map; unchanged if it has segments or no label map."""
    if sample.segment_map is not None or sample.label is None:
        return sample
    label = sample.label.to(torch.int32)
    segments = [
        Segment(id=value + 1, class_index=value, isthing=False, area=int((label == value).sum()))
        for value in torch.unique(label).tolist()
        if value != ignore
    ]
    return replace(sample, segments=segments, segment_map=torch.where(label == ignore, 0, label + 1))


def crop_region(image: Tensor, mask: Tensor, size: int) -> Tensor:
    """Crop a segment for the teacher: its bounding box, gray outside the mask, resized to a square.

    The crop is that of GKC's code, except that it includes the last row and column of the box. Resizing is bicubic and
    does not keep the aspect ratio.

    Args:
        image: The image before augmentation, uint8 [3, H, W].
        mask: Pixels of the segment, bool [H, W], at least one.
        size: Side of the crop in pixels.

    Returns:
        uint8 [3, size, size].
    """
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    inside = mask[top:bottom, left:right]
    crop = torch.where(inside, image[:, top:bottom, left:right], torch.tensor(GREY, dtype=torch.uint8))
    region: Tensor = F.resize(crop, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return region


def make_segments(sample: Sample) -> Segments:
    """Return the training targets of a sample that comes from `WithSegments`."""
    assert sample.segment_map is not None
    ids = torch.tensor([segment.id for segment in sample.segments], dtype=torch.int64)
    return Segments(
        masks=sample.segment_map[None] == ids[:, None, None],
        classes=torch.tensor([segment.class_index for segment in sample.segments], dtype=torch.int64),
        ids=ids,
        regions=sample.regions,
    )
