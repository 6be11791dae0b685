"""Run lengths against a decoder that walks pixel by pixel, and cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from ovstrans.errors import InputError
from ovstrans.segmenter.coco import bounding_box, decode_mask, encode_mask

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def walked(rle: dict[str, Any]) -> np.ndarray:
    """Down every column, left to right, turning from outside to inside and back where a run ends."""
    height, width = rle["size"]
    mask = np.zeros((height, width), dtype=bool)
    runs, left, inside = iter(rle["counts"]), 0, True
    for column in range(width):
        for row in range(height):
            while left == 0:
                left, inside = next(runs), not inside
            mask[row, column] = inside
            left -= 1
    assert left == 0 and next(runs, None) is None
    return mask


def test_by_hand() -> None:
    mask = np.array([[0, 1, 1], [0, 1, 0]], dtype=bool)
    assert encode_mask(mask) == {"size": [2, 3], "counts": [2, 3, 1]}
    assert encode_mask(~mask) == {"size": [2, 3], "counts": [0, 2, 3, 1]}
    assert bounding_box(mask) == [1, 0, 2, 2]
    assert encode_mask(np.ones((1, 2), dtype=bool))["counts"] == [0, 2]
    assert encode_mask(np.zeros((3, 2), dtype=bool))["counts"] == [6]


@given(MASKS)
def test_a_naive_decoder_gives_the_mask_back(mask: np.ndarray) -> None:
    rle = encode_mask(mask)
    assert np.array_equal(walked(rle), mask) and np.array_equal(decode_mask(rle), mask)
    assert sum(rle["counts"]) == mask.size and sum(rle["counts"][1::2]) == mask.sum()
    assert all(count > 0 for count in rle["counts"][1:])


@given(MASKS)
def test_a_box_is_the_smallest_around_the_mask(mask: np.ndarray) -> None:
    x, y, width, height = bounding_box(mask)
    inside = mask[y : y + height, x : x + width]
    assert inside.sum() == mask.sum()
    if mask.any():
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    else:
        assert (width, height) == (0, 0)


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": [4]},
        {"size": [2, 2], "counts": [3]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": "04"},
        {"size": [2, 2], "counts": [[4]]},
    ],
)
def test_what_are_no_run_lengths(rle: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="run lengths"):
        decode_mask(rle)
