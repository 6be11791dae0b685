"""The published datasets that are known by name, and finding them on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ovstrans.datasets.published.ade import ADE
from ovstrans.datasets.published.coco import COCO
from ovstrans.datasets.published.layouts import (
    ORIGINAL,
    PREPARED,
    DatasetInfo,
    DatasetLocation,
    list_absent,
    list_candidates,
)
from ovstrans.datasets.published.pascal import PASCAL
from ovstrans.datasets.published.roads import ROADS
from ovstrans.datasets.published.videos import VIDEOS
from ovstrans.errors import InputError

PUBLISHED: Mapping[str, DatasetInfo] = {
    published.name: published for published in (*COCO, *ADE, *ROADS, *PASCAL, *VIDEOS)
}
"""Every published dataset, by name."""

ROOT_VARIABLES = ("OVSTRANS_DATASETS", "DETECTRON2_DATASETS")
"""Environment variables that name folders of datasets, the first that is set and not empty counts."""
DEFAULT_ROOT = Path("datasets")
"""Looked in where nothing is named, below the working directory, as detectron2 does."""

_SPLITS = {"train": "train", "val": "val", "test": "val"}
"""What `{}` may be, and the split it means: some of these projects call COCO's val2017 "test"."""

_REGISTERED = {
    "coco-panoptic": (
        "openvocab_coco_2017_{}_panoptic",
        "openvocab_coco_2017_{}_panoptic_with_sem_seg",
        "coco_2017_{}_panoptic",
        "coco_2017_{}_panoptic_with_sem_seg",
        "coco_2017_{}_panoptic_caption",
    ),
    "coco-stuff": ("openvocab_coco_2017_{}_stuff_sem_seg", "coco_2017_{}_stuff_sem_seg"),
    "ade20k-150": (
        "openvocab_ade20k_panoptic_{}",
        "openvocab_ade20k_sem_seg_{}",
        "ade20k_panoptic_{}",
        "ade20k_sem_seg_{}",
    ),
    "ade20k-847": ("openvocab_ade20k_full_sem_seg_{}", "ade20k_full_sem_seg_{}"),
    "cityscapes": (
        "openvocab_cityscapes_fine_panoptic_{}",
        "cityscapes_fine_panoptic_{}",
        "cityscapes_fine_sem_seg_{}",
    ),
    "pas-20": ("openvocab_pascal20_sem_seg_{}",),
    "pas-21": ("openvocab_pascal21_sem_seg_{}",),
    "context-59": ("openvocab_pascal_ctx59_sem_seg_{}", "pc_{}_sem_seg"),
    "context-459": ("openvocab_pascal_ctx459_sem_seg_{}", "pc_full_{}_sem_seg"),
    "vspw": ("vspw_{}_sem_seg",),
    "vipseg": ("vipseg_{}_image",),
}

ALIASES = {
    name.format(word): (ours, split)
    for ours, names in _REGISTERED.items()
    for name in names
    for word, split in _SPLITS.items()
}
"""Our name and split for each registered name."""

_NEARLY_ALL = 0.99
"""PASCAL-Context's lists differ by an image of 5,105."""


def lookup_published(spec: str) -> tuple[DatasetInfo, str] | None:
    """The published dataset that `NAME[:SPLIT]` names, ours or a registered one, and its split or ""; else None."""
    name, _, rest = spec.partition(":")
    ours, split = ALIASES.get(name, (name, ""))
    return (PUBLISHED[ours], rest or split) if ours in PUBLISHED else None


def locate_dataset(
    published: DatasetInfo, split: str, roots: Sequence[Path], *, labels: bool = True
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
            for layout, top in list_candidates(published, split, roots)
            if not list_absent(layout, top, split, labels)
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


def not_found_error(published: DatasetInfo, split: str, roots: Sequence[Path], *, labels: bool = True) -> InputError:
    """The error that says where a dataset was looked for, what is missing there, and what would do."""
    partly: list[tuple[float, str]] = []
    ways: list[str] = []
    for layout, top in list_candidates(published, split, roots):
        needs = layout.needs(split, labels)
        lacking = list_absent(layout, top, split, labels)
        if len(lacking) < len(needs):
            share = len(lacking) / len(needs)
            partly.append((share, f"{top} lacks {' and '.join(str(path.relative_to(top)) for path in lacking)}"))
        way = f"{layout.name}: {layout.tops[0]}/ with " + ", ".join(" or ".join(paths) for paths in needs)
        ways += [way] if way not in ways else []
    nearest = f"; {min(partly)[1]}" if partly else ""
    return InputError(
        f"data {published.name}:{split}: not found in {format_roots(roots)}{nearest}; any of these would do: "
        f"{'; '.join(ways)} (name the folder that holds them with --data-root or {ROOT_VARIABLES[0]}; "
        f"from {published.source})"
    )


def resolve_roots(root: Path | str | None = None) -> list[Path]:
    """The folders to look for datasets in, the first wins.

    root: what the user names (`--data-root`); None takes OVSTRANS_DATASETS, else DETECTRON2_DATASETS, else
    `./datasets`. Each may be several folders with the path separator of the system between them.
    """
    named = [str(root)] if root is not None else [os.environ.get(variable, "") for variable in ROOT_VARIABLES]
    for text in named:
        folders = [Path(part).expanduser() for part in text.split(os.pathsep) if part.strip()]
        if folders:
            return folders
    return [DEFAULT_ROOT]


def format_roots(roots: Sequence[Path]) -> str:
    """The roots as a message names them, those that are not there marked."""
    return ", ".join(f"{root}" if root.is_dir() else f"{root} (no such folder)" for root in roots)
