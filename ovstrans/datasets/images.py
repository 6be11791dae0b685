"""Finding image files in folders, and reading them: photographs as RGB, label maps as the numbers they hold.

Shapes: `H W` image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovstrans.datasets.pictures import (
    Picture,
    explain_turn,
    find_white,
    is_rotated,
    is_signed,
    open_picture,
    reported,
    rotate_upright,
)
from ovstrans.errors import InputError, MismatchError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""File suffixes of images, unless a user names others; compared without case."""

logger = logging.getLogger(__name__)

_GRAY_MODES = ("P", "L", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of one number per pixel."""
_ALPHA_MODES = ("LA", "PA")
"""The same with transparency."""
_COLOR_MODES = ("RGB", "RGBA", "RGBX")
_MODE_NAMES = {"F": "floats", **dict.fromkeys(_COLOR_MODES, "colours (RGB)")}
_STRIP_PIXELS = 1 << 22
"""Pixels that are converted at a time."""
_DARK = 1 / 16
"""Share of white that no pixel of a 16-bit image reaches if the image probably uses a part of the range only."""
_dark_folders: set[str] = set()


def read_image(path: Path | str, *, upright: bool = True) -> Tensor:
    """Read an image as RGB.

    Gray, palette and CMYK images are converted, transparency is dropped, and the first of several images in a file is
    taken. Images of 12 and 16 bits are scaled by the range of the type, floats from 0 to 1 by 255.

    Args:
        path: The file.
        upright: If True, rotate the image by its EXIF orientation. If False, keep the pixels as they are stored.

    Returns:
        uint8 [3, H, W].

    Raises:
        InputError: The file is missing, not a complete image, too large, or holds numbers whose range is unknown:
            floats beyond 0 to 1, or whole numbers of 32 bits or with a sign.
    """
    with open_picture(path) as picture:
        image = convert_picture(picture.image, upright=upright, where=str(path))
        if picture.narrowed and int(image.max()) < _DARK * 256:
            _warn_of_darkness(str(path), "the upper halves of its 16-bit channels are nearly empty")
        return image


def convert_picture(picture: Image.Image, *, upright: bool = True, where: str = "`image`") -> Tensor:
    """Convert a PIL image of any mode to RGB.

    Args:
        picture: The image.
        upright: As for `read_image`.
        where: What error messages call the image.

    Returns:
        uint8 [3, H, W].

    Raises:
        InputError: The image is broken, or holds numbers whose range is unknown.
    """
    with reported(where):
        rotated = rotate_upright(picture) if upright and is_rotated(picture) else picture
        if picture.mode == "F":
            rotated = Image.fromarray(_scale_floats(rotated, where))
        elif picture.mode.startswith("I") or is_signed(picture):
            rotated = Image.fromarray(_scale_wide(rotated, picture, where))
        return torch.from_numpy(_to_channels(rotated))


def _to_channels(picture: Image.Image) -> np.ndarray:
    """Return an image as RGB, uint8 [3, H, W].

    Rows are converted a strip at a time: pillow's copies of a whole image would take four times the memory of the
    result.
    """
    width, height = picture.size
    channels = np.empty((3, height, width), np.uint8)
    rows = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = picture if rows >= height else picture.crop((0, top, width, bottom))
        channels[:, top:bottom] = np.asarray(strip.convert("RGB")).transpose(2, 0, 1)
    return channels


def _scale_floats(picture: Image.Image, where: str) -> np.ndarray:
    """Return floats from 0 to 1 as uint8 [H, W]."""
    values = np.asarray(picture, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:  # nor if one of them is NaN
        raise InputError(
            f"{where}: an image of floats from {low:g} to {high:g}; scale them to 0 to 1, or save it with 8 bits"
        )
    scaled: np.ndarray = (values * 255).round().astype(np.uint8)
    return scaled


def _scale_wide(picture: Image.Image, source: Image.Image, where: str) -> np.ndarray:
    """Return whole numbers of more than 8 bits as uint8 [H, W], scaled by the range of the type.

    Args:
        picture: The image.
        source: The image as pillow opened it, which knows its file.
        where: What messages call it.
    """
    values = np.asarray(picture).astype(np.int64)
    white = find_white(source)
    if white is None:
        raise InputError(
            f"{where}: an image of whole numbers of 32 bits or with a sign, from {values.min()} to {values.max()}, "
            "whose white is unknown; save it with 8 or 16 bits"
        )
    if 0 < values.max() < white * _DARK:
        _warn_of_darkness(where, f"its largest value is {values.max()} of {white}")
    return (values * 256 // (white + 1)).clip(0, 255).astype(np.uint8)


def _warn_of_darkness(where: str, reason: str) -> None:
    """Log that an image reads as nearly black; once for a folder, as its other images are likely to be alike."""
    folder = os.path.dirname(where)  # noqa: PTH120  # "" of an image in memory
    if folder not in _dark_folders:
        _dark_folders.add(folder)
        logger.warning(
            "%s: reads as nearly black, since %s; scale this folder to the full range unless it is dark",
            where,
            reason,
        )


def read_label(path: Path | str) -> np.ndarray:
    """Read the raw values of a label map.

    They are palette indices, gray values of any number of bits, or the channels of a colour image if all are equal.

    Returns:
        uint8 or int64 [H, W].

    Raises:
        InputError: The file is missing or broken, or holds colours instead of one number per pixel.
    """
    with open_picture(path) as picture:
        mode = picture.image.mode
        if mode in _GRAY_MODES:
            values = _raw_values(picture)
        elif mode in (*_ALPHA_MODES, *_COLOR_MODES):
            channels = _raw_values(picture)
            values, count = channels[..., 0], 1 if mode in _ALPHA_MODES else 3
            if (channels[..., :count] != values[..., None]).any():
                raise _not_numbers(path, mode)
            if picture.narrowed:
                raise InputError(
                    f"{path}: a label map of 16 bits in colour; save it as gray, with one number per pixel"
                )
        else:
            raise _not_numbers(path, mode)
    return values.astype(np.uint8 if values.dtype in (np.uint8, np.bool_) else np.int64)


def _not_numbers(path: Path | str, mode: str) -> InputError:
    found = _MODE_NAMES.get(mode, mode)
    remedy = "save it with whole numbers" if mode == "F" else "convert its colours to class indices first"
    return InputError(f"{path}: a label map must hold one number per pixel (gray or palette), not {found}; {remedy}")


def _raw_values(picture: Picture) -> np.ndarray:
    """Return the values that a file holds, before pillow stretched them: [H, W] or [H, W, channels]."""
    values = np.array(picture.image)
    if values.dtype == np.uint8 and is_signed(picture.image):
        return values.view(np.int8)
    if picture.stretched_from is None:
        return values
    most = 65535 if picture.image.mode == "I" else 255
    raw: np.ndarray = np.rint(values * (picture.stretched_from / most)).astype(values.dtype)
    return raw


def read_colors(path: Path | str) -> np.ndarray:
    """Read an image whose colours encode numbers; nothing is converted, transparency is dropped.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: The file is missing or broken, holds one number per pixel, or channels of 16 bits.
    """
    with open_picture(path) as picture:
        mode = picture.image.mode
        if mode not in _COLOR_MODES or picture.narrowed:
            found = "numbers of 16 bits" if picture.narrowed else f"one number per pixel ({mode})"
            needed = "numbers of 8 bits" if picture.narrowed else "three (RGB)"
            raise InputError(f"{path}: holds {found}, but {needed} are needed; copy it again, without conversion")
        return _raw_values(picture)[..., :3]


def check_equal_size(label: np.ndarray, path: Path, image: Tensor, image_path: Path) -> None:
    """Raise MismatchError if a label map [H, W], read from `path`, and its image [3, H, W] differ in size."""
    if label.shape != tuple(image.shape[1:]):
        (height, width), (rows, columns) = image.shape[1:], label.shape
        turn = explain_turn(image_path, path, (width, height), (columns, rows))
        raise MismatchError(
            f"{path}: the label map is {columns}x{rows}, its image {image_path} is {width}x{height}; "
            f"{turn or 'the sizes must be equal'}"
        )


def find_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """List the image files below a folder, at any depth, sorted by path.

    Symlinks count as what they point to. Hidden files and folders are left out. Dangling symlinks are included if their
    name ends like an image's or has no suffix, as that of a folder, so that the caller can report them.

    Args:
        folder: The folder.
        suffixes: How names of image files end, compared without case.

    Raises:
        InputError: The folder is missing, or a folder below it may not be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: not a folder")
    endings = tuple(suffix.lower() for suffix in suffixes)
    found: list[Path] = []
    for parent, files, dangling in walk_folders(folder):
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and (name.lower().endswith(endings) or is_lost_folder(name, dangling))
        ]
    return sorted(found)


