"""Datasets in a folder: images and label maps described by a `dataset.toml`, or any folder of images.

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
from ovstrans.datasets.images import (
    IMAGE_SUFFIXES,
    check_equal_size,
    find_images,
    is_lost_folder,
    read_image,
    read_label,
)
from ovstrans.datasets.sample import IGNORE, Sample, describe_dataset, get_ignore_label
from ovstrans.errors import InputError
from ovstrans.files import existing_file, missing_file_message, refuse_missing
from ovstrans.parsing import read_text
from ovstrans.vocabulary.vocabulary import Vocabulary


class FolderDataset:
    """A split of a folder with a `dataset.toml`.

    Opening it checks that every image has a label map. What is in the files is checked when they are read.

    Args:
        description: From `read_description`.
        split: A split of it.
        labels: If False, label maps are not read and need not exist.
        allow_missing: If True, files may be missing; reading them fails. `missing` has a message for each.

    Raises:
        InputError: The split is unknown, a folder is missing or has no image, or, unless `allow_missing`, a file is
            missing.
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
        self._images, self.missing = _find_images(description, split)
        self._labels = _find_labels(description, split, self._images) if labels else None
        self.missing += _list_unlabelled(self._images, self._labels or ())
        if not allow_missing or not self._images:
            refuse_missing(self.missing)
        self._table = _make_label_table(description, self.ignore)

    def __repr__(self) -> str:
        return describe_dataset(self)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """Read an image and its label map.

        Raises:
            InputError: A file is missing or broken, or the label map holds a value that is no class.
            MismatchError: Image and label map differ in size.
        """
        return self.read(index)[0]

    def read(self, index: int) -> tuple[Sample, np.ndarray | None]:
        """Read a sample as indexing does; also returns the raw values of its label map, if label maps are read."""
        name, path = self._images[index]
        image = read_image(path)
        if self._labels is None:
            return Sample(image=image, name=name), None
        label_path = self._labels[index]
        raw = read_label(label_path)
        check_equal_size(raw, label_path, image, path)
        return Sample(image=image, label=self._to_classes(raw, label_path), name=name), raw

    def read_raw_label(self, index: int) -> np.ndarray:
        """Read the raw values of a label map, uint8 or int64 [H, W]; InputError if it is missing or broken."""
        if self._labels is None:
            raise InputError(f"{self.name}:{self.split}: was opened without labels; open it with them")
        return read_label(self._labels[index])

    def files(self, index: int) -> list[tuple[Path, Callable[[Path], Any]]]:
        """Return the files of a sample, each with the function that reads it on its own."""
        image = (self._images[index][1], read_image)
        return [image] if self._labels is None else [image, (self._labels[index], self._read_label)]

    def _read_label(self, path: Path) -> Tensor:
        """Read a label map, uint8 or int64 [H, W]."""
        return self._to_classes(read_label(path), path)

    def _to_classes(self, raw: np.ndarray, path: Path) -> Tensor:
        """Convert the raw values of a label map to class indices."""
        classes = self._table[raw.clip(-1, LABEL_VALUES)]  # the last entry, also reached by -1, is for all other values
        if (classes < 0).any():
            raise self._unknown_value(int(raw[classes < 0][0]), path)
        return torch.from_numpy(classes.astype(np.uint8 if self.ignore == IGNORE else np.int64))

    def _unknown_value(self, value: int, path: Path) -> InputError:
        legal, count = self.description.describe_values(), len(self.vocabulary)
        return InputError(
            f"{path}: label value {value} is none of the {count} classes ({legal}); add it to ignore in "
            f"{self.description.path}, correct classes or offset there, or say there what each value means, "
            f'values = {{ {value} = "{self.vocabulary.names[-1]}", ... }}'
        )


class ImageFolder:
    """All images below a folder, sorted by path, without labels.

    Args:
        folder: The folder.
        split: Name of the split in reports.

    Raises:
        InputError: The folder is missing, holds no image, or an image may not be read.
    """

    ignore = IGNORE
    published_size: tuple[int, int] | None = None
    videos: Sequence[range] = ()

    def __init__(self, folder: Path, split: str = ALL_SPLIT) -> None:
        self._folder = folder
        self._paths = find_images(folder)
        if not self._paths:
            raise InputError(f"{folder}: no image in it (looked for {', '.join(IMAGE_SUFFIXES)})")
        for path in self._paths:
            existing_file(path)
        self.name = folder.resolve().name
        self.split = split
        self.vocabulary = Vocabulary(name=self.name, classes=())

    def __repr__(self) -> str:
        return describe_dataset(self)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        path = self._paths[index]
        return Sample(image=read_image(path), name=path.relative_to(self._folder).with_suffix("").as_posix())


