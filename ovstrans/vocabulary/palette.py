"""Colours for classes: as far apart as the eye can tell, and the same for the same index everywhere."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=8)
def distinct_colors(count: int) -> np.ndarray:
    """RGB colours that the eye tells apart, uint8 [count, 3], read only.

    Each is the candidate farthest from all before it in OKLab, starting away from black, white and
    grey, which pictures use for what has no class. Colour i is the same for every `count`.
    """
    levels = np.arange(16, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    keep = (chroma > 0.05) & (chroma < 0.19) & (lab[:, 0] > 0.38) & (lab[:, 0] < 0.9)  # no neon, no near-grey
    grid, lab = grid[keep], lab[keep]
    anchors = _oklab(np.array([[0, 0, 0], [255, 255, 255], [128, 128, 128]], dtype=np.uint8))
    distance = np.linalg.norm(lab[:, None] - anchors[None], axis=-1).min(axis=1)
    picked = np.zeros((count, 3), dtype=np.uint8)
    for number in range(count):
        if number % len(grid) == 0 and number:
            distance = np.linalg.norm(lab[:, None] - anchors[None], axis=-1).min(axis=1)
        best = int(distance.argmax())
        picked[number] = grid[best]
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=-1))
        distance[best] = -1.0
    picked.setflags(write=False)
    return picked


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB uint8 [N, 3] to OKLab (B. Ottosson, 2020), float [N, 3]."""
    unit = rgb.astype(np.float64) / 255.0
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_lms.T) @ to_lab.T