def is_lost_folder(name: str, dangling: set[str]) -> bool:
    """Return whether a name in a folder is a dangling symlink that may have pointed to a folder of images."""
    return name in dangling and "." not in name


def walk_folders(folder: Path | str, skip: str = ".") -> Iterator[tuple[str, list[str], set[str]]]:
    """Walk a folder and all folders below it, in order of their paths.

    Symlinks to files and folders are followed, however many folders a file can be reached by; a folder that a symlink
    below it points to is not entered again.

    Args:
        folder: Where to begin. If it does not exist, nothing is yielded.
        skip: Folders whose name begins with this are skipped.

    Yields:
        The path of a folder, the sorted names of its files, and which of these are dangling symlinks.

    Raises:
        InputError: A folder may not be read.
    """
    yield from _walk(os.fspath(folder), skip, ())


def _walk(folder: str, skip: str, parents: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, list[str], set[str]]]:
    """Walk a folder; `parents` are device and inode of the folders that it is in."""
    folders: list[str] = []
    files: list[str] = []
    dangling: set[str] = set()
    try:
        status = Path(folder).stat()
        here = (status.st_dev, status.st_ino)
        if here in parents:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink() and not Path(entry.path).exists():  # is_dir() fails if it points to itself
                    dangling.add(entry.name)
                    files.append(entry.name)
                elif entry.is_dir():
                    if not entry.name.startswith(skip):
                        folders.append(entry.path)
                elif entry.is_file():
                    files.append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        place = error.filename or folder
        if isinstance(error, PermissionError):
            raise InputError(
                f"{place}: no permission to read this folder; grant it, or move the folder elsewhere"
            ) from error
        raise InputError(f"{place}: cannot be read ({error.strerror}); remove it, or move it elsewhere") from error
    yield folder, sorted(files), dangling
    for each in sorted(folders):
        yield from _walk(each, skip, (*parents, here))