def _find_images(description: Description, split: str) -> tuple[list[tuple[str, Path]], list[str]]:
    """List the images of a split, sorted by path or in the order of the list.

    Returns:
        Name and path of each image, where the name is the path below the folder without suffix; and a message for each
        image that is missing although it is listed or linked to.
    """
    names = description.split_names()
    if names is not None and split not in names:
        raise InputError(f"{description.path}: no split {split!r}; it has {', '.join(names)}")
    folder = description.root / description.location("images", split)
    if not folder.is_dir():
        what = (
            f"no folder of images for split {split!r}" if names is None or split != ALL_SPLIT else "no folder of images"
        )
        raise InputError(f"{folder}: {what}; correct images, root or splits in {description.path}")
    listed = description.location("list", split)
    if listed:
        return _find_listed(_read_list(listed, description), folder, description)
    paths = find_images(folder, description.image_suffix)
    if not paths:
        raise InputError(
            f"{folder}: no image ends in {' or '.join(description.image_suffix)}; "
            f"correct images or image_suffix in {description.path}"
        )
    lost = [path for path in paths if not path.is_file()]
    images = [
        (_remove_suffix(path.relative_to(folder).as_posix(), description.image_suffix), path)
        for path in paths
        if path not in lost or not is_lost_folder(path.name, {path.name})
    ]
    return images, [missing_file_message(path) for path in lost]


def _find_labels(description: Description, split: str, images: Sequence[tuple[str, Path]]) -> list[Path]:
    folder = description.root / description.location("labels", split)
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder of label maps; correct labels, root or splits in {description.path}")
    labels = [folder / (name + description.label_suffix) for name, _ in images]
    if all(label.is_file() for label in labels):
        return labels
    existing = _list_by_name(folder, (description.label_suffix,))
    return [existing.get(name, label) for (name, _), label in zip(images, labels, strict=True)]


def _list_by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """List the files below a folder that end in a suffix, compared without case, by their path without it."""
    return {
        _remove_suffix(path.relative_to(folder).as_posix(), suffixes): path for path in find_images(folder, suffixes)
    }


def _list_unlabelled(images: Sequence[tuple[str, Path]], labels: Sequence[Path]) -> list[str]:
    """Return a message for each image whose label map is missing."""
    return [
        f"{image}: has no label map {label}; add it, or name the images to use with list"
        for label, (_, image) in zip(labels, images, strict=False)
        if not label.is_file()
    ]


def _read_list(listed: str, description: Description) -> list[str]:
    path = description.root / listed
    if not path.is_file():
        path = description.path.parent / listed
    if not path.is_file():
        raise InputError(f"{path}: no such list file; correct list or splits in {description.path}")
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file; write one image name per line") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: lists no image; write one image name per line")
    return lines


def _find_listed(
    lines: Sequence[str], folder: Path, description: Description
) -> tuple[list[tuple[str, Path]], list[str]]:
    """Find listed images, which may be written with or without suffix; returns the same as `_find_images`."""
    images, missing = [], []
    existing: dict[str, Path] | None = None
    for line in lines:
        name = _remove_suffix(line, description.image_suffix)
        candidates = (folder / (line + suffix) for suffix in ("", *description.image_suffix))
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:  # its suffix may be written in another case
            existing = _list_by_name(folder, description.image_suffix) if existing is None else existing
            path = existing.get(name)
        if path is None:
            missing.append(f"{folder / line}: listed, but there is no such image; correct the list or image_suffix")
        else:
            images.append((name, path))
    return images, missing


def _remove_suffix(name: str, suffixes: Sequence[str]) -> str:
    """Remove the longest image suffix that the name ends with."""
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.lower().endswith(suffix.lower()):
            return name[: -len(suffix)]
    return name


def _make_label_table(description: Description, ignore: int) -> np.ndarray:
    """Return the class index or ignore label of each label value 0 to 65535, -1 if it has none, and a final -1."""
    table = np.full(LABEL_VALUES + 1, -1, dtype=np.int64)
    table[list(description.values)] = list(description.values.values())
    table[list(description.ignore)] = ignore
    return table
