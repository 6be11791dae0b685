"""Run lengths against a decoder that walks pixel by pixel, and cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from ovstrans.datasets.run_lengths import decode_mask, encode_mask
from ovstrans.errors import InputError
from ovstrans.segmenter.coco import bounding_box

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


def compressed(counts: list[int]) -> str:
    """COCO's string of counts: differences from the fourth on, in groups of 5 bits with the lowest first."""
    text = ""
    for place, count in enumerate(counts):
        value, more = (count - counts[place - 2] if place > 2 else count), True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != -1 if bits & 0x10 else value != 0
            text += chr(48 + (bits | 0x20 if more else bits))
    return text


@given(MASKS)
def test_a_string_of_counts_gives_the_mask_back(mask: np.ndarray) -> None:
    rle = encode_mask(mask)
    text = {**rle, "counts": compressed(rle["counts"])}
    assert np.array_equal(decode_mask(text), mask)
    assert np.array_equal(decode_mask({**text, "counts": text["counts"].encode()}), mask)


def test_large_counts_in_a_string_by_hand() -> None:
    # 1000 = 8 + 31 * 32: 8 and 31, each with more to follow, and 0, as the fifth bit of 31 would be a sign.
    pixels = np.zeros(1500, dtype=bool)
    pixels[1000:1010] = True
    mask = pixels.reshape(30, 50).T
    assert compressed([1000, 10, 490]) == "Xo0:Z?"
    assert np.array_equal(decode_mask({"size": [50, 30], "counts": "Xo0:Z?"}), mask)


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
        {"size": [2, 2], "counts": "03"},
        {"size": [2, 2], "counts": "0T"},
        {"size": [2, 2], "counts": "\u00e9"},
        {"size": [2, 2], "counts": [[4]]},
    ],
)
def test_what_are_no_run_lengths(rle: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="run lengths"):
        decode_mask(rle)
