"""The published datasets that are known by name, and finding them on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ovstrans.datasets.published.ade import ADE
from ovstrans.datasets.published.aliases import ALIASES
from ovstrans.datasets.published.coco import COCO
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.published.layouts import (
    ORIGINAL,
    PREPARED,
    DatasetLocation,
    Layout,
    Pair,
    Published,
    absent,
    candidates,
)
from ovstrans.datasets.published.pascal import PASCAL
from ovstrans.datasets.published.roads import ROADS
from ovstrans.datasets.published.roots import VARIABLES, looked_in
from ovstrans.datasets.published.videos import VIDEOS
from ovstrans.errors import InputError

__all__ = [
    "PUBLISHED",
    "DatasetLocation",
    "Layout",
    "Pair",
    "Published",
    "PublishedDataset",
    "find_layout",
    "named",
    "not_found",
]

PUBLISHED: Mapping[str, Published] = {
    published.name: published for published in (*COCO, *ADE, *ROADS, *PASCAL, *VIDEOS)
}
"""Every published dataset, by name."""

_NEARLY_ALL = 0.99
"""PASCAL-Context's lists differ by an image of 5,105."""


def named(spec: str) -> tuple[Published, str] | None:
    """The published dataset that `NAME[:SPLIT]` names, ours or a registered one, and its split or ""; else None."""
    name, _, rest = spec.partition(":")
    ours, split = ALIASES.get(name, (name, ""))
    return (PUBLISHED[ours], rest or split) if ours in PUBLISHED else None


def find_layout(
    published: Published, split: str, roots: Sequence[Path], *, labels: bool = True
) -> DatasetLocation | None:
    """Where a split of a dataset is, or None.

    The first layout, root by root, that is there and lacks no file; where all of them lack some, the one that
    lacks fewest. A prepared layout whose images are copies gives way to the original that has clearly more of
    them: its preparation was not finished.
    labels: False needs images only.
    Raises InputError for a split that the dataset does not have, for broken listings, and for what may not be read.
    """
    if split not in published.splits:
        raise InputError(f"data {published.name}: no split {split!r}; it has {', '.join(published.splits)}")
    try:
        there = [
            DatasetLocation(published, split, layout, top, labels)
            for layout, top in candidates(published, split, roots)
            if not absent(layout, top, split, labels)
        ]
        for found in there:
            if not found.missing:
                return next((other for other in there if _cut_short(found, other)), found)
        return min(there, key=lambda found: len(found.missing), default=None)
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); give yourself the permission, or name another "
            "--data-root"
        ) from error


def _cut_short(found: DatasetLocation, original: DatasetLocation) -> bool:
    """Whether a prepared layout lacks images that the original has, or lists and lacks as well.

    A few more or less are other lists of one set.
    """
    if found.layout.name != PREPARED or original.layout.name != ORIGINAL:
        return False
    if found.path(found.layout.images) == original.path(original.layout.images):
        return False
    return len(found.pairs) < _NEARLY_ALL * len(original.pairs)


def not_found(published: Published, split: str, roots: Sequence[Path], *, labels: bool = True) -> InputError:
    """The error that says where a dataset was looked for, what is missing there, and what would do."""
    partly: list[tuple[float, str]] = []
    ways: list[str] = []
    for layout, top in candidates(published, split, roots):
        needs = layout.needs(split, labels)
        lacking = absent(layout, top, split, labels)
        if len(lacking) < len(needs):
            share = len(lacking) / len(needs)
            partly.append((share, f"{top} lacks {' and '.join(str(path.relative_to(top)) for path in lacking)}"))
        way = f"{layout.name}: {layout.tops[0]}/ with " + ", ".join(" or ".join(paths) for paths in needs)
        ways += [way] if way not in ways else []
    nearest = f"; {min(partly)[1]}" if partly else ""
    return InputError(
        f"data {published.name}:{split}: not found in {looked_in(roots)}{nearest}; any of these would do: "
        f"{'; '.join(ways)} (name the folder that holds them with --data-root or {VARIABLES[0]}; "
        f"from {published.source})"
    )
