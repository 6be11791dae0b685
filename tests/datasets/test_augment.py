"""Augmentation keeps images and label maps together, and is a function of its seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from ovstrans.datasets.augment import (
    CLIP_MEAN,
    Augment,
    CenterCrop,
    compute_evaluation_size,
    resize_image,
    resize_labels,
)
from ovstrans.datasets.sample import Sample
from ovstrans.errors import InputError

IGNORE = 255
GRAYS = torch.tensor([40, 90, 140, 190, 240], dtype=torch.uint8)


def blocks(height: int, width: int, seed: int, block: int = 12) -> Sample:
    """An image whose gray tells the label: constant blocks, so that a shift shows at once."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, len(GRAYS), (-(-height // block), -(-width // block)), generator=generator)
    label = coarse.repeat_interleave(block, 0).repeat_interleave(block, 1)[:height, :width].to(torch.uint8)
    return Sample(image=GRAYS[label.long()].expand(3, -1, -1).clone(), label=label, segment_map=label.int() + 1)


def interior(label: torch.Tensor, reach: int) -> torch.Tensor:
    """Where all neighbours within `reach` have the same label."""
    values = label.float()[None, None]
    size = 2 * reach + 1
    high = torch.nn.functional.max_pool2d(values, size, 1, reach)
    low = -torch.nn.functional.max_pool2d(-values, size, 1, reach)
    return (high == low)[0, 0]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    crop=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    low=st.floats(0.3, 1.5),
    more=st.floats(1.0, 2.0),
    seed=st.integers(0, 10_000),
)
def test_label_and_image_stay_aligned(
    height: int, width: int, crop: tuple[int, int], low: float, more: float, seed: int
) -> None:
    sample = blocks(height, width, seed)
    transform = Augment(scale=(low, low * more), flip=0.5).transform(crop, IGNORE)
    result = transform(sample, torch.Generator().manual_seed(seed))
    label, image = result.label, result.image
    assert label is not None and result.segment_map is not None
    assert image.shape == (3, *crop) and label.shape == crop
    assert image.dtype == torch.uint8 and label.dtype == torch.uint8

    padded = label == IGNORE
    mean = torch.tensor(CLIP_MEAN, dtype=torch.uint8)[:, None]
    assert (image[:, padded] == mean).all()
    assert (result.segment_map[padded] == 0).all()
    assert (result.segment_map[~padded] == label[~padded].int() + 1).all()

    # The outermost pixels may be mixed with a block that the crop left outside.
    inside = torch.zeros_like(padded)
    inside[2:-2, 2:-2] = True
    sure = interior(label, reach=4) & ~padded & inside
    expected = GRAYS[label.long().clamp(max=len(GRAYS) - 1)]
    assert (image[0].int() - expected.int())[sure].abs().max().item() <= 2 if sure.any() else True


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7, 3.0])
def test_edges_of_label_and_image_meet(scale: float) -> None:
    """Half black, half white: in the scaled image the label changes where the gray passes the middle."""
    label = torch.zeros(60, 60, dtype=torch.uint8)
    label[:, 30:] = 1
    sample = Sample(image=(label * 255).expand(3, -1, -1).clone(), label=label)
    result = Augment(scale=(scale, scale), flip=0.0).transform(int(60 * scale), IGNORE)(sample, torch.Generator())
    assert result.label is not None
    assert ((result.image[0] >= 128) == (result.label == 1)).all()


def test_flip_is_a_mirror() -> None:
    sample = blocks(40, 40, 1)
    result = Augment(scale=(1.0, 1.0), flip=1.0).transform(40, IGNORE)(sample, torch.Generator())
    assert sample.label is not None and result.label is not None
    assert torch.equal(result.image, sample.image.flip(-1))
    assert torch.equal(result.label, sample.label.flip(-1))


