"""The table that `ovstrans predict` ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ovstrans.cli import common

_SHOWN = 20
"""Classes at most."""


def show(summary: dict[str, Any]) -> None:
    """The classes that were found, the largest first, and where the files are."""
    from ovstrans import console

    images = summary["images"]
    pixels = sum(height * width for height, width in (image["size"] for image in images))
    total: dict[int, list[float]] = {}
    for image in images:
        for found in image["classes"]:
            entry = total.setdefault(found["index"], [0, 0.0])
            entry[0] += 1
            entry[1] += found["share"] * image["size"][0] * image["size"][1]
    counts = _counted(images)
    for name in (name for count in counts.values() for name in count):
        total.setdefault(summary["classes"].index(name), [0, 0.0])
    order = sorted(total, key=lambda index: (-total[index][1], index))
    rows = [
        [
            summary["classes"][index],
            index,
            int(total[index][0]),
            f"{100 * total[index][1] / pixels:.1f}",
            *(count[summary["classes"][index]] for count in counts.values()),
        ]
        for index in order[:_SHOWN]
    ]
    more = f"; {len(order) - _SHOWN} classes more" if len(order) > _SHOWN else ""
    caption = f"{common.counted(len(images), 'image')} in {summary['seconds']:.1f} s, written to {summary['out']}{more}"
    console.table("predict", ["class", "index", "images", "pixels %", *counts], rows, caption=caption)


def _counted(images: Sequence[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Segments and sure instances by class name, summed over images, where they were asked for."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("segments", "instances") if kind in images[0]}
    for image in images:
        for kind, count in counts.items():
            count.update(image[kind])
    return counts
