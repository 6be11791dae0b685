"""The file `dataset.toml`, which describes a user's images and label maps.

Put it into the folder of the dataset and open the dataset as `folder:PATH`, where PATH is that folder. If nothing may
be written there, put the description elsewhere under any name that ends in `.toml`, give the folder as `root`, and open
the dataset as `folder:FILE.toml`. Add the name of a split at the end to choose one: `folder:PATH:val`.

A complete description:

    classes = ["sky", "building", "car, automobile"]
    images = "{split}"
    labels = "{split}annot"

`classes` lists the names of the classes; names after a comma are synonyms. A class's position in the list, counted from
0, is its value in the label maps. `images` and `labels` are the folders of the images and of the label maps, in which
`{split}` stands for the name of the split. The description above fits these files:

    train/0001.png   trainannot/0001.png
    train/0002.png   trainannot/0002.png
    val/0001.png     valannot/0001.png

A label map is a gray or palette image of the same size as its image, with one class value per pixel, of 1 to 16 bits,
or an RGB image whose three channels are equal. It has the image's file name, with the suffix `.png`. Suffixes are
compared without case. Pixels of value 255 or 65535 are ignored, in training and in evaluation. Folders are searched at
any depth, and links are followed.

All other keys are optional:

    name = "camvid"                   # name in reports; default: name of the folder that holds dataset.toml, or name
                                      # of the description file without .toml
    root = "/data/camvid"             # folder that `images` and `labels` are in; default: folder of the description
    image_suffix = ".jpg"             # how image names end, or a list; default: .jpg, .jpeg, .png, .webp, .bmp, .tif,
                                      # .tiff, .ppm
    label_suffix = ".png"             # how the name of the label map ends instead; default: .png
    ignore = [11]                     # label values that are ignored; default: 255 and 65535, unless they are classes
    offset = 1                        # label value of the first class; default: 0
    values = { 0 = "sky", 255 = "car" } # class of each label value, in place of offset; several may be of one class
    list = "lists/{split}.txt"        # text file that names the images to use, one per line, with or without suffix; in
                                      # `root` or in the folder of the description; default: all images
    novel = ["car"]                   # classes that training must not see
    things = ["car"]                  # countable classes
    templates = ["a photo of a {}."]  # prompts
    colors = [[70, 130, 180], ...]    # one RGB colour per class
    plain, display                    # other names of the classes, see `ovstrans.vocabulary.files`

    [splits]                          # needed only if folders are not named like their splits
    train = "training"                # text in place of {split}
    val = { images = "other/images", labels = "other/maps" }
    test = { list = "test.txt" }      # any of images, labels and list, in place of the one above

With `[splits]`, the dataset has the splits named there. Without it, any name will do that gives existing folders. If no
folder depends on `{split}`, the dataset has one split, `all`.

Suffixes may be longer than a file extension. Cityscapes, for instance, is described by

    images = "leftImg8bit/{split}"
    image_suffix = "_leftImg8bit.png"
    labels = "gtFine/{split}"
    label_suffix = "_gtFine_labelTrainIds.png"

`ovstrans data check folder:PATH` reads every file of a dataset and reports all faults. `ovstrans data show folder:PATH`
draws some of its images with their labels.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovstrans.datasets.images import IMAGE_SUFFIXES
from ovstrans.datasets.sample import IGNORE, IGNORE_WIDE
from ovstrans.errors import InputError, did_you_mean
from ovstrans.files import expand_home, read_toml
from ovstrans.vocabulary.files import VOCABULARY_KEYS, check_keys, parse_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary

DESCRIPTION_FILE = "dataset.toml"
"""Usual name of a description."""
ALL_SPLIT = "all"
"""The split of a dataset without splits."""
USUAL_SPLITS = ("train", "val", "test")
"""Splits that are listed if their folder of images or labels exists, even if the rest of them is missing."""
LABEL_VALUES = 65536
"""Number of values of a 16-bit label map."""

_MOST_DIGITS = 20

_LOCATIONS = ("images", "labels", "list")
_KEYS = (*VOCABULARY_KEYS, "root", *_LOCATIONS, "image_suffix", "label_suffix", "ignore", "offset", "values", "splits")


@dataclass(frozen=True)
class Description:
    """The contents of a `dataset.toml`; see the module's documentation.

    Attributes:
        path: The description file.
        root: Folder that `images` and `labels` are relative to.
        vocabulary: The classes.
        images: Folder of the images, with `{split}` unreplaced.
        labels: Folder of the label maps, likewise.
        listing: File that lists the images, likewise; "" to use all images.
        image_suffix: Possible ends of image names.
        label_suffix: End of the name of a label map, in place of the image's suffix.
        ignore: Label values that are ignored.
        ignores_by_default: Whether `ignore` is the default.
        values: Class index of each label value that stands for a class.
        splits: For each named split its own `images`, `labels` and `list`, and the text in place of `{split}` under the
            key "folder".
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
    ignores_by_default: bool
    values: Mapping[int, int]
    splits: Mapping[str, Mapping[str, str]]

    def describe_values(self) -> str:
        """Return the label values that stand for classes, such as "0 to 2" or "0, 255"."""
        values = sorted(self.values)
        if values == list(range(values[0], values[0] + len(values))) and len(values) > 1:
            return f"{values[0]} to {values[-1]}"
        return ", ".join(str(value) for value in values)

    def split_names(self) -> list[str] | None:
        """Return the splits that the description names; None if it accepts any name."""
        if self.splits:
            return list(self.splits)
        has_splits = any("{split}" in template for template in (self.images, self.labels, self.listing))
        return None if has_splits else [ALL_SPLIT]

    def existing_splits(self) -> list[str]:
        """Return the splits that the description names; if it accepts any name, those that exist on disk, sorted."""
        names = self.split_names()
        if names is not None:
            return names
        template = next(each for each in (self.images, self.labels, self.listing) if "{split}" in each)
        before, after = (re.escape(part) for part in template.split("{split}", 1))
        pattern = re.compile(f"{before}([^/]+){after}".replace(re.escape("{split}"), r"\1"))
        wildcard = "/".join("*" * (template.count("/") + 1))
        folders = [folder for folder in dict.fromkeys((self.root, self.path.parent)) if folder.is_dir()]
        matches = (
            pattern.fullmatch(path.relative_to(folder).as_posix())
            for folder in folders
            for path in folder.glob(wildcard)
        )
        splits = sorted({match[1] for match in matches if match})
        return [split for split in splits if split in USUAL_SPLITS or self._is_complete(split)]

    def _is_complete(self, split: str) -> bool:
        """Return whether the folders and the list of a split exist."""
        locations = [location for kind in _LOCATIONS if (location := self.location(kind, split))]
        return all((self.root / each).exists() or (self.path.parent / each).exists() for each in locations)

    def location(self, kind: str, split: str) -> str:
        """Return the relative path of the `images`, `labels` or `list` of a split, "" if it has none."""
        own = self.splits.get(split, {})
        shared = {"images": self.images, "labels": self.labels, "list": self.listing}[kind]
        return own.get(kind, shared).replace("{split}", own.get("folder", split))


