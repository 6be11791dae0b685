"""Reading image files: photographs as RGB, label maps as the numbers they hold.

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

from ovstrans.errors import InputError, MismatchError
from ovstrans.files import existing_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""File suffixes of images, unless a user names others; compared without case."""

_INDEX_MODES = ("P", "L", "1")
_COLOR_MODES = ("RGB", "RGBA", "RGBX")
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: Path | str, *, upright: bool = True) -> Tensor:
    """Read an image as RGB. Grayscale, palette, CMYK and 16-bit images are converted; transparency is dropped.

    Args:
        path: The file.
        upright: If True, rotate the image by its EXIF orientation. If False, keep the pixels as they are stored.

    Returns:
        uint8 [3, H, W].

    Raises:
        InputError: The file is missing, or not a complete image.
    """
    with _opened(path) as picture:
        return convert_picture(picture, upright=upright)


def convert_picture(picture: Image.Image, *, upright: bool = True) -> Tensor:
    """Convert a PIL image of any mode to RGB, uint8 [3, H, W]; `upright` as for `read_image`."""
    rotated = ImageOps.exif_transpose(picture) if upright else picture
    if rotated.mode in _WIDE_MODES:  # convert() would clip 16 bits to 255 instead of scaling them
        scaled = (np.asarray(rotated, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)
        rotated = Image.fromarray(scaled)
    pixels = np.array(rotated.convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def read_label(path: Path | str) -> np.ndarray:
    """Read the raw values of a label map: the indices of a palette image, all 16 bits of a 16-bit image.

    Returns:
        uint8 or int64 [H, W].

    Raises:
        InputError: The file is missing or broken, or holds colours instead of one number per pixel.
    """
    with _opened(path) as picture:
        if picture.mode not in _INDEX_MODES + _WIDE_MODES:
            raise InputError(
                f"{path}: a label map must hold one number per pixel (gray or palette), not {picture.mode}; "
                "convert its colours to class indices first"
            )
        values = np.array(picture)
    return values.astype(np.uint8 if values.dtype in (np.uint8, np.bool_) else np.int64)


def read_colors(path: Path | str) -> np.ndarray:
    """Read an image whose colours encode numbers; nothing is converted, transparency is dropped.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: The file is missing or broken, or holds one number per pixel.
    """
    with _opened(path) as picture:
        if picture.mode not in _COLOR_MODES:
            raise InputError(
                f"{path}: holds one number per pixel ({picture.mode}), but three (RGB) are needed; "
                "copy it again, without conversion"
            )
        return np.array(picture)[..., :3]


def check_equal_size(label: np.ndarray, path: Path, image: Tensor, image_path: Path) -> None:
    """Raise MismatchError if a label map [H, W], read from `path`, and its image [3, H, W] differ in size."""
    if label.shape != tuple(image.shape[1:]):
        (height, width), (rows, columns) = image.shape[1:], label.shape
        raise MismatchError(
            f"{path}: the label map is {columns}x{rows}, its image {image_path} is {width}x{height}; "
            "the sizes must be equal"
        )


def find_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """List the image files below a folder, at any depth, sorted by path.

    Hidden files and folders are left out. Dangling symlinks are included, so that the caller can report them.

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
    for parent, files, _ in walk_folders(folder):
        found += [Path(parent, name) for name in files if not name.startswith(".") and name.lower().endswith(endings)]
    return sorted(found)


def walk_folders(folder: Path | str, skip: str = ".") -> Iterator[tuple[str, list[str], set[str]]]:
    """Walk a folder and all folders below it, in order of their paths. Symlinks to folders are not followed.

    Args:
        folder: Where to begin. If it does not exist, nothing is yielded.
        skip: Folders whose name begins with this are skipped.

    Yields:
        The path of a folder, the sorted names of its files, and which of these are dangling symlinks.

    Raises:
        InputError: A folder may not be read.
    """
    folders: list[str] = []
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
                elif entry.is_dir() and not entry.name.startswith(skip):
                    folders.append(entry.path)
    except PermissionError as error:
        raise InputError(
            f"{error.filename}: no permission to read this folder; grant it, or move the folder elsewhere"
        ) from error
    except (FileNotFoundError, NotADirectoryError):
        return
    yield os.fspath(folder), sorted(files), dangling
    for each in sorted(folders):
        yield from walk_folders(each, skip)


@contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    """Open and completely decode an image; every error of pillow becomes an InputError."""
    path = existing_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF and the like
            with Image.open(path) as picture:
                picture.load()
                yield picture
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image; remove it or copy it again") from error
    except InputError:  # a ValueError, too
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: a broken image ({error}); remove it or copy it again") from error