def test_the_same_seed_gives_the_same_sample_whatever_the_global_state() -> None:
    transform = Augment(jitter=0.4).transform((30, 40), IGNORE)
    sample = blocks(60, 50, 2)

    def draw(seed: int) -> Sample:
        torch.rand(3)
        return transform(sample, torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    transform(sample, torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = draw(5), draw(5), draw(6)
    assert torch.equal(first.image, again.image) and first.label is not None and again.label is not None
    assert torch.equal(first.label, again.label)
    assert not torch.equal(first.image, other.image)


def test_scale_and_crop_places_vary_over_the_whole_range() -> None:
    """A ramp tells where a crop begins and how far it reaches."""
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200).clone()
    transform = Augment(scale=(0.5, 2.0), flip=0.0).transform(60, IGNORE)
    starts, reaches = [], []
    for seed in range(200):
        row = transform(Sample(image=ramp), torch.Generator().manual_seed(seed)).image[0, 30].int()
        starts.append(int(row[0]))
        reaches.append(int(row[-1] - row[0]))
    assert min(starts) < 12 and max(starts) > 150
    assert min(reaches) < 35 and max(reaches) > 105


def test_crops_reach_both_ends_of_the_image() -> None:
    ramp = torch.arange(62, dtype=torch.uint8).expand(3, 62, 62).clone()
    transform = Augment(scale=(1.0, 1.0), flip=0.0).transform(60, IGNORE)
    starts = {
        int(transform(Sample(image=ramp), torch.Generator().manual_seed(seed)).image[0, 0, 0]) for seed in range(60)
    }
    assert starts == {0, 1, 2}


def test_padding_is_on_the_right_and_at_the_bottom() -> None:
    sample = blocks(8, 6, 0)
    result = Augment(scale=(1.0, 1.0), flip=0.0).transform((10, 9), IGNORE)(sample, torch.Generator())
    assert result.label is not None and sample.label is not None
    assert torch.equal(result.label[:8, :6], sample.label) and torch.equal(result.image[:, :8, :6], sample.image)
    assert (result.label[8:] == IGNORE).all() and (result.label[:, 6:] == IGNORE).all()


def test_jitter_changes_brightness_contrast_and_saturation_both_ways() -> None:
    image = torch.randint(60, 200, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    transform = Augment(scale=(1.0, 1.0), flip=0.0, jitter=0.4).transform(8, IGNORE)
    factors = []
    for seed in range(40):
        draws = torch.rand(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        expected = image  # the first four draws are for scale, window and flip
        for adjust, draw in zip((F.adjust_brightness, F.adjust_contrast, F.adjust_saturation), draws[4:], strict=True):
            expected = adjust(expected, 0.6 + 0.8 * float(draw))
        result = transform(Sample(image=image), torch.Generator().manual_seed(seed)).image
        assert (result.int() - expected.int()).abs().max() <= 1
        factors.append(float(result.float().mean() / image.float().mean()))
    assert min(factors) < 0.8 and max(factors) > 1.2


def test_short_side_is_what_scale_one_means() -> None:
    sample = blocks(400, 600, 3, block=200)
    result = Augment(scale=(1.0, 1.0), flip=0.0, short_side=40).transform((40, 60), IGNORE)(sample, torch.Generator())
    assert result.label is not None and sample.label is not None
    assert torch.equal(result.label, sample.label[5::10, 5::10])


def test_a_wide_ignore_label_survives_padding() -> None:
    sample = Sample(image=torch.zeros(3, 8, 8, dtype=torch.uint8), label=torch.full((8, 8), 700))
    result = Augment(scale=(1.0, 1.0)).transform(16, 65535)(sample, torch.Generator())
    assert result.label is not None and set(result.label.unique().tolist()) == {700, 65535}


@pytest.mark.parametrize(
    "fields", [{"scale": (2.0, 1.0)}, {"scale": (0.0, 1.0)}, {"flip": 1.5}, {"jitter": 1.0}, {"short_side": -1}]
)
def test_settings_out_of_range_are_refused(fields: dict) -> None:
    with pytest.raises(InputError, match=f"augment.{next(iter(fields))}"):
        Augment(**fields)


def test_center_crop_takes_the_middle() -> None:
    sample = blocks(40, 80, 4, block=10)
    result = CenterCrop((20, 20))(sample, torch.Generator())
    assert sample.label is not None and result.label is not None
    assert result.image.shape == (3, 20, 20)
    assert torch.equal(result.label, sample.label[:, 20:60][1::2, 1::2])
    assert result.segment_map is not None and torch.equal(result.segment_map, result.label.int() + 1)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640, None, None), (480, 640)),
        ((480, 640, 240, None), (240, 320)),
        ((640, 480, 240, None), (320, 240)),
        ((400, 1600, 800, 1333), (333, 1333)),
        ((400, 1600, None, 800), (200, 800)),
        ((5, 4, 2, None), (3, 2)),  # 2.5 is rounded up
    ],
)
def test_evaluation_size(size: tuple[int, int, int | None, int | None], expected: tuple[int, int]) -> None:
    assert compute_evaluation_size(*size) == expected


def test_a_resized_label_is_that_of_the_pixel_center() -> None:
    labels = torch.arange(6, dtype=torch.uint8).expand(1, 6, 6)
    assert resize_labels(labels, (3, 2))[0].tolist() == [[1, 4]] * 3


def test_resizing_to_the_same_size_changes_nothing() -> None:
    sample = blocks(20, 30, 5)
    assert sample.label is not None
    assert resize_image(sample.image, (20, 30)) is sample.image
    assert resize_labels(sample.label[None], (20, 30))[0].tolist() == sample.label.tolist()
