"""Vocabulary files.

A vocabulary file is one of four:

1. A text file with one class per line, synonyms separated by commas. `#` starts a comment.
2. A text file in the format of OpenSeg (Ghiasi et al., ECCV 2022), which ODISE and FC-CLIP use too. Every line is
   `ID:name,synonym,...`. Classes are sorted by ID. `ID:invalid_class_id` says that the ID has no class. ID 0 is a class
   like any other.
3. A TOML file:

       name = "street"                         # optional; default: the file's name without suffix
       classes = ["sky", "car, automobile", ["person", "pedestrian"]]
       plain = ["sky", "vehicle-other", "person"]   # optional: the names that the dataset's authors use, commas and
                                               # all; a list for a class with several names
       display = ["sky", "car", "person"]      # optional: names in reports, all different
       novel = ["car"]                         # optional: classes never labelled in training
       things = ["car", "person"]              # optional: countable classes
       templates = ["a photo of a {}."]        # optional: prompts
       colors = [[70, 130, 180], ...]          # optional: one RGB colour per class

   `novel` and `things` name classes by their display name, which is the first synonym unless `display` is given.
4. A JSON, CSV or TSV file, see `vocabulary.json_csv`; the `classes.json` of `ovstrans predict` is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ovstrans.errors import InputError, did_you_mean
from ovstrans.files import existing_file, read_json, read_toml
from ovstrans.parsing import MOST_DIGITS, read_text
from ovstrans.vocabulary.json_csv import parse_csv, parse_json
from ovstrans.vocabulary.vocabulary import Vocabulary, make_distinct_names, parse_color, split_synonyms

VOCABULARY_KEYS = ("name", "classes", "plain", "display", "novel", "things", "templates", "colors")
"""Keys that describe a vocabulary, in a vocabulary file or in a `dataset.toml`."""

NO_CLASS = "invalid_class_id"
"""OpenSeg's name for an ID without a class."""

_OPENSEG_LINE = re.compile(r"(\d+)\s*:(.*)")


def read_vocabulary(path: Path | str) -> Vocabulary:
    """Read a vocabulary file: `.toml`, `.json`, `.csv`, `.tsv`, or text; see the module's documentation.

    Classes of an OpenSeg file that share their first synonym get distinct display names.

    Raises:
        InputError: The file is missing or not in one of the formats.
    """
    path = existing_file(path)
    suffix = path.suffix.lower()
    if suffix == ".toml":
        return parse_vocabulary(read_toml(path), where=str(path), name=path.stem)
    if suffix == ".json":
        value = read_json(path)
        with prefix_errors(path):
            return parse_json(value, path.parent.name if path.stem == "classes" and path.parent.name else path.stem)
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file; write one class per line") from error
    if suffix in (".csv", ".tsv"):
        with prefix_errors(path):
            return parse_csv(text, path.stem, delimiter="\t" if suffix == ".tsv" else ",")
    entries = [entry for line in text.splitlines() if (entry := line.partition("#")[0].strip())]
    with prefix_errors(path):
        if not is_openseg(entries):
            return Vocabulary.from_names(path.stem, entries)
        classes = parse_openseg(entries)
        display = make_distinct_names(classes)
        is_default = display == tuple(synonyms[0] for synonyms in classes)
        return Vocabulary(path.stem, tuple(classes), display=None if is_default else display)


def parse_vocabulary(table: Mapping[str, Any], *, where: str, name: str) -> Vocabulary:
    """Return the vocabulary that a TOML table describes.

    Args:
        table: The table, with keys of `VOCABULARY_KEYS`.
        where: Path of the file, for error messages.
        name: Name of the vocabulary if the table has none.

    Raises:
        InputError: A key is unknown or a value is wrong.
    """
    check_keys(table, VOCABULARY_KEYS, where)
    classes = table.get("classes")
    if not isinstance(classes, list) or not classes:
        raise InputError(f'{where}: classes is missing or empty; write classes = ["sky", "car, automobile"]')
    with prefix_errors(where):
        display = tuple(_parse_strings(table["display"], "display")) if "display" in table else None
        vocabulary = Vocabulary.from_names(str(table.get("name", name)), classes, display=display)
        index_of = {name: index for index, name in enumerate(vocabulary.names)}
        colors = table.get("colors")
        if colors is not None and not isinstance(colors, list):
            raise InputError(f"colors: a list of RGB colours is needed, not {colors!r}")
        return replace(
            vocabulary,
            plain=_parse_plain(table["plain"]) if "plain" in table else None,
            novel=_parse_classes(table.get("novel", []), index_of, "novel"),
            things=_parse_classes(table.get("things", []), index_of, "things"),
            templates=tuple(_parse_strings(table.get("templates", ["{}"]), "templates")),
            colors=None if colors is None else tuple(parse_color(color) for color in colors),
        )


def is_openseg(lines: Sequence[str]) -> bool:
    """Return whether the first of `lines`, without blank ones, is in OpenSeg's format."""
    return bool(lines) and _OPENSEG_LINE.match(lines[0]) is not None


def parse_openseg(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the synonyms of each class of a list in OpenSeg's format, sorted by ID.

    Spaces around names are trimmed and repeated synonyms dropped.

    Args:
        lines: The lines of the list, without blank ones.

    Raises:
        InputError: A line is not in the format, an ID occurs twice, a name is empty, or no ID has a class.
    """
    synonyms_of: dict[int, tuple[str, ...]] = {}
    for line in lines:
        match = _OPENSEG_LINE.match(line)
        if match is None:
            raise InputError(f"line {line!r}: no ID; the first line has one, so write each as ID:name,synonym")
        if len(match[1]) > MOST_DIGITS:
            raise InputError(f"line {line!r}: an ID of {len(match[1]):,} digits")
        number, names = int(match[1]), tuple(dict.fromkeys(name.strip() for name in match[2].split(",")))
        if number in synonyms_of:
            raise InputError(f"line {line!r}: ID {number} occurs twice; IDs must differ")
        if not all(names):
            raise InputError(f"line {line!r}: an empty name; write ID:name,synonym, or ID:{NO_CLASS} for no class")
        synonyms_of[number] = names
    classes = [synonyms_of[number] for number in sorted(synonyms_of) if synonyms_of[number] != (NO_CLASS,)]
    if not classes:
        raise InputError("no class; name at least one")
    return classes


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise InputError for the first key of `table` that is not in `known`; the message begins with `where`."""
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known)
            raise InputError(f"{where}: unknown key {key!r}; {hint}known are {', '.join(known)}")


@contextmanager
def prefix_errors(where: Path | str) -> Iterator[None]:
    """Begin the message of every InputError raised in the block with `where`, unless it does already."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(where)):
            raise
        raise InputError(f"{where}: {error}") from error


def _parse_plain(entries: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(entries, list):
        raise InputError(f"plain: a list of names is needed, not {entries!r}")
    return tuple((entry.strip(),) if isinstance(entry, str) else split_synonyms("plain", entry) for entry in entries)


def _parse_classes(entries: Any, index_of: Mapping[str, int], key: str) -> frozenset[int]:
    """Return the indices of classes given by display name under `key`."""
    for entry in _parse_strings(entries, key):
        if entry not in index_of:
            hint = did_you_mean(entry, index_of).strip() or "write it as in classes, first synonym"
            raise InputError(f"{key}: {entry!r} is not among the classes; {hint}")
    return frozenset(index_of[entry] for entry in entries)


def _parse_strings(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{key}: a list of strings is needed, not {value!r}")
    return value
