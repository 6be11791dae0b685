"""All datasets by name: opening them, listing them, and their vocabularies.

A dataset is named `NAME[:SPLIT]` or `folder:PATH[:SPLIT]`. Published datasets can also be named as detectron2 and
FC-CLIP register them, which includes the split.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovstrans.datasets.description import ALL_SPLIT, DESCRIPTION_FILE, read_description
from ovstrans.datasets.folder import FolderDataset, ImageFolder
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.published.layouts import DatasetInfo, DatasetLocation
from ovstrans.datasets.published.registry import (
    ALIASES,
    PUBLISHED,
    locate_dataset,
    locate_splits,
    lookup_published,
    not_found_error,
    require_published,
    resolve_roots,
)
from ovstrans.datasets.sample import Dataset
from ovstrans.errors import InputError, counted, did_you_mean
from ovstrans.files import expand_home
from ovstrans.vocabulary.catalog import list_published_vocabularies, load_published_vocabulary, load_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary

VOCABULARY_SUFFIXES = (".txt", ".toml", ".json", ".csv", ".tsv")
"""Suffixes of vocabulary files."""

GENERATED: Mapping[str, Mapping[str, Any]] = {
    "scenes": {},
    "scenes-attr": {"vocabulary_name": "scenes-attr"},
    "scenes-shift": {"shift": True},
}
"""Generated datasets, with the arguments of `Scenes`."""

DATASETS: Mapping[str, str] = {
    "scenes": "generated: shapes on textured grounds, with base and novel classes",
    "scenes-attr": "the same images with a class for each shape in each colour",
    "scenes-shift": "scenes in dim light, blurred and noisy",
    **{name: info.title for name, info in PUBLISHED.items()},
    "folder:PATH": f"your own images and label maps, described by PATH/{DESCRIPTION_FILE}",
}
"""Every name that `open_dataset` accepts, with a description of one line."""


def open_dataset(
    spec: str,
    *,
    split: str,
    size: int | None = None,
    labels: bool = True,
    data_root: Path | str | None = None,
    allow_missing: bool = False,
) -> Dataset:
    """Open a dataset by name.

    Args:
        spec: `NAME[:SPLIT]` or `folder:PATH[:SPLIT]`. A path may contain colons.
        split: Split to open if `spec` names none. A folder without splits is opened as a whole.
        size: Side of generated images in pixels; all other datasets ignore it.
        labels: If False, no label maps are read, and `folder:PATH` may be any folder of images.
        data_root: Where to look for published datasets, see `resolve_roots`.
        allow_missing: If True, files of the dataset may be missing; reading them fails.

    Raises:
        InputError: The dataset or split is unknown, a published dataset is not found, or files are missing or broken.
    """
    name, _, rest = spec.partition(":")
    if name in GENERATED:
        from ovstrans.datasets.scenes.dataset import Scenes

        options = {**GENERATED[name], **({} if size is None else {"size": size})}
        return Scenes(rest or split, **options)
    if name == "folder":
        return _open_folder(spec, split, labels, allow_missing)
    published = lookup_published(spec)
    if published is not None:
        return _open_published(published[0], published[1] or split, labels, data_root, allow_missing)
    raise _unknown_error(spec)


def find_vocabulary(spec: str) -> Vocabulary:
    """Return the vocabulary of a dataset, a published vocabulary, or the vocabulary in a file.

    Args:
        spec: Name of a dataset, which need not exist on disk if it is published; name of a vocabulary; or path of a
            file.

    Raises:
        InputError: It is none of these; the message suggests the nearest name.
    """
    name = spec.partition(":")[0]
    if name in GENERATED or name == "folder":
        return open_dataset(spec, split="val").vocabulary
    published = lookup_published(spec)
    if published is not None:
        return load_published_vocabulary(published[0].vocabulary)
    is_file = Path(spec).suffix.lower() in VOCABULARY_SUFFIXES or Path(spec).is_file()
    if spec in list_published_vocabularies() or is_file:
        return load_vocabulary(spec)
    known = list(dict.fromkeys([*DATASETS, *list_published_vocabularies()]))
    hint = did_you_mean(name, [*known, *ALIASES])
    if Path(spec).is_dir():
        hint = f"did you mean 'folder:{spec}'? "
    suffixes = ", ".join(VOCABULARY_SUFFIXES)
    raise InputError(
        f"{spec!r}: no such dataset or vocabulary; {hint}known are {', '.join(known)}, and files that end in {suffixes}"
    )


@dataclass(frozen=True)
class SplitStatus:
    """Presence of a split of a published dataset on disk.

    Attributes:
        split: Name of the split.
        location: Where it was found; None if it was not found or is broken.
        error: What is wrong with it, if it is broken.
    """

    split: str
    location: DatasetLocation | None = None
    error: str = ""

    def to_json(self) -> dict[str, Any] | None:
        """Return layout, folder and numbers of files; the error of a broken split; None if it was not found."""
        if self.error:
            return {"error": self.error}
        if self.location is None:
            return None
        return {
            "layout": self.location.layout.name,
            "root": str(self.location.folder),
            "images": len(self.location.pairs),
            "missing": len(self.location.missing),
        }


@dataclass(frozen=True)
class DatasetStatus:
    """A published dataset and which of its splits exist on disk.

    Attributes:
        info: The dataset.
        splits: Status of each of its splits.
    """

    info: DatasetInfo
    splits: tuple[SplitStatus, ...]

    def __repr__(self) -> str:
        """Return the dataset with the splits that were found."""
        found = ", ".join(
            f"{each.split}: {'broken' if each.location is None else counted(len(each.location.pairs), 'image')}"
            for each in self.splits
            if each.location is not None or each.error
        )
        return f"DatasetStatus({self.info.name}, {found or 'not found'})"

    def to_json(self) -> dict[str, Any]:
        """Return the dataset, its splits and its layouts as a dictionary that `json` can write."""
        return {
            "title": self.info.title,
            "classes": self.info.classes,
            "source": self.info.source,
            "splits": {each.split: each.to_json() for each in self.splits},
            "layouts": [
                {
                    "layout": layout.name,
                    "splits": list(layout.split_names),
                    "needs": layout.describe(list(layout.split_names)[-1]),
                }
                for layout in self.info.layouts
            ],
        }


def list_datasets(name: str | None = None, *, data_root: Path | str | None = None) -> list[DatasetStatus]:
    """Look for the published datasets on disk.

    Args:
        name: Look for this dataset only.
        data_root: Where to look, see `resolve_roots`.

    Raises:
        InputError: There is no published dataset of that name.
    """
    roots = resolve_roots(data_root)
    infos = list(PUBLISHED.values()) if name is None else [require_published(name)[0]]
    return [DatasetStatus(info, tuple(_look_for_split(info, split, roots) for split in info.splits)) for info in infos]


def list_splits(spec: str, *, data_root: Path | str | None = None) -> list[str]:
    """Return the splits of a dataset that exist, each as a spec for `open_dataset`.

    Args:
        spec: Name of a dataset. If it names a split, only that is returned; a generated dataset without a split gives
            its training split.
        data_root: Where to look for published datasets, see `resolve_roots`.

    Raises:
        InputError: The dataset is unknown, or none of its splits exists.
    """
    name, _, rest = spec.partition(":")
    if name in GENERATED:
        return [spec if rest else f"{name}:train"]
    if name == "folder":
        path, split = _parse_folder(spec)
        splits = [] if split else read_description(path).existing_splits()
        return [spec] if splits in ([], [ALL_SPLIT]) else [f"{spec}:{each}" for each in splits]
    published = lookup_published(spec)
    if published is None:
        raise _unknown_error(spec)
    info, split = published
    splits = [split] if split else locate_splits(info, resolve_roots(data_root))
    return [f"{info.name}:{split}" for split in splits]


def _unknown_error(spec: str) -> InputError:
    hint = did_you_mean(spec.partition(":")[0], [*DATASETS, *ALIASES])
    if Path(spec).exists():
        hint = f"did you mean 'folder:{spec}'? "
    return InputError(f"{spec!r}: no such dataset; {hint}known are {', '.join(DATASETS)}")


def _look_for_split(info: DatasetInfo, split: str, roots: list[Path]) -> SplitStatus:
    try:
        location = locate_dataset(info, split, roots)
        if location is not None:
            len(location.pairs)  # a broken listing shows only when it is read
    except InputError as error:
        return SplitStatus(split, error=str(error))
    return SplitStatus(split, location)


def _open_published(
    info: DatasetInfo, split: str, labels: bool, data_root: Path | str | None, allow_missing: bool
) -> PublishedDataset:
    roots = resolve_roots(data_root)
    location = locate_dataset(info, split, roots, labels=labels)
    if location is None:
        raise not_found_error(info, split, roots, labels=labels)
    return PublishedDataset(location, allow_missing=allow_missing)


def _open_folder(spec: str, default_split: str, labels: bool, allow_missing: bool) -> Dataset:
    path, split = _parse_folder(spec)
    if path.is_file() and path.suffix != ".toml":
        raise InputError(f"{path}: neither a folder nor a .toml file that describes one (dataset {spec!r})")
    is_described = path.suffix == ".toml" or (path / DESCRIPTION_FILE).exists()
    if not is_described and not labels:
        if split not in (None, ALL_SPLIT):
            raise InputError(f"dataset {spec!r}: splits need a {DESCRIPTION_FILE} in {path}")
        return ImageFolder(path)
    description = read_description(path)
    if split is None:
        split = ALL_SPLIT if description.split_names() == [ALL_SPLIT] else default_split
    return FolderDataset(description, split, labels=labels, allow_missing=allow_missing)


def _parse_folder(spec: str) -> tuple[Path, str | None]:
    """Return the existing path that `folder:PATH[:SPLIT]` names, and the split or None."""
    rest = spec.partition(":")[2]
    head, colon, tail = rest.rpartition(":")
    for text, split in ((rest, None), (head if colon else "", tail)):
        if text and expand_home(text).exists():
            return expand_home(text), split or None
    if not rest:
        raise InputError(f"dataset {spec!r}: names no folder; write folder:PATH or folder:PATH:SPLIT")
    missing = expand_home(head if colon else rest)
    neighbours = [path.name for path in missing.parent.iterdir()] if missing.parent.is_dir() else []
    nearest = difflib.get_close_matches(missing.name, neighbours, n=1)
    hint = f"; did you mean {missing.with_name(nearest[0])}?" if nearest else ""
    raise InputError(f"{missing}: no such file or folder (dataset {spec!r}){hint}")