def read_description(path: Path) -> Description:
    """Read the description in a folder, or a `.toml` file.

    Raises:
        InputError: The file is missing, or a key or value is wrong.
    """
    path = path / DESCRIPTION_FILE if path.is_dir() else path
    if not path.exists():
        raise InputError(
            f'{path}: missing; write one, for instance classes = ["sky", "car"], images = "{{split}}", '
            'labels = "{split}annot" (all keys: python -m pydoc ovstrans.datasets.description)'
        )
    table = read_toml(path)
    where = str(path)
    check_keys(table, _KEYS, where)
    own_name = path.resolve().parent.name if path.name == DESCRIPTION_FILE else path.stem
    vocabulary_table = {key: table[key] for key in VOCABULARY_KEYS if key in table}
    vocabulary = parse_vocabulary(vocabulary_table, where=where, name=own_name)
    values = _parse_values(table, vocabulary, where)
    splits = _parse_splits(table, where)
    for kind in ("images", "labels"):
        if kind not in table and not (splits and all(kind in split for split in splits.values())):
            raise InputError(f'{where}: {kind} is missing; name the folder, for instance {kind} = "{{split}}/{kind}"')
    return Description(
        path=path,
        root=path.parent / expand_home(_parse_text(table, "root", where, ".")),
        vocabulary=vocabulary,
        images=_parse_text(table, "images", where, ""),
        labels=_parse_text(table, "labels", where, ""),
        listing=_parse_text(table, "list", where, ""),
        image_suffix=_parse_suffixes(table, where),
        label_suffix=_parse_text(table, "label_suffix", where, ".png"),
        ignore=_parse_ignore(table, values, where),
        ignores_by_default="ignore" not in table,
        values=values,
        splits=splits,
    )


