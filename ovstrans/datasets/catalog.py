"""The datasets there are, by name: `NAME[:SPLIT]` or `folder:PATH[:SPLIT]`.

Published datasets also answer to the names that detectron2 and FC-CLIP register, which name a split.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovstrans.datasets.description import ALL_SPLIT, DESCRIPTION_FILE, read_description
from ovstrans.datasets.folder import FolderDataset, ImageFolder
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.published.layouts import DatasetInfo
from ovstrans.datasets.published.registry import (
    ALIASES,
    PUBLISHED,
    locate_dataset,
    lookup_published,
    not_found_error,
    resolve_roots,
)
from ovstrans.datasets.sample import Dataset
from ovstrans.errors import InputError, did_you_mean
from ovstrans.vocabulary.catalog import list_published_vocabularies, load_published_vocabulary, load_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary

VOCABULARY_SUFFIXES = (".txt", ".toml")
"""Suffixes of files of class names."""

GENERATED: Mapping[str, Mapping[str, Any]] = {
    "scenes": {},
    "scenes-attr": {"vocabulary_name": "scenes-attr"},
    "scenes-shift": {"shift": True},
}
"""The variants of `scenes`, with their options."""

DATASETS: Mapping[str, str] = {
    "scenes": "generated: textured stuff under shapes, with base and novel classes",
    "scenes-attr": "the same images with a class for every colour and shape",
    "scenes-shift": "scenes under other light, blur and noise",
    **{name: published.title for name, published in PUBLISHED.items()},
    "folder:PATH": f"your own images and label maps, described by PATH/{DESCRIPTION_FILE}",
}
"""Every name that `open_dataset` knows, with a line about it."""


def open_dataset(
    spec: str,
    *,
    split: str,
    size: int | None = None,
    labels: bool = True,
    data_root: Path | str | None = None,
    allow_missing: bool = False,
) -> Dataset:
    """The dataset that `spec` names.

    spec: `NAME[:SPLIT]` or `folder:PATH[:SPLIT]`; a path that exists is taken whole, colons and all.
    split: used where the spec names none (a folder without splits gives all its images).
    size: side of generated images; those of a folder keep theirs.
    labels: False accepts any folder of images, and reads no label maps of a described or published one.
    root: where published datasets are looked for; None for the places of `dataset_roots`.
    complete: False opens a dataset that lacks files, too; reading complains of them.
    Raises InputError for an unknown name or split, for what the folder lacks, and for a published dataset
    that is in none of the places.
    """
    name, _, rest = spec.partition(":")
    if name == "folder":
        return _open_folder(spec, rest, split, labels, allow_missing)
    known = lookup_published(spec)
    if known is not None:
        return _open_published(known[0], known[1] or split, labels, data_root, allow_missing)
    if name not in GENERATED:
        hint = did_you_mean(name, [*DATASETS, *ALIASES])
        if Path(spec).exists():
            hint = f"did you mean 'folder:{spec}'? "
        raise InputError(f"data {spec!r}: no such dataset; {hint}known are {', '.join(DATASETS)}")
    from ovstrans.datasets.scenes.dataset import Scenes

    options = dict(GENERATED[name])
    if size is not None:
        options["size"] = size
    return Scenes(rest or split, **options)


def find_vocabulary(spec: str) -> Vocabulary:
    """The class names of a dataset (published ones need not be there), of a vocabulary, or in a file.

    Raises InputError where it is none of these, with the nearest.
    """
    name = spec.partition(":")[0]
    if name in GENERATED or name == "folder":
        return open_dataset(spec, split="val").vocabulary
    known = lookup_published(spec)
    if known is not None:
        return load_published_vocabulary(known[0].vocabulary)
    if spec in list_published_vocabularies() or Path(spec).suffix in VOCABULARY_SUFFIXES:
        return load_vocabulary(spec)
    choices = list(dict.fromkeys([*DATASETS, *list_published_vocabularies()]))
    hint = did_you_mean(name, [*choices, *ALIASES])
    if Path(spec).is_dir():
        hint = f"did you mean 'folder:{spec}'? "
    files = " and ".join(VOCABULARY_SUFFIXES)
    raise InputError(
        f"{spec!r}: no such dataset or vocabulary; {hint}known are {', '.join(choices)}, and files that end in {files}"
    )


def list_folder_splits(spec: str) -> list[str]:
    """The splits of `folder:PATH` that are there, or the one that it names; InputError as `open_dataset`."""
    path, split = _split_off(spec, spec.partition(":")[2])
    return [split] if split else read_description(path).splits_there()


def _open_published(
    published: DatasetInfo, split: str, labels: bool, data_root: Path | str | None, allow_missing: bool
) -> PublishedDataset:
    roots = resolve_roots(data_root)
    found = locate_dataset(published, split, roots, labels=labels)
    if found is None:
        raise not_found_error(published, split, roots, labels=labels)
    return PublishedDataset(found, allow_missing=allow_missing)


def _open_folder(spec: str, rest: str, default: str, labels: bool, allow_missing: bool) -> Dataset:
    path, split = _split_off(spec, rest)
    if path.is_file() and path.suffix != ".toml":
        raise InputError(f"{path}: neither a folder nor a .toml file that describes one (data {spec!r})")
    described = path.suffix == ".toml" or (path / DESCRIPTION_FILE).exists()
    if not described and not labels:
        if split not in (None, ALL_SPLIT):
            raise InputError(f"data {spec!r}: splits need a {DESCRIPTION_FILE} in {path}")
        return ImageFolder(path)
    description = read_description(path)
    if split is None:
        split = ALL_SPLIT if description.split_names() == [ALL_SPLIT] else default
    return FolderDataset(description, split, labels=labels, allow_missing=allow_missing)


def _split_off(spec: str, rest: str) -> tuple[Path, str | None]:
    """The existing path in `PATH[:SPLIT]`, and the split if there is one."""
    head, colon, tail = rest.rpartition(":")
    for text, split in ((rest, None), (head if colon else "", tail)):
        if text and Path(text).expanduser().exists():
            return Path(text).expanduser(), split or None
    if not rest:
        raise InputError(f"data {spec!r}: names no folder; write folder:PATH or folder:PATH:SPLIT")
    missing = Path(head if colon else rest).expanduser()
    beside = [path.name for path in missing.parent.iterdir()] if missing.parent.is_dir() else []
    close = difflib.get_close_matches(missing.name, beside, n=1)
    hint = f"; did you mean {missing.with_name(close[0])}?" if close else ""
    raise InputError(f"{missing}: no such file or folder (data {spec!r}){hint}")
