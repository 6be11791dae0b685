"""Masks of proposals from files: those of Segment Anything, or of any other program.

A folder holds one file for each image, named like the image but for its suffix, in the same sub-folders or on top:

NAME.png    a picture of the image's size whose values are segment ids, 0 for no segment: 8 or 16 bits gray, palette,
            or colours with id = R + 256 G + 65536 B, as in COCO's panoptic format. Masks that do not overlap.
NAME.npz    an array `masks` [N, H, W], in which anything but 0 is inside. Masks may overlap.
NAME.json   COCO's run lengths (see `datasets.run_lengths`): a list of them, or of objects with a `segmentation`, as
            Segment Anything writes; or an object with such a list as `annotations` or `masks`. Masks may overlap.

Shapes: `N` masks, `H W` image.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans.datasets.images import read_colors, read_label
from ovstrans.datasets.run_lengths import decode_mask
from ovstrans.errors import InputError, MissingFileError

SUFFIXES = (".png", ".npz", ".json")
"""Suffixes of files of masks, in the order in which they are looked for."""


def find_masks(folder: Path | str, name: str) -> Path:
    """Return the file with the masks of an image.

    Args:
        folder: The folder of all of them.
        name: Name of the image, with or without suffix and sub-folder.

    Raises:
        MissingFileError: There is no such folder, or no file for this image.
    """
    folder, image = Path(folder), Path(name)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder of proposals")
    stems = {image.name, image.stem} if image.suffix else {image.name}
    below = image.parent.parts
    parents = [folder.joinpath(*below[first:]) for first in range(len(below)) if below[first] != image.anchor]
    parents.append(folder)
    for parent in parents:
        for stem in sorted(stems, key=len):
            for suffix in SUFFIXES:
                path = parent / f"{stem}{suffix}"
                if path.is_file():
                    return path
    raise MissingFileError(
        f"{folder}: no masks for the image {name}; {image.stem or image.name}{', '.join(SUFFIXES[:-1])} or "
        f"{SUFFIXES[-1]} is needed"
    )


def read_masks(path: Path | str, size: tuple[int, int]) -> Tensor:
    """Read the masks of an image.

    Args:
        path: A file as described above.
        size: Height and width of the image.

    Returns:
        bool [N, H, W], without empty masks.

    Raises:
        InputError: The file cannot be read, holds something else, or masks of another size.
    """
    path = Path(path)
    try:
        masks = {".png": _read_ids, ".npz": _read_arrays, ".json": _read_run_lengths}[path.suffix](path)
    except KeyError:
        raise InputError(f"{path}: not a file of masks; {', '.join(SUFFIXES)} are read") from None
    if not len(masks):
        return torch.zeros(0, *size, dtype=torch.bool)
    if masks.shape[1:] != size:
        raise InputError(
            f"{path}: its masks are {masks.shape[2]}x{masks.shape[1]}, the image is {size[1]}x{size[0]}; the sizes "
            "must be equal"
        )
    return torch.from_numpy(masks[masks.any(axis=(1, 2))])


def split_ids(ids: np.ndarray) -> np.ndarray:
    """Split a map of segment ids [H, W] into masks, bool [N, H, W], by ascending id; 0 is no segment."""
    values = np.unique(ids)
    return np.asarray(ids[None] == values[values != 0][:, None, None])


def _read_ids(path: Path) -> np.ndarray:
    try:
        return split_ids(read_label(path))
    except MissingFileError:
        raise
    except InputError:
        return split_ids(read_colors(path).astype(np.int64) @ np.array([1, 256, 65536]))


def _read_arrays(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            masks = arrays["masks"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no array `masks` can be read from it ({type(error).__name__}: {error})") from error
    if masks.ndim != 3:
        raise InputError(f"{path}: its array `masks` has {masks.ndim} dimensions; 3 are needed: masks, height, width")
    return np.asarray(masks != 0)


def _read_run_lengths(path: Path) -> np.ndarray:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if isinstance(entries, Mapping):
        entries = entries.get("annotations", entries.get("masks"))
    if not isinstance(entries, list):
        raise InputError(f"{path}: a list of run lengths is needed, or an object with one as `annotations`")
    masks = [_decode(entry, f"{path}: entry {number}") for number, entry in enumerate(entries)]
    if len({mask.shape for mask in masks}) > 1:
        raise InputError(f"{path}: its masks differ in size; those of one image are needed")
    return np.stack(masks) if masks else np.zeros((0, 0, 0), dtype=bool)


def _decode(entry: Any, where: str) -> np.ndarray:
    if isinstance(entry, Mapping) and "segmentation" in entry:
        entry = entry["segmentation"]
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: not run lengths (an object with `size` and `counts`), but a {type(entry).__name__}")
    try:
        return decode_mask(entry)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
