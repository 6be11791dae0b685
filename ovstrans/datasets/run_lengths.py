"""COCO's run lengths of masks.

A mask is {"size": [H, W], "counts": [n0, n1, n2, ...]}: column by column, n0 pixels are outside (maybe none), then n1
inside, n2 outside, and so on; they sum to H * W. COCO's tools, and Segment Anything with "coco_rle", also write the
counts as a string. Each count is then a sequence of characters of 5 bits each, the lowest first, plus 48; bit 6 says
that more follow, and the sign is that of the last one's bit 5. From the fourth count on, the difference to the count
two before is stored.

Shapes: `H W` image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ovstrans.errors import InputError

_MOST_PIXELS = 1 << 32
_MOST_BITS = 60
_PLAIN_COUNTS = 3
"""The first counts of a string are stored as they are, the others as differences."""


def encode_mask(mask: np.ndarray) -> dict[str, list[int]]:
    """Return the run lengths of a mask, bool [H, W]."""
    pixels = mask.T.reshape(-1)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    if pixels.size and pixels[0]:
        counts.insert(0, 0)
    return {"size": list(mask.shape), "counts": counts}


def decode_mask(rle: Mapping[str, Any]) -> np.ndarray:
    """Return the mask, bool [H, W], of run lengths, whose counts are numbers or a string.

    Raises:
        InputError: If they do not fill the mask, or are something else.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        if not 0 <= height * width <= _MOST_PIXELS:
            raise ValueError(f"a size of {height}x{width}")
        found = rle["counts"]
        counts = np.array(_decode_string(found) if isinstance(found, (str, bytes)) else found, dtype=np.int64)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"not run lengths of a mask ({type(error).__name__}: {error})") from error
    too_much = counts.ndim != 1 or (counts < 0).any() or (counts > height * width).any()
    if too_much or counts.sum() != height * width or min(height, width) < 0:
        raise InputError(
            f"run lengths of {height}x{width} must be numbers, or COCO's string of them, that sum to {height * width}"
        )
    inside = np.arange(len(counts)) % 2 == 1
    mask: np.ndarray = np.repeat(inside, counts).reshape(width, height).T
    return mask


def _decode_string(text: str | bytes) -> list[int]:
    """Return the counts of a string; IndexError if it ends within one."""
    codes = text.encode("ascii") if isinstance(text, str) else text
    counts: list[int] = []
    place = 0
    while place < len(codes):
        value, shift, more = 0, 0, True
        while more:
            part = codes[place] - 48
            if shift > _MOST_BITS:
                raise ValueError("a count that does not end")
            value |= (part & 0x1F) << shift
            more, shift, place = bool(part & 0x20), shift + 5, place + 1
            if not more and part & 0x10:
                value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) >= _PLAIN_COUNTS else value)
    return counts
