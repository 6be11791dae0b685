"""Pictures of segments: every thing in its own shade, borders between them, a legend by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovstrans.datasets.drawing import IGNORED
from ovstrans.datasets.sample import Segment
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.segmenter.overlays import draw_classes, draw_instances, draw_panoptic, shade_color
from ovstrans.vocabulary.vocabulary import Vocabulary

RED, BLUE = (200, 30, 30), (30, 60, 200)
STREET = Vocabulary("street", (("sky",), ("car",)), things=frozenset({1}), colors=(BLUE, RED))
GRAY = torch.full((3, 300, 400), 128, dtype=torch.uint8)


def test_shades_begin_with_the_colour_and_are_told_apart() -> None:
    shades = [shade_color(RED, number) for number in range(5)]
    assert shades[0] == RED and len(set(shades)) == 5
    assert all(0 <= part <= 255 for color in shades for part in color)
    assert min(np.abs(np.subtract(a, b)).max() for a in shades for b in shades if a != b) > 30


def test_panoptic_segments_of_one_class_are_told_apart() -> None:
    ids = torch.zeros(300, 400, dtype=torch.int32)
    ids[:, 100:200], ids[:, 200:300], ids[:, 300:] = 7, 2, 3
    segments = [Segment(7, 1, True, 30000), Segment(2, 1, True, 30000), Segment(3, 0, False, 30000)]
    page = np.asarray(draw_panoptic(GRAY, ids, segments, STREET))
    row = page[20]
    assert [row[x].tolist() for x in (50, 150, 250, 350)] == [
        list(IGNORED),
        list(RED),
        list(shade_color(RED, 1)),
        list(BLUE),
    ]
    for border in (100, 200, 300):
        assert row[border].sum() < row[border + 1].sum()  # a dark line where a segment begins
    legend = page[300:].reshape(-1, 3).tolist()
    assert list(RED) in legend and list(BLUE) in legend and list(IGNORED) in legend


def test_of_instances_the_surest_is_on_top_and_the_unsure_are_left_out() -> None:
    masks = torch.zeros(3, 300, 400, dtype=torch.bool)
    masks[0, :, :200], masks[1, :, 150:300], masks[2, :, 310:] = True, True, True
    found = Instances(torch.tensor([0.9, 0.6, 0.4]), torch.tensor([1, 1, 0]), masks)
    row = np.asarray(draw_instances(GRAY, found, STREET))[20]
    assert [row[x].tolist() for x in (50, 175, 250, 350)] == [
        list(RED),
        list(RED),
        list(shade_color(RED, 1)),
        list(IGNORED),
    ]


@pytest.mark.parametrize("size", [(3, 5), (300, 400)])
def test_where_there_is_nothing(size: tuple[int, int]) -> None:
    image = torch.full((3, *size), 128, dtype=torch.uint8)
    nothing = Instances(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, *size, dtype=torch.bool))
    for page in (
        draw_panoptic(image, torch.zeros(size, dtype=torch.int32), [], STREET),
        draw_instances(image, nothing, STREET),
    ):
        assert np.asarray(page)[0, 0].tolist() == list(IGNORED)


ROAD = Vocabulary("street", (("sky",), ("road", "street"), ("car",)), colors=((30, 60, 200), (200, 30, 30), (9, 8, 7)))


def many(count: int) -> Vocabulary:
    return Vocabulary("many", tuple((f"class {number}",) for number in range(count)))


def test_an_overlay_shows_colours_and_stands_above_its_legend() -> None:
    classes = torch.zeros(300, 400, dtype=torch.int64)
    classes[:, 200:] = 1
    gray = torch.full((3, 300, 400), 128, dtype=torch.uint8)
    page = draw_classes(gray, classes, ROAD)
    pixels = np.asarray(page)
    assert page.width == 400 and page.height > 320
    assert pixels[280, 20].tolist() == [30, 60, 200] and pixels[280, 380].tolist() == [200, 30, 30]
    legend = pixels[300:].reshape(-1, 3).tolist()
    assert [30, 60, 200] in legend and [200, 30, 30] in legend and [9, 8, 7] not in legend


@pytest.mark.parametrize(("size", "width"), [((3, 5), 360), ((40, 3000), 2048), ((2500, 10), 360), ((1, 1), 360)])
def test_overlays_of_odd_images_are_made_to_be_seen(size: tuple[int, int], width: int) -> None:
    page = draw_classes(torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(size, dtype=torch.int64), ROAD)
    assert page.width == width and page.height <= 2048 + 200


def test_a_class_of_index_255_has_its_colour_and_is_not_ignored() -> None:
    classes = torch.full((300, 400), 255)
    page = draw_classes(torch.full((3, 300, 400), 128, dtype=torch.uint8), classes, many(256))
    assert np.asarray(page)[290, 10].tolist() == many(256).palette()[255].tolist()
