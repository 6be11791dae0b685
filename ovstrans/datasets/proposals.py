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

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans.datasets.images import read_colors, read_label
from ovstrans.datasets.run_lengths import decode_mask
from ovstrans.errors import InputError, MissingFileError
from ovstrans.files import existing_file, read_json

SUFFIXES = (".png", ".npz", ".json")
"""Suffixes of files of masks, in the order in which they are looked for."""

_LARGEST_MASKS = 256 << 20
"""Longest JSON of the masks of an image, in bytes."""
_MOST_MASKS, _MOST_VALUES = 10_000, 1 << 30
"""Most masks of an image, and most values of all its masks; a file of a few bytes may ask for more than fit memory."""


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
        read = {".png": _read_ids, ".npz": _read_arrays, ".json": _read_run_lengths}[path.suffix]
    except KeyError:
        raise InputError(f"{path}: not a file of masks; {', '.join(SUFFIXES)} are read") from None
    masks = read(existing_file(path), size)
    if not len(masks):
        return torch.zeros(0, *size, dtype=torch.bool)
    if masks.shape[1:] != size:
        raise _other_size(path, masks.shape[1:], size)
    return torch.from_numpy(masks[masks.any(axis=(1, 2))])


def split_ids(ids: np.ndarray) -> np.ndarray:
    """Split a map of segment ids [H, W] into masks, bool [N, H, W], by ascending id; 0 is no segment."""
    values = np.unique(ids)
    return np.asarray(ids[None] == values[values != 0][:, None, None])


def _other_size(path: Path, found: Sequence[int], size: Sequence[int]) -> InputError:
    return InputError(
        f"{path}: its masks are {found[1]}x{found[0]}, the image is {size[1]}x{size[0]}; the sizes must be equal"
    )


def _require_few(path: Path, count: int, size: Sequence[int]) -> None:
    """Raise InputError for more masks than memory holds, before they are made."""
    if count > _MOST_MASKS or count * math.prod(size) > _MOST_VALUES:
        most = min(_MOST_MASKS, _MOST_VALUES // max(1, math.prod(size)))
        raise InputError(f"{path}: {count:,} masks; at most {most:,} of {size[1]}x{size[0]} are read for an image")


def _read_ids(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        ids = np.asarray(read_label(path))
    except MissingFileError:
        raise
    except InputError:
        ids = read_colors(path).astype(np.int64) @ np.array([1, 256, 65536])
    if ids.shape != size:
        raise _other_size(path, ids.shape, size)
    _require_few(path, int(np.count_nonzero(np.unique(ids))), size)
    return split_ids(ids)


def _read_arrays(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        shape = _array_shape(path)
        if len(shape) != 3:
            raise InputError(
                f"{path}: its array `masks` has {len(shape)} dimensions; 3 are needed: masks, height, width"
            )
        if shape[0] and shape[1:] != size:
            raise _other_size(path, shape[1:], size)
        _require_few(path, shape[0], size)
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays["masks"] != 0)
    except InputError:
        raise
    except Exception as error:  # of zipfile, of zlib, or of numpy's parser
        raise InputError(f"{path}: no array `masks` can be read from it ({type(error).__name__}: {error})") from error


def _array_shape(path: Path) -> tuple[int, ...]:
    """Return the shape of the array `masks` in a file of numpy, of which only the header is read."""
    with zipfile.ZipFile(path) as archive, archive.open("masks.npy") as header:
        version = np.lib.format.read_magic(header)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(header)
    if dtype.kind not in "biuf":
        raise ValueError(f"its type is {dtype}, numbers are needed")
    return tuple(shape)


def _read_run_lengths(path: Path, size: tuple[int, int]) -> np.ndarray:
    entries = read_json(path, limit=_LARGEST_MASKS)
    if isinstance(entries, Mapping):
        entries = entries.get("annotations", entries.get("masks"))
    if not isinstance(entries, list):
        raise InputError(f"{path}: a list of run lengths is needed, or an object with one as `annotations`")
    _require_few(path, len(entries), size)
    masks = [_decode(entry, path, f"{path}: entry {number}", size) for number, entry in enumerate(entries)]
    return np.stack(masks) if masks else np.zeros((0, 0, 0), dtype=bool)


def _decode(entry: Any, path: Path, where: str, size: tuple[int, int]) -> np.ndarray:
    if isinstance(entry, Mapping) and "segmentation" in entry:
        entry = entry["segmentation"]
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: not run lengths (an object with `size` and `counts`), but a {type(entry).__name__}")
    sides = entry.get("size")
    whole = isinstance(sides, list) and len(sides) == 2 and all(type(side) is int for side in sides)
    if isinstance(sides, list) and whole and tuple(sides) != size:
        raise _other_size(path, sides, size)
    try:
        return decode_mask(entry)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
