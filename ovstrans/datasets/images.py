"""Reading pictures: photographs as RGB, label maps as the numbers they hold.

Shapes: `H W` image.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ovstrans.errors import InputError
from ovstrans.files import existing_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""File suffixes taken for images where a user names none; compared without case."""

_INDEX_MODES = ("P", "L", "1")
_COLOR_MODES = ("RGB", "RGBA", "RGBX")
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: Path | str, *, upright: bool = True) -> Tensor:
    """An image as uint8 [3, H, W] in RGB, turned by its EXIF orientation if `upright`, else as it is stored.

    Grayscale, palette, CMYK and 16-bit images are converted; transparency is dropped. Raises
    InputError where the file is missing, or is no whole image.
    """
    with _opened(path) as picture:
        turned = ImageOps.exif_transpose(picture) if upright else picture
        if turned.mode in _WIDE_MODES:  # convert() would cut off at 255, not scale
            scaled = (np.asarray(turned, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)
            turned = Image.fromarray(scaled)
        pixels = np.array(turned.convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def read_label(path: Path | str) -> np.ndarray:
    """A label map's raw values [H, W], uint8 or int64.

    A palette image gives its indices and a 16-bit one its full values. Raises InputError where the
    file is missing or broken, or holds colours instead of one number a pixel.
    """
    with _opened(path) as picture:
        if picture.mode not in _INDEX_MODES + _WIDE_MODES:
            raise InputError(
                f"{path}: a label map must hold one number a pixel (gray or palette), not {picture.mode}; "
                "turn its colours into class numbers first"
            )
        values = np.array(picture)
    return values.astype(np.uint8 if values.dtype in (np.uint8, np.bool_) else np.int64)


def read_colors(path: Path | str) -> np.ndarray:
    """The colours of a picture whose colours are numbers, uint8 [H, W, 3]; transparency is dropped.

    Raises InputError where the file is missing or broken, or holds one number a pixel.
    """
    with _opened(path) as picture:
        if picture.mode not in _COLOR_MODES:
            raise InputError(
                f"{path}: holds one number a pixel ({picture.mode}), where three (RGB) are needed; "
                "copy it again, without conversion"
            )
        return np.array(picture)[..., :3]


def find_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """The image files under a folder, at any depth, sorted by path; hidden ones are left out, links to nothing are not.

    Raises InputError where the folder is missing, and for folders in it that may not be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: not a folder")
    endings = tuple(suffix.lower() for suffix in suffixes)
    found: list[Path] = []
    for parent, files, _ in walk_folders(folder):
        found += [Path(parent, name) for name in files if not name.startswith(".") and name.lower().endswith(endings)]
    return sorted(found)


def walk_folders(folder: Path | str, passed_by: str = ".") -> Iterator[tuple[str, list[str], set[str]]]:
    """A folder and those in it, at any depth: the path of each, its files, and which of them are links to nothing.

    passed_by: how the names begin of folders that are left out. Links to folders are not followed. What is not there
    is empty; raises InputError for a folder that may not be read.
    """
    below: list[str] = []
    files: list[str] = []
    dangling: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    target = Path(entry.path)
                    if not target.exists():
                        dangling.add(entry.name)
                    if entry.name in dangling or target.is_file():
                        files.append(entry.name)
                elif entry.is_file():
                    files.append(entry.name)
                elif entry.is_dir() and not entry.name.startswith(passed_by):
                    below.append(entry.path)
    except PermissionError as error:
        raise InputError(
            f"{error.filename}: no permission to read this folder; give it, or take the folder out"
        ) from error
    except (FileNotFoundError, NotADirectoryError):
        return
    yield os.fspath(folder), sorted(files), dangling
    for each in sorted(below):
        yield from walk_folders(each, passed_by)


@contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    """The open, wholly decoded picture; whatever pillow complains of becomes an InputError."""
    path = existing_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF and the like
            with Image.open(path) as picture:
                picture.load()
                yield picture
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image; remove it or copy it again") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: a broken image ({error}); remove it or copy it again") from error
