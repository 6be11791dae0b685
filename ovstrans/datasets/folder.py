"""`folder:PATH`: a user's own images and label maps, or any folder of images.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans.datasets.description import ALL_SPLIT, LABEL_VALUES, Description
from ovstrans.datasets.images import IMAGE_SUFFIXES, find_images, read_image, read_label
from ovstrans.datasets.sample import IGNORE, Sample, get_ignore_label
from ovstrans.errors import InputError, MismatchError
from ovstrans.files import existing_file, missing_file_message, refuse_missing
from ovstrans.vocabulary.vocabulary import Vocabulary


class FolderDataset:
    """A split of a described folder.

    Pairs are checked when it is opened (every image has its label map), contents when they are read.

    description: from `read_description`.  split: one that it has.
    labels: False leaves label maps alone and yields samples without.
    complete: False leaves it to reading to complain of files that are missing; `missing` names them all.
    Raises InputError for an unknown split, a missing folder, no image, an image without label map.
    """

    published_size: tuple[int, int] | None = None
    videos: Sequence[range] = ()

    def __init__(
        self, description: Description, split: str, *, labels: bool = True, allow_missing: bool = False
    ) -> None:
        self.description = description
        self.vocabulary = description.vocabulary
        self.name = description.vocabulary.name
        self.split = split
        self.ignore = get_ignore_label(len(self.vocabulary))
        self._images, self.missing = _images_of(description, split)
        self._labels = _labels_of(description, split, self._images) if labels else None
        self.missing += _unlabelled(self._images, self._labels or ())
        if not allow_missing or not self._images:
            refuse_missing(self.missing)
        self._table = _label_table(description, self.ignore)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """Read one pair; InputError for a broken file or label value, MismatchError for unequal sizes."""
        name, path = self._images[index]
        image = read_image(path)
        label = None if self._labels is None else self._read_label(self._labels[index], path, image)
        return Sample(image=image, label=label, name=name)

    def files(self, index: int) -> list[tuple[Path, Callable[[Path], Any]]]:
        """The files of an image, each with what reads it without the others."""
        image = (self._images[index][1], read_image)
        return [image] if self._labels is None else [image, (self._labels[index], self._read_label)]

    def _read_label(self, path: Path, image_path: Path | None = None, image: Tensor | None = None) -> Tensor:
        raw = read_label(path)
        if image is not None and raw.shape != tuple(image.shape[1:]):
            (height, width), (rows, columns) = image.shape[1:], raw.shape
            raise MismatchError(
                f"{path}: the label map is {columns}x{rows}, its image {image_path} is {width}x{height}; "
                "they must be the same"
            )
        classes = self._table[raw.clip(-1, LABEL_VALUES)]  # the last entry (also -1) stands for every other value
        if (classes < 0).any():
            value, toml, count = int(raw[classes < 0][0]), self.description, len(self.vocabulary)
            raise InputError(
                f"{path}: label value {value} is none of the {count} classes "
                f"({toml.offset} to {toml.offset + count - 1}); "
                f"add it to ignore in {toml.path}, or correct classes or offset there"
            )
        return torch.from_numpy(classes.astype(np.uint8 if self.ignore == IGNORE else np.int64))


class ImageFolder:
    """Any folder of images, at any depth, in the order of their paths: samples without labels."""

    ignore = IGNORE
    published_size: tuple[int, int] | None = None
    videos: Sequence[range] = ()

    def __init__(self, folder: Path, split: str = ALL_SPLIT) -> None:
        """Raises InputError where there is no folder, or no image in it."""
        self._folder = folder
        self._paths = find_images(folder)
        if not self._paths:
            raise InputError(f"{folder}: no image in it (looked for {', '.join(IMAGE_SUFFIXES)})")
        for path in self._paths:
            existing_file(path)
        self.name = folder.resolve().name
        self.split = split
        self.vocabulary = Vocabulary(name=self.name, classes=())

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        path = self._paths[index]
        return Sample(image=read_image(path), name=path.relative_to(self._folder).with_suffix("").as_posix())


def _images_of(description: Description, split: str) -> tuple[list[tuple[str, Path]], list[str]]:
    """Names (path below their folder, without suffix) and files of a split's images, sorted or as listed.

    Also a message for each that is listed, or linked to, and not there.
    """
    names = description.split_names()
    if names is not None and split not in names:
        raise InputError(f"{description.path}: no split {split!r}; it has {', '.join(names)}")
    folder = description.root / description.place("images", split)
    if not folder.is_dir():
        what = (
            f"no folder of images for split {split!r}" if names is None or split != ALL_SPLIT else "no folder of images"
        )
        raise InputError(f"{folder}: {what}; correct images, root or splits in {description.path}")
    listed = description.place("list", split)
    if listed:
        return _listed(_lines(listed, description), folder, description)
    paths = find_images(folder, description.image_suffix)
    if not paths:
        raise InputError(
            f"{folder}: no image ends in {' or '.join(description.image_suffix)}; "
            f"correct images or image_suffix in {description.path}"
        )
    images = [(_stem(path.relative_to(folder).as_posix(), description.image_suffix), path) for path in paths]
    return images, [missing_file_message(path) for path in paths if not path.is_file()]


def _labels_of(description: Description, split: str, images: Sequence[tuple[str, Path]]) -> list[Path]:
    folder = description.root / description.place("labels", split)
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder of label maps; correct labels, root or splits in {description.path}")
    return [folder / (name + description.label_suffix) for name, _ in images]


def _unlabelled(images: Sequence[tuple[str, Path]], labels: Sequence[Path]) -> list[str]:
    """A message for each image whose label map is not there."""
    return [
        f"{image}: has no label map {label}; add it, or list the others"
        for label, (_, image) in zip(labels, images, strict=False)
        if not label.is_file()
    ]


def _lines(listed: str, description: Description) -> list[str]:
    path = description.root / listed
    if not path.is_file():
        path = description.path.parent / listed
    if not path.is_file():
        raise InputError(f"{path}: no such list file; correct list or splits in {description.path}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file; write one image name a line") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: lists no image; write one image name a line")
    return lines


def _listed(lines: Sequence[str], folder: Path, description: Description) -> tuple[list[tuple[str, Path]], list[str]]:
    """Names and files of listed images, written with or without their suffix; a message for each that is missing."""
    images, missing = [], []
    for line in lines:
        places = (folder / (line + suffix) for suffix in ("", *description.image_suffix))
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            missing.append(f"{folder / line}: listed, but there is no such image; correct the list or image_suffix")
        else:
            images.append((_stem(line, description.image_suffix), path))
    return images, missing


def _stem(name: str, suffixes: Sequence[str]) -> str:
    """The name without its image suffix, the longest that fits."""
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.lower().endswith(suffix.lower()):
            return name[: -len(suffix)]
    return name


def _label_table(description: Description, ignore: int) -> np.ndarray:
    """Class index of every raw label value 0..65535, -1 where it has no meaning, and -1 at the end."""
    table = np.full(LABEL_VALUES + 1, -1, dtype=np.int64)
    classes = np.arange(len(description.vocabulary))
    table[description.offset + classes] = classes
    table[list(description.ignore)] = ignore
    return table
