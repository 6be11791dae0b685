"""Panoptic targets: the segments of a training image, with the regions a teacher looks at.

Mask-classification frameworks learn from segments where DeepLab learns from a label map. Data with
panoptic labels bring their own segments; a plain label map gives one segment a class.

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
"""What surrounds a segment in its region (GKC's crops)."""


@dataclass
class Segments:
    """The segments of one image, as it is trained on.

    masks: bool [N, H, W].  classes: int64 [N], indices in the dataset's vocabulary.
    ids: int64 [N], their values in the segment map of the image on disk.
    regions: uint8 [N, 3, S, S], see `region_of`; None where no teacher asks for them.
    """

    masks: Tensor
    classes: Tensor
    ids: Tensor
    regions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def to(self, device: torch.device | str) -> Segments:
        """The same on another device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        regions = None if self.regions is None else moved(self.regions)
        return Segments(moved(self.masks), moved(self.classes), moved(self.ids), regions)


@dataclass(frozen=True)
class WithSegments:
    """A transform that works out a sample's segments before `then` augments it.

    then: the augmentation.  ignore: label of pixels that count nowhere.  novel: classes that give no
    training signal; their segments are left out.  region_size: S; 0 for no regions.
    """

    then: Transform
    ignore: int
    novel: Collection[int] = ()
    region_size: int = 0

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """The augmented sample, its `segments` those that are still to be seen, `regions` beside them."""
        sample = add_segment_map(sample, self.ignore)
        shown = self.then(sample, generator)
        assert sample.segment_map is not None and shown.segment_map is not None
        visible = set(torch.unique(shown.segment_map).tolist())
        wanted = [
            segment
            for segment in sample.segments
            if segment.id in visible and segment.class_index != self.ignore and segment.class_index not in self.novel
        ]
        regions = None
        if self.region_size:
            found = [
                crop_region(sample.image, sample.segment_map == segment.id, self.region_size) for segment in wanted
            ]
            regions = torch.stack(found) if found else torch.zeros(0, 3, self.region_size, self.region_size).byte()
        return replace(shown, segments=wanted, regions=regions)


def add_segment_map(sample: Sample, ignore: int) -> Sample:
    """The sample itself where it has panoptic segments, else with one segment for each class it labels."""
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
    """What a teacher sees of a segment: uint8 [3, size, size].

    image: uint8 [3, H, W], not augmented.  mask: bool [H, W], with a pixel at least.  The segment's
    bounding box, grey outside the mask, resized without keeping the aspect (bicubic), as GKC's crops,
    but with the box's last row and column, which those lose.
    """
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    inside = mask[top:bottom, left:right]
    crop = torch.where(inside, image[:, top:bottom, left:right], torch.tensor(GREY, dtype=torch.uint8))
    return F.resize(crop, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)


def make_segments(sample: Sample) -> Segments:
    """The targets of a sample that `WithSegments` made."""
    assert sample.segment_map is not None
    ids = torch.tensor([segment.id for segment in sample.segments], dtype=torch.int64)
    return Segments(
        masks=sample.segment_map[None] == ids[:, None, None],
        classes=torch.tensor([segment.class_index for segment in sample.segments], dtype=torch.int64),
        ids=ids,
        regions=sample.regions,
    )