def _parse_splits(table: Mapping[str, Any], where: str) -> dict[str, dict[str, str]]:
    splits = table.get("splits", {})
    if not isinstance(splits, Mapping):
        raise InputError(f"{where}: splits must be a section, [splits]")
    return {str(name): _parse_split(entry, f"{where}: splits.{name}") for name, entry in splits.items()}


def _parse_split(entry: Any, where: str) -> dict[str, str]:
    if isinstance(entry, str):
        return {"folder": entry}
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is {entry!r}; write a folder name or {{ images = ..., labels = ... }}")
    check_keys(entry, _LOCATIONS, where)
    return {key: _parse_text(entry, key, where, "") for key in entry}


def _parse_suffixes(table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    suffixes = table.get("image_suffix", list(IMAGE_SUFFIXES))
    suffixes = [suffixes] if isinstance(suffixes, str) else suffixes
    if not isinstance(suffixes, list) or not suffixes or not all(isinstance(s, str) and s for s in suffixes):
        raise InputError(f'{where}: image_suffix is {suffixes!r}; write ".jpg" or a list of suffixes')
    return tuple(suffixes)


def _parse_text(table: Mapping[str, Any], key: str, where: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or not (value or key not in table):
        raise InputError(f"{where}: {key} is {value!r}; a non-empty string is needed")
    return value


def _parse_label_value(value: Any, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LABEL_VALUES:
        raise InputError(f"{where}: {key} is {value!r}; a whole number from 0 to {LABEL_VALUES - 1} is needed")
    return value


def _parse_values(table: Mapping[str, Any], vocabulary: Vocabulary, where: str) -> dict[int, int]:
    """Return the class index of each label value: from the table `values`, or counted from `offset`."""
    if "values" not in table:
        offset = _parse_label_value(table.get("offset", 0), "offset", where)
        if offset + len(vocabulary) > LABEL_VALUES:
            raise InputError(f"{where}: offset {offset} and {len(vocabulary)} classes do not fit 16-bit label maps")
        return {offset + index: index for index in range(len(vocabulary))}
    if "offset" in table:
        raise InputError(f"{where}: values says what each label value means, leave out offset")
    entries, example = table["values"], 'write values = { 0 = "background", 255 = "polyp" }'
    if not isinstance(entries, Mapping) or not entries:
        raise InputError(f"{where}: values is {entries!r}; {example}")
    index_of = _index_names(vocabulary)
    values: dict[int, int] = {}
    for key, name in entries.items():
        if not (key.isascii() and key.isdigit() and len(key) <= _MOST_DIGITS) or int(key) >= LABEL_VALUES:
            raise InputError(f"{where}: values: {key!r} is no label value (0 to {LABEL_VALUES - 1}); {example}")
        if int(key) in values:
            raise InputError(f"{where}: values: {int(key)} is written twice; give it one class")
        if not isinstance(name, str):
            raise InputError(f"{where}: values: {key} is {name!r}; the name of a class is needed, {example}")
        if name not in index_of:
            hint = did_you_mean(name, index_of) or f"known are {', '.join(vocabulary.names)} "
            raise InputError(f"{where}: values: {key} is {name!r}, which is none of the classes; {hint.strip()}")
        values[int(key)] = index_of[name]
    return values


def _index_names(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the index of each class by its display name, and by its synonyms as far as they are of one class only."""
    owners: dict[str, set[int]] = {}
    for index, synonyms in enumerate(vocabulary.classes):
        for name in (*synonyms, ", ".join(synonyms)):
            owners.setdefault(name, set()).add(index)
    unique = {name: min(indices) for name, indices in owners.items() if len(indices) == 1}
    return unique | {name: index for index, name in enumerate(vocabulary.names)}


def _parse_ignore(table: Mapping[str, Any], classes: Collection[int], where: str) -> frozenset[int]:
    """Return the ignored label values; `classes` are the values that classes have."""
    if "ignore" not in table:
        return frozenset({IGNORE, IGNORE_WIDE} - set(classes))
    entries = table["ignore"] if isinstance(table["ignore"], list) else [table["ignore"]]
    ignored = frozenset(_parse_label_value(value, "ignore", where) for value in entries)
    both = sorted(ignored & set(classes)) if "values" in table else []
    if both:
        raise InputError(f"{where}: label value {both[0]} is in values and in ignore; leave it in one of them")
    return ignored
