"""Masks as run lengths, as COCO's files of results have them, uncompressed.

    {"size": [H, W], "counts": [n0, n1, n2, ...]}

column by column: n0 pixels outside (maybe none), n1 inside, n2 outside, and so on; they sum to H * W.

Shapes: `H W` image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ovstrans.errors import InputError


def encode(mask: np.ndarray) -> dict[str, list[int]]:
    """The run lengths of a mask, bool [H, W]."""
    pixels = mask.T.reshape(-1)
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    if pixels.size and pixels[0]:
        counts.insert(0, 0)
    return {"size": list(mask.shape), "counts": counts}


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """The mask, bool [H, W], of run lengths; InputError where they are none, compressed, or do not fill it."""
    try:
        height, width = (int(side) for side in rle["size"])
        counts = np.array([] if isinstance(rle["counts"], (str, bytes)) else rle["counts"], dtype=np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not run lengths of a mask ({type(error).__name__}: {error})") from error
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() != height * width:
        raise InputError(f"run lengths of {height}x{width} must be a list of numbers that sum to {height * width}")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def box(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] of the pixels in a mask, bool [H, W]; zeros where there is none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
