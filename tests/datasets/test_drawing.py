"""Pictures of labelled images: colours where they belong, legends, contact sheets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.drawing import IGNORED, choose_evenly, draw_contact_sheet, draw_legend, draw_overlay
from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import Vocabulary

STREET = Vocabulary("street", (("sky",), ("road",)), novel=frozenset({1}), colors=((30, 60, 200), (200, 30, 30)))


def test_an_overlay_has_the_colour_of_each_class_and_grey_where_there_is_none() -> None:
    classes = torch.zeros(80, 120, dtype=torch.int64)
    classes[:, 40:80], classes[:, 80:] = 1, 255
    image = torch.full((3, 80, 120), 128, dtype=torch.uint8)
    pixels = np.asarray(draw_overlay(image, classes, STREET))
    assert [pixels[75, x].tolist() for x in (5, 45, 115)] == [[30, 60, 200], [200, 30, 30], list(IGNORED)]
    assert (pixels[:, 40] < pixels[:, 45]).any()  # a dark line where the next class begins


def test_an_overlay_is_lighter_where_the_photo_is() -> None:
    classes = torch.zeros(10, 30, dtype=torch.int64)
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).repeat_interleave(10).expand(3, 10, 30)
    dark, middle, bright = np.asarray(draw_overlay(image, classes, STREET)).astype(int)[5, [5, 15, 25]]
    assert (dark < middle).all() and (middle < bright).all() and middle.tolist() == [30, 60, 200]


def test_an_overlay_is_resized_to_the_nearest_pixel() -> None:
    classes = torch.tensor([[0, 1], [1, 0]])
    image = torch.full((3, 2, 2), 128, dtype=torch.uint8)
    pixels = np.asarray(draw_overlay(image, classes, STREET, size=(40, 20)))
    assert pixels.shape == (20, 40, 3)
    assert [pixels[y, x].tolist() for y, x in ((1, 1), (1, 38), (18, 1), (18, 38))] == [
        [30, 60, 200], [200, 30, 30], [200, 30, 30], [30, 60, 200],
    ]  # fmt: skip


def test_a_legend_breaks_into_lines_and_stars_novel_classes() -> None:
    narrow = draw_legend([(0, "12 %"), (1, "3 %")], STREET, 90)
    wide = draw_legend([(0, "12 %"), (1, "3 %")], STREET, 600)
    base_only = draw_legend([(0, "12 %")], STREET, 600)
    assert narrow.height > wide.height > base_only.height  # a line each, and one that says what the star means
    assert [30, 60, 200] in np.asarray(wide).reshape(-1, 3).tolist()
    assert draw_legend([], STREET, 50).height < base_only.height


def test_a_contact_sheet_has_four_images_in_a_row() -> None:
    dataset = open_dataset("scenes", split="val", size=32)
    heights = [draw_contact_sheet([dataset[n] for n in range(count)], dataset, title="t").height for count in (1, 4, 5)]
    assert heights[2] > heights[1] >= heights[0] - 60
    with pytest.raises(InputError, match="scenes:val: no image to show"):
        draw_contact_sheet([], dataset)


def test_chosen_images_are_spread_evenly() -> None:
    assert choose_evenly(3, 4) == {0, 1, 2} and choose_evenly(0, 4) == choose_evenly(9, 0) == set()
    assert choose_evenly(400, 4) == {0, 100, 200, 300}
