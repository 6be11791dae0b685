"""Pictures of segments: every thing in its own shade, borders between them, a legend by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovstrans.datasets.drawing import IGNORED
from ovstrans.datasets.sample import Segment
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.segmenter.segment_overlay import draw_instances, draw_panoptic, shade
from ovstrans.vocabulary.vocabulary import Vocabulary

RED, BLUE = (200, 30, 30), (30, 60, 200)
STREET = Vocabulary("street", (("sky",), ("car",)), things=frozenset({1}), colors=(BLUE, RED))
GRAY = torch.full((3, 300, 400), 128, dtype=torch.uint8)


def test_shades_begin_with_the_colour_and_are_told_apart() -> None:
    shades = [shade(RED, number) for number in range(5)]
    assert shades[0] == RED and len(set(shades)) == 5
    assert all(0 <= part <= 255 for color in shades for part in color)
    assert min(np.abs(np.subtract(a, b)).max() for a in shades for b in shades if a != b) > 30


def test_panoptic_segments_of_one_class_are_told_apart() -> None:
    ids = torch.zeros(300, 400, dtype=torch.int32)
    ids[:, 100:200], ids[:, 200:300], ids[:, 300:] = 7, 2, 3
    segments = [Segment(7, 1, True, 30000), Segment(2, 1, True, 30000), Segment(3, 0, False, 30000)]
    page = np.asarray(draw_panoptic(GRAY, ids, segments, STREET))
    row = page[20]
    assert [row[x].tolist() for x in (50, 150, 250, 350)] == [list(IGNORED), list(RED), list(shade(RED, 1)), list(BLUE)]
    for border in (100, 200, 300):
        assert row[border].sum() < row[border + 1].sum()  # a dark line where a segment begins
    legend = page[300:].reshape(-1, 3).tolist()
    assert list(RED) in legend and list(BLUE) in legend and list(IGNORED) in legend


def test_of_instances_the_surest_is_on_top_and_the_unsure_are_left_out() -> None:
    masks = torch.zeros(3, 300, 400, dtype=torch.bool)
    masks[0, :, :200], masks[1, :, 150:300], masks[2, :, 310:] = True, True, True
    found = Instances(torch.tensor([0.9, 0.6, 0.4]), torch.tensor([1, 1, 0]), masks)
    row = np.asarray(draw_instances(GRAY, found, STREET))[20]
    assert [row[x].tolist() for x in (50, 175, 250, 350)] == [list(RED), list(RED), list(shade(RED, 1)), list(IGNORED)]


@pytest.mark.parametrize("size", [(3, 5), (300, 400)])
def test_where_there_is_nothing(size: tuple[int, int]) -> None:
    image = torch.full((3, *size), 128, dtype=torch.uint8)
    nothing = Instances(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, *size, dtype=torch.bool))
    for page in (
        draw_panoptic(image, torch.zeros(size, dtype=torch.int32), [], STREET),
        draw_instances(image, nothing, STREET),
    ):
        assert np.asarray(page)[0, 0].tolist() == list(IGNORED)
