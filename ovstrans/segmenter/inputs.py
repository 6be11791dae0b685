"""Images to segment: reading whatever a user gives as an image, finding and naming the images of a folder job.

The predictions of an image file are named after it, without the suffix. For an image in a folder the name includes
the sub-folders in between, and the folder itself if several are given. If two images would get the same name, both
get a longer one: with the folders they are in, or with the suffix if they are in the same folder.

Shapes: `H W` image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovstrans.datasets.images import IMAGE_SUFFIXES, convert_picture, find_images, read_image
from ovstrans.errors import InputError, MissingFileError
from ovstrans.files import existing_file

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v")
"""Suffixes of videos, which a user may give in place of a folder of frames."""

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
"""A path, a PIL image, an array HxWx3 or HxW, or a tensor 3xHxW, HxWx3 or HxW; integers 0..255 or floats 0..1."""


MasksLike = np.ndarray | Tensor
"""Masks [N, H, W] of any type, in which anything but 0 is inside."""


def to_masks(masks: MasksLike, pixels: Tensor) -> Tensor:
    """Return masks as bool [N, H, W].

    Args:
        masks: The masks.
        pixels: The image [3, H, W] that they are of.

    Raises:
        InputError: They are something else, or of another size.
    """
    if not isinstance(masks, (np.ndarray, Tensor)):
        raise InputError(f"`masks`: {type(masks).__name__} are no masks; give a numpy array or tensor [N, H, W]")
    found = torch.as_tensor(masks).cpu() != 0
    if found.dim() != 3 or found.shape[1:] != pixels.shape[1:]:
        height, width = pixels.shape[1:]
        raise InputError(f"`masks`: of shape {tuple(found.shape)}; (N, {height}, {width}) is needed, as the image is")
    return found[found.flatten(1).any(1)]


def to_pixels(image: ImageLike) -> Tensor:
    """Return an image as uint8 [3, H, W] in RGB.

    Args:
        image: A file, which is turned upright by its EXIF orientation; a PIL image, likewise; a numpy array HxWx3
            (RGB) or HxW (gray); or a torch tensor 3xHxW, HxWx3 or HxW, on any device. Arrays and tensors are uint8, or
            floats from 0 to 1. A tensor 3xHx3 is taken as channels first.

    Raises:
        InputError: If it is something else, or the file is missing or broken.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return convert_picture(image)
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
            raise InputError(f"`image`: an array of shape {image.shape} has its channels first; give HxWx3")
        try:
            pixels = torch.from_numpy(np.array(image))
        except TypeError as error:
            raise InputError(f"`image`: an array of {image.dtype}; give uint8, or floats from 0 to 1") from error
        return _to_rgb(pixels, "an array", "HxWx3 or HxW")
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        if pixels.ndim == 3 and pixels.shape[0] == 3:
            pixels = pixels.permute(1, 2, 0)
        return _to_rgb(pixels, "a tensor", "3xHxW, HxWx3 or HxW")
    raise InputError(
        f"`image`: {type(image).__name__} is not an image; give a path, a PIL image, a numpy array or a torch tensor"
    )


def _to_rgb(pixels: Tensor, kind: str, shapes: str) -> Tensor:
    """Return pixels [H, W, 3] or [H, W], uint8 or floats, as uint8 [3, H, W]."""
    shape = tuple(pixels.shape)
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] == 3)) or 0 in shape:
        raise InputError(f"`image`: {kind} of shape {shape} is not an image; give {shapes}")
    if pixels.is_floating_point():
        low, high = (float(bound) for bound in pixels.aminmax())
        if not 0 <= low <= high <= 1:  # nor if one of them is NaN
            raise InputError(f"`image`: {kind} of floats from {low:g} to {high:g}; give floats from 0 to 1, or uint8")
        pixels = (pixels.float() * 255).round().to(torch.uint8)
    elif pixels.dtype != torch.uint8:
        dtype = str(pixels.dtype).removeprefix("torch.")
        raise InputError(f"`image`: {kind} of {dtype}; give uint8, or floats from 0 to 1")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None].expand(-1, -1, 3)
    return pixels.permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class ImageFile:
    """An image of a folder job.

    Attributes:
        path: The file, as the user named it.
        name: Name of its predictions, a relative path without suffix.
    """

    path: Path
    name: str


def find_image_files(paths: Sequence[Path], *, out: Path) -> list[ImageFile]:
    """Find the images in files and folders, at any depth, in the order given.

    An image that several of `paths` lead to is taken once. Links in a folder count as images of their own.

    Args:
        paths: Image files and folders of them.
        out: The folder of predictions. Images in it are left out.

    Raises:
        InputError: If a path is missing, a video, `out` itself, or a folder without images.
    """
    found: list[tuple[Path, int]] = []
    taken: set[str] = set()
    several = sum(path.is_dir() for path in paths) > 1
    for path in paths:
        images = {image: (os.path.realpath(image), depth) for image, depth in _list_images(path, out)}
        found += [
            (image, depth + (several and path.is_dir()))
            for image, (real_path, depth) in images.items()
            if real_path not in taken
        ]
        taken |= {real_path for real_path, _ in images.values()}
    # not resolve(): a link keeps the name it has here
    parts = [Path(os.path.abspath(image)).parts[1:] for image, _ in found]  # noqa: PTH100
    names = _make_names(parts, [depth for _, depth in found])
    return [ImageFile(image, name) for (image, _), name in zip(found, names, strict=True)]


def hint_at_quotes(path: Path) -> str:
    """Return what may be meant by a bare word without a suffix: a class name that lacks the quotes of the shell."""
    if len(path.parts) > 1 or path.suffix:
        return ""
    return f'; if it is the name of a class, quote all of them together, as `classes="road, {path}"`'


def _list_images(path: Path, out: Path) -> list[tuple[Path, int]]:
    """Return the images at a path, each with the number of parts of its path that make its name."""
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder{hint_at_quotes(path)}")
    if not path.is_dir():
        existing_file(path)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise InputError(
                f"{path}: a video; extract its frames (mkdir frames; ffmpeg -i {path.name} frames/%06d.png) and give "
                "the folder"
            )
        return [(path, 1)]
    written = Path(os.path.realpath(out))
    if written == Path(os.path.realpath(path)):
        raise InputError(f"`out={out}`: is the folder of the images; give another one")
    images = [image for image in find_images(path) if written not in Path(os.path.realpath(image)).parents]
    if not images:
        raise InputError(f"{path}: no image in this folder ({', '.join(IMAGE_SUFFIXES)})")
    return [(image, len(image.relative_to(path).parts)) for image in images]


def _make_names(paths: Sequence[Sequence[str]], depths: Sequence[int]) -> list[str]:
    """Return a different name for each path: its last `depths` parts, and more if that is not enough.

    Args:
        paths: The parts of each path.
        depths: How many parts make the name of each path.
    """
    taken, with_suffix = list(depths), [False] * len(paths)
    while True:
        names = []
        for parts, depth, suffixed in zip(paths, taken, with_suffix, strict=True):
            place = Path(*parts[-depth:])
            names.append(str(place if suffixed else place.with_suffix("")))
        groups: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            groups.setdefault(name, []).append(number)
        clashes = [group for group in groups.values() if len(group) > 1]
        if not clashes:
            return names
        for group in clashes:
            same_folder = len({tuple(paths[number][:-1]) for number in group}) == 1
            for number in group:
                with_suffix[number] |= same_folder
                taken[number] = min(taken[number] + (not same_folder), len(paths[number]))
