"""The `dataset.toml` that describes a user's images and label maps.

    classes = ["sky", "building", "car, automobile"]   # index order; synonyms after a comma
    images = "{split}"                # folder of the images; {split} becomes the split's name
    labels = "{split}annot"           # folder of the label maps

Nothing else is needed where folders are called `train` and `val`, images and label maps share their
file names, values are class indices and 255 is ignored. Otherwise:

    name = "camvid"                   # what reports call it; default: this file's name, for dataset.toml its folder's
    root = "/data/camvid"             # where `images` and `labels` are; default: beside this file
    image_suffix = ".jpg"             # or a list; default: the usual image suffixes
    label_suffix = ".png"             # replaces the image's suffix in the label map's name
    ignore = [11]                     # label values that count nowhere; default 255 and 65535
    offset = 1                        # the label value of class 0; default 0
    list = "lists/{split}.txt"        # file of image names, one a line, suffix optional; under root or here
    novel = ["car"]                   # classes never labelled in training
    things, templates, colors         # see `ovstrans.vocabulary.vocabulary`

    [splits]                          # only where folders are not called after their split
    train = "training"                # what {split} becomes
    val = { images = "other/images", labels = "other/maps" }
    test = { list = "test.txt" }      # images, labels and list, each instead of the one above

Suffixes may hold more than an extension, and folders are searched at any depth: Cityscapes is
`images = "leftImg8bit/{split}"`, `image_suffix = "_leftImg8bit.png"`, `labels = "gtFine/{split}"`,
`label_suffix = "_gtFine_labelTrainIds.png"`. Without `{split}` and `[splits]` all images form one
split, `all`. `folder:PATH` is the folder with the `dataset.toml`, or a `.toml` file of any name,
for images in a place where nothing may be written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovstrans.datasets.images import IMAGE_SUFFIXES
from ovstrans.datasets.sample import IGNORE, IGNORE_WIDE
from ovstrans.errors import InputError
from ovstrans.files import read_toml
from ovstrans.vocabulary.files import VOCABULARY_KEYS, check_keys, parse_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary

DESCRIPTION_FILE = "dataset.toml"
ALL_SPLIT = "all"
"""The one split of a dataset that has no splits."""
USUAL = ("train", "val", "test")
"""Splits that are what they are called, whatever they lack."""
LABEL_VALUES = 65536
"""Label maps have up to 16 bits."""

_PLACES = ("images", "labels", "list")
_KEYS = (*VOCABULARY_KEYS, "root", *_PLACES, "image_suffix", "label_suffix", "ignore", "offset", "splits")


@dataclass(frozen=True)
class Description:
    """What a `dataset.toml` says.

    path: the file.  root: folder that `images` and `labels` are relative to.
    images, labels, listing: the places, perhaps with `{split}`; listing is "" where all images count.
    image_suffix, label_suffix: how image names end, and what label maps end with instead.
    ignore: label values that count nowhere.  offset: the label value of class 0.
    splits: per named split its own places, or what {split} becomes under "folder".
    """

    path: Path
    root: Path
    vocabulary: Vocabulary
    images: str
    labels: str
    listing: str
    image_suffix: tuple[str, ...]
    label_suffix: str
    ignore: frozenset[int]
    offset: int
    splits: Mapping[str, Mapping[str, str]]

    def split_names(self) -> list[str] | None:
        """The splits it names; None where any name that has a folder will do."""
        if self.splits:
            return list(self.splits)
        return None if any("{split}" in place for place in (self.images, self.labels, self.listing)) else [ALL_SPLIT]

    def splits_there(self) -> list[str]:
        """The splits it names; where any name will do, those whose images and labels are there."""
        named = self.split_names()
        if named is not None:
            return named
        place = next(each for each in (self.images, self.labels, self.listing) if "{split}" in each)
        before, after = (re.escape(part) for part in place.split("{split}", 1))
        rule = re.compile(f"{before}([^/]+){after}".replace(re.escape("{split}"), r"\1"))
        depth = place.count("/") + 1
        below = [base for base in dict.fromkeys((self.root, self.path.parent)) if base.is_dir()]
        found = (
            rule.fullmatch(p.relative_to(base).as_posix()) for base in below for p in base.glob("/".join("*" * depth))
        )
        splits = sorted({match[1] for match in found if match})
        return [split for split in splits if split in USUAL or self._is_whole(split)]

    def _is_whole(self, split: str) -> bool:
        places = [place for kind in _PLACES if (place := self.place(kind, split))]
        return all((self.root / place).exists() or (self.path.parent / place).exists() for place in places)

    def place(self, kind: str, split: str) -> str:
        """Where the `images`, `labels` or `list` of a split are, as written, with the split filled in."""
        own = self.splits.get(split, {})
        shared = {"images": self.images, "labels": self.labels, "list": self.listing}[kind]
        return own.get(kind, shared).replace("{split}", own.get("folder", split))


def read_description(path: Path) -> Description:
    """The description at a folder (its `dataset.toml`) or a `.toml` file; InputError where it is wrong."""
    path = path / DESCRIPTION_FILE if path.is_dir() else path
    if not path.exists():
        raise InputError(
            f"{path}: missing; write one with classes, images and labels (see README, On your own model and images)"
        )
    table = read_toml(path)
    where = str(path)
    check_keys(table, _KEYS, where)
    words = {key: table[key] for key in VOCABULARY_KEYS if key in table}
    own = path.resolve().parent.name if path.name == DESCRIPTION_FILE else path.stem
    vocabulary = parse_vocabulary(words, where=where, name=own)
    suffixes = table.get("image_suffix", list(IMAGE_SUFFIXES))
    suffixes = [suffixes] if isinstance(suffixes, str) else suffixes
    if not isinstance(suffixes, list) or not suffixes or not all(isinstance(s, str) and s for s in suffixes):
        raise InputError(f'{where}: image_suffix is {suffixes!r}; write ".jpg" or a list of such')
    offset = _whole(table.get("offset", 0), "offset", where)
    values = range(offset, offset + len(vocabulary))
    if values.stop > LABEL_VALUES:
        raise InputError(f"{where}: offset {offset} and {len(vocabulary)} classes do not fit 16-bit label maps")
    splits = {str(name): _split(entry, f"{where}: splits.{name}") for name, entry in _table(table, where).items()}
    for kind in ("images", "labels"):
        if kind not in table and not (splits and all(kind in split for split in splits.values())):
            raise InputError(f'{where}: {kind} is missing; name the folder, for instance {kind} = "{{split}}/{kind}"')
    return Description(
        path=path,
        root=path.parent / Path(_text(table, "root", where, ".")).expanduser(),
        vocabulary=vocabulary,
        images=_text(table, "images", where, ""),
        labels=_text(table, "labels", where, ""),
        listing=_text(table, "list", where, ""),
        image_suffix=tuple(suffixes),
        label_suffix=_text(table, "label_suffix", where, ".png"),
        ignore=_ignored(table, values, where),
        offset=offset,
        splits=splits,
    )


def _split(entry: Any, where: str) -> dict[str, str]:
    if isinstance(entry, str):
        return {"folder": entry}
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is {entry!r}; write a folder name or {{ images = ..., labels = ... }}")
    check_keys(entry, _PLACES, where)
    return {key: _text(entry, key, where, "") for key in entry}


def _table(table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    splits = table.get("splits", {})
    if not isinstance(splits, Mapping):
        raise InputError(f"{where}: splits must be a section, [splits]")
    return splits


def _text(table: Mapping[str, Any], key: str, where: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or not (value or key not in table):
        raise InputError(f"{where}: {key} is {value!r}; a non-empty string is needed")
    return value


def _whole(value: Any, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LABEL_VALUES:
        raise InputError(f"{where}: {key} is {value!r}; a whole number from 0 to {LABEL_VALUES - 1} is needed")
    return value


def _ignored(table: Mapping[str, Any], classes: range, where: str) -> frozenset[int]:
    if "ignore" not in table:
        return frozenset({IGNORE, IGNORE_WIDE} - set(classes))
    values = table["ignore"] if isinstance(table["ignore"], list) else [table["ignore"]]
    return frozenset(_whole(value, "ignore", where) for value in values)
