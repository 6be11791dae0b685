"""Panoptic targets: which segments a training image has, and what a teacher sees of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ovstrans.datasets.augment import Augment
from ovstrans.datasets.loading import collate
from ovstrans.datasets.sample import Sample, Segment
from ovstrans.datasets.segments import WithSegments, add_segment_map, crop_region, make_segments

IGNORE = 255


def keep(sample: Sample, _generator: torch.Generator) -> Sample:
    """No augmentation."""
    return sample


def left_half(sample: Sample, _generator: torch.Generator) -> Sample:
    """Drops the right half and inverts the colours."""
    width = sample.image.shape[-1] // 2
    assert sample.segment_map is not None
    return Sample(
        255 - sample.image[..., :width], segment_map=sample.segment_map[..., :width], segments=sample.segments
    )


def panoptic() -> Sample:
    """Four vertical stripes of 4x2 pixels, ids 11 to 14, of classes 0, 1, 2 and ignore."""
    segment_map = torch.tensor([11, 11, 12, 12, 13, 13, 14, 14], dtype=torch.int32).repeat(4, 1)
    classes = (0, 1, 2, IGNORE)
    segments = [Segment(11 + n, kind, isthing=True, area=8) for n, kind in enumerate(classes)]
    image = torch.arange(4 * 8, dtype=torch.uint8).reshape(1, 4, 8).repeat(3, 1, 1)
    return Sample(image, label=None, segments=segments, segment_map=segment_map)


def made(sample: Sample, **given: object) -> Sample:
    transform = WithSegments(**{"augment": keep, "ignore": IGNORE, **given})  # type: ignore[arg-type]
    return transform(sample, torch.Generator())


def test_novel_and_ignored_segments_are_left_out() -> None:
    found = make_segments(made(panoptic(), novel={1}))
    assert found.ids.tolist() == [11, 13] and found.classes.tolist() == [0, 2]
    assert len(found) == 2 and found.regions is None
    assert found.masks.dtype == torch.bool and found.masks.shape == (2, 4, 8)
    assert found.masks[1, 0].tolist() == [False] * 4 + [True] * 2 + [False] * 2


def test_invisible_segments_are_left_out() -> None:
    found = make_segments(made(panoptic(), augment=left_half))
    assert found.ids.tolist() == [11, 12] and found.masks.shape == (2, 4, 4)
    assert found.masks.flatten(1).any(1).all()


def test_an_image_may_have_no_segment() -> None:
    found = make_segments(made(panoptic(), novel={0, 1, 2}, region_size=6))
    assert len(found) == 0 and found.masks.shape == (0, 4, 8) and found.masks.dtype == torch.bool
    assert found.regions is not None and found.regions.shape == (0, 3, 6, 6) and found.regions.dtype == torch.uint8


def test_label_map_alone_gives_one_segment_a_class() -> None:
    label = torch.tensor([[0, 0, 3], [IGNORE, 3, 3]], dtype=torch.uint8)
    sample = add_segment_map(Sample(torch.zeros(3, 2, 3).byte(), label=label), IGNORE)
    assert [(segment.class_index, segment.area) for segment in sample.segments] == [(0, 2), (3, 3)]
    found = make_segments(sample)
    assert found.classes.tolist() == [0, 3]
    assert torch.equal(found.masks[0], label == 0) and torch.equal(found.masks[1], label == 3)
    assert not found.masks.any(0)[1, 0]  # the ignored pixel is of no segment


def test_panoptic_labels_are_kept_as_they_are() -> None:
    sample = panoptic()
    assert add_segment_map(sample, IGNORE) is sample
    unlabelled = Sample(torch.zeros(3, 2, 2).byte())
    assert add_segment_map(unlabelled, IGNORE) is unlabelled


def ramp(height: int, width: int) -> Tensor:
    return (torch.arange(height)[:, None] * 10 + torch.arange(width)).to(torch.uint8).repeat(3, 1, 1)


def test_region_is_the_whole_bounding_box() -> None:
    """Its last row and column too: at the box's own size nothing is resized away."""
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[2:6, 3:7] = True
    assert torch.equal(crop_region(ramp(9, 9), mask, 4), ramp(9, 9)[:, 2:6, 3:7])
    mask[:] = False
    mask[8, 8] = True  # a single pixel, in the last corner
    assert torch.equal(crop_region(ramp(9, 9), mask, 1), ramp(9, 9)[:, 8:, 8:])


def test_region_is_grey_outside_the_mask() -> None:
    mask = torch.eye(4, dtype=torch.bool)
    region = crop_region(ramp(4, 4), mask, 4)
    assert (region[:, ~mask] == 128).all()
    assert torch.equal(region[:, mask], ramp(4, 4)[:, mask])


def test_regions_are_those_of_the_image_before_augmentation() -> None:
    sample = made(panoptic(), augment=left_half, region_size=2)
    found = make_segments(sample)
    assert found.ids.tolist() == [11, 12] and found.regions is not None
    assert torch.equal(found.regions[1], crop_region(panoptic().image, panoptic().segment_map == 12, 2))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_masks_follow_the_augmentation(flip: float) -> None:
    transform = WithSegments(Augment(scale=(1.0, 1.0), flip=flip).transform((6, 10), IGNORE), IGNORE)
    generator = torch.Generator().manual_seed(1)
    found = collate([transform(panoptic(), generator)], segments=True).segments
    assert found is not None and found[0].masks.shape == (3, 6, 10)
    assert not found[0].masks[:, 4:].any() and not found[0].masks[:, :, 8:].any()  # what is padded is of no segment
    stripes = [mask[0].nonzero().flatten().tolist() for mask in found[0].masks]
    assert stripes == ([[0, 1], [2, 3], [4, 5]] if flip == 0 else [[6, 7], [4, 5], [2, 3]])


def test_segments_are_moved_to_a_device_as_a_whole() -> None:
    found = make_segments(made(panoptic(), region_size=2)).to("meta")
    assert found.regions is not None
    assert all(each.is_meta for each in (found.masks, found.classes, found.ids, found.regions))
