"""Which images to predict on, and what their predictions are called.

A prediction has its image's name without the suffix; of an image in a folder the sub-folders between them too, and
the folder itself where several are given. Where two images would come to the same name, both take more of their
own: the folders they are in, or the suffix where they are in one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovstrans.datasets.images import IMAGE_SUFFIXES, find_images
from ovstrans.errors import InputError
from ovstrans.files import existing_file

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v")
"""What a user may take for a folder of frames."""


@dataclass(frozen=True)
class Picture:
    """path: the image, as the user named it.  name: of its prediction, a relative path without suffix."""

    path: Path
    name: str


def find_pictures(paths: Sequence[Path], *, out: Path) -> list[Picture]:
    """The images that `paths` name, files and folders (at any depth), each once, in the order given.

    out: the folder of predictions; what is in it is no input. Raises InputError for a path that is missing, a
    folder without images, and `out` itself.
    """
    found: dict[str, tuple[Path, int]] = {}
    several = sum(path.is_dir() for path in paths) > 1
    for path in paths:
        for image, depth in _images(path, out):
            found.setdefault(os.path.realpath(image), (image, depth + (several and path.is_dir())))
    # not resolve(): a link keeps the name it has here
    parts = [Path(os.path.abspath(image)).parts[1:] for image, _ in found.values()]  # noqa: PTH100
    names = _names(parts, [depth for _, depth in found.values()])
    return [Picture(image, name) for (image, _), name in zip(found.values(), names, strict=True)]


def _images(path: Path, out: Path) -> list[tuple[Path, int]]:
    """The images at a path, and how many parts of each one's path make its name."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_dir():
        existing_file(path)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise InputError(
                f"{path}: a video; give its frames: mkdir frames; ffmpeg -i {path.name} frames/%06d.png, then frames"
            )
        return [(path, 1)]
    written = Path(os.path.realpath(out))
    if written == Path(os.path.realpath(path)):
        raise InputError(f"--out {out}: is the folder of the images; give another one")
    images = [image for image in find_images(path) if written not in Path(os.path.realpath(image)).parents]
    if not images:
        raise InputError(f"{path}: no image in this folder ({', '.join(IMAGE_SUFFIXES)})")
    return [(image, len(image.relative_to(path).parts)) for image in images]


def _names(paths: Sequence[Sequence[str]], depths: Sequence[int]) -> list[str]:
    """Different names for different paths: the last `depths` parts of each, and more where that is not enough."""
    taken, whole = list(depths), [False] * len(paths)
    while True:
        names = []
        for parts, depth, suffixed in zip(paths, taken, whole, strict=True):
            place = Path(*parts[-depth:])
            names.append(str(place if suffixed else place.with_suffix("")))
        groups: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            groups.setdefault(name, []).append(number)
        doubled = [group for group in groups.values() if len(group) > 1]
        if not doubled:
            return names
        for group in doubled:
            beside = len({tuple(paths[number][:-1]) for number in group}) == 1
            for number in group:
                whole[number] |= beside
                taken[number] = min(taken[number] + (not beside), len(paths[number]))
