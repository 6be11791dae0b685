"""The published datasets by name, and where they are on disk."""

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
from ovstrans.datasets.published.places import describe_neighbours, list_folders, shorten
from ovstrans.datasets.published.roads import ROADS
from ovstrans.datasets.published.videos import VIDEOS
from ovstrans.errors import InputError, did_you_mean
from ovstrans.files import expand_home

PUBLISHED: Mapping[str, DatasetInfo] = {info.name: info for info in (*COCO, *ADE, *ROADS, *PASCAL, *VIDEOS)}
"""Every published dataset, by name."""

ROOT_VARIABLES = ("OVSTRANS_DATASETS", "DETECTRON2_DATASETS")
"""Environment variables that name folders of datasets; the first that is set and not empty is used."""
DEFAULT_ROOT = Path("datasets")
"""Folder of datasets if no other is named, as in detectron2."""

_ALIAS_SPLITS = {"train": "train", "val": "val", "test": "val"}
"""Text in place of `{}`, and our name of the split it means: some projects call COCO's val2017 "test"."""

_ALIAS_TEMPLATES = {
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
    template.format(word): (name, split)
    for name, templates in _ALIAS_TEMPLATES.items()
    for template in templates
    for word, split in _ALIAS_SPLITS.items()
}
"""Maps names that detectron2, Mask2Former, FC-CLIP and GKC register to our name of the dataset and the split."""

_NEARLY_ALL = 0.99
"""Share of the images at which two layouts count as equally complete. PASCAL-Context's lists differ by 1 in 5,105."""


def lookup_published(spec: str) -> tuple[DatasetInfo, str] | None:
    """Return the published dataset that `NAME[:SPLIT]` names, and its split.

    Args:
        spec: Our name of the dataset, or one of `ALIASES`, perhaps with a split.

    Returns:
        The dataset and the split, "" if the spec names none. None if there is no such dataset.
    """
    name, _, rest = spec.partition(":")
    own_name, split = ALIASES.get(name, (name, ""))
    return (PUBLISHED[own_name], rest or split) if own_name in PUBLISHED else None


def require_published(spec: str) -> tuple[DatasetInfo, str]:
    """Return the same as `lookup_published`; InputError if there is no such dataset."""
    entry = lookup_published(spec)
    if entry is None:
        name = spec.partition(":")[0]
        hint = did_you_mean(name, PUBLISHED)
        raise InputError(f"{name!r}: no such published dataset; {hint}known are {', '.join(PUBLISHED)}")
    return entry


def resolve_roots(data_root: Path | str | None = None) -> list[Path]:
    """Return the folders in which to look for datasets, in order.

    Args:
        data_root: A folder, or several separated by the system's path separator. If None, the first of
            `ROOT_VARIABLES` that is set is used in the same way, else `DEFAULT_ROOT`.
    """
    texts = [str(data_root)] if data_root is not None else [os.environ.get(name, "") for name in ROOT_VARIABLES]
    for text in texts:
        folders = [expand_home(part) for part in text.split(os.pathsep) if part.strip()]
        if folders:
            return folders
    return [DEFAULT_ROOT]


def format_roots(roots: Sequence[Path]) -> str:
    """Format roots for a message, marking those that do not exist."""
    return ", ".join(f"{root}" if root.is_dir() else f"{root} (no such folder)" for root in roots)


def locate_dataset(
    info: DatasetInfo, split: str, roots: Sequence[Path], *, labels: bool = True
) -> DatasetLocation | None:
    """Find a split of a dataset on disk.

    The first layout without missing files is taken, root by root. If all have missing files, the one with the fewest
    is taken. A prepared layout whose images are copies gives way to the original if that has clearly more images: then
    the preparation was not finished. Dataset folders of other names, in folders in between, and the root itself are
    looked at only if there is none where a layout has it.

    Args:
        info: The dataset.
        split: One of its splits.
        roots: From `resolve_roots`.
        labels: If False, only images are needed.

    Returns:
        The location, or None if the split is nowhere.

    Raises:
        InputError: The dataset has no such split, a listing is broken, or a folder may not be read.
    """
    if split not in info.splits:
        raise InputError(f"dataset {info.name}: no split {split!r}; it has {', '.join(info.splits)}")
    try:
        locations = _find_locations(info, split, roots, labels, other=False) or [
            location for location in _find_locations(info, split, roots, labels, other=True) if location.pairs
        ]
        for location in locations:
            if not location.missing:
                return next((other for other in locations if _is_unfinished(location, other)), location)
        return min(locations, key=lambda location: len(location.missing), default=None)
    except InputError:  # a missing file is an OSError, too
        raise
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); change its permissions, or give another `data_root`"
        ) from error


def _find_locations(
    info: DatasetInfo, split: str, roots: Sequence[Path], labels: bool, *, other: bool
) -> list[DatasetLocation]:
    """Return where everything that a layout requires exists; `other` as for `list_candidates`."""
    return [
        DatasetLocation(info, split, layout, folder, labels)
        for layout, folder in list_candidates(info, split, roots, other=other)
        if not list_absent(layout, folder, split, labels)
    ]


def locate_splits(info: DatasetInfo, roots: Sequence[Path]) -> list[str]:
    """Return the splits of a dataset that exist on disk, broken ones included; InputError if there is none."""
    splits = []
    for split in info.splits:
        try:
            exists = locate_dataset(info, split, roots) is not None
        except InputError:  # a broken listing: opening the split reports it
            exists = True
        if exists:
            splits.append(split)
    if not splits:
        raise not_found_error(info, info.splits[-1], roots)
    return splits


def _is_unfinished(location: DatasetLocation, original: DatasetLocation) -> bool:
    """Return whether a prepared layout with copied images lacks images that the original layout has or lists.

    A difference below 1 % does not count: it comes from different lists of the same images.
    """
    if location.layout.name != PREPARED or original.layout.name != ORIGINAL:
        return False
    if location.path(location.layout.images) == original.path(original.layout.images):
        return False
    return len(location.pairs) < _NEARLY_ALL * len(original.pairs)


def not_found_error(info: DatasetInfo, split: str, roots: Sequence[Path], *, labels: bool = True) -> InputError:
    """Return an error that says where a dataset was looked for, what is missing there, and which layouts are read."""
    nearly: list[tuple[float, str]] = []
    layouts: list[str] = []
    for other in (False, True):
        for layout, folder in list_candidates(info, split, roots, other=other):
            absent = list_absent(layout, folder, split, labels)
            share = len(absent) / len(layout.required_paths(split, labels))
            if share < 1 or (folder.is_dir() and folder not in roots):
                nearly.append((share, _describe_absent(folder, absent)))
            description = f"{layout.name}: {layout.describe(split, labels)}"
            layouts += [description] if description not in layouts else []
    nearest = min(nearly, key=lambda entry: entry[0])[1] if nearly else _describe_roots(info, split, roots)
    found = "; ".join(filter(None, (format_roots(roots), nearest)))
    return InputError(
        f"dataset {info.name}:{split}: not found in {found}; any of these would do: {'; '.join(layouts)} (name the "
        f"folder that holds them with `data_root` or {ROOT_VARIABLES[0]}; from {info.source})"
    )


def _describe_absent(folder: Path, absent: Sequence[tuple[str, ...]]) -> str:
    """Say what a dataset folder lacks and what is there, such as "coco lacks val2017; there is coco/val2014"."""
    if not absent:
        return f"{folder} has everything, but no image of this split"
    there = list(dict.fromkeys(filter(None, (describe_neighbours(folder, paths) for paths in absent))))
    lacks = f"{folder} lacks {' and '.join(' or '.join(paths) for paths in absent)}"
    return "; ".join([lacks, *there])


def _describe_roots(info: DatasetInfo, split: str, roots: Sequence[Path]) -> str:
    """Say which folders were looked for in the roots, and which are there; "" if there are none."""
    names = dict.fromkeys(name for layout in info.layouts if split in layout.split_names for name in layout.folders)
    there = [(root, list_folders(root)) for root in roots]
    return "; ".join(
        f"{root} holds no {' or '.join(names)}, but {shorten(folders)}" for root, folders in there if folders
    )
