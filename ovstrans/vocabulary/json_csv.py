"""Class names in JSON and CSV files.

JSON, any of

    ["sky", "car, automobile", ["person", "pedestrian"]]       names, with synonyms after commas or in lists
    [{"id": 0, "name": "sky"}, ...]                             objects, in the order of their id or index
    {"categories": [...]}, {"classes": [...]}                   the same inside an object, as in COCO's files
    {"0": "sky", "1": "car"} or {"sky": 0, "car": 1}            a mapping of numbers and names, as `id2label`
    {"id2label": {...}}, {"label2id": {...}}                    the same inside an object
    {"car": ["car", "automobile"]}                              a mapping of names to synonyms

An object may have `synonyms` (a list), `color` (RGB) and `isthing`. The `classes.json` of `ovstrans predict` is such a
file, and so is a `Vocabulary.to_json`.

CSV and TSV, with or without a header. Without one a line is a name and its synonyms; if the first cell of every line is
a number, the lines are ordered by it. With a header the columns are found by their names: name (or class, label,
category), id (or index), synonyms (separated by commas or semicolons), and r, g, b.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import Vocabulary, parse_color, split_synonyms

_NAME_KEYS = ("name", "class", "label", "category", "names", "classes", "class_name", "category_name")
_NUMBER_KEYS = ("id", "index", "idx", "number", "class_id", "trainid", "train_id", "category_id", "label_id")
_SYNONYM_KEYS = ("synonyms", "synonym", "aliases", "synset")
_LIST_KEYS = ("classes", "categories", "names", "labels", "vocabulary", "id2label", "label2id")
_COLOR_KEYS = ("color", "colour", "rgb")
_NUMBER = re.compile(r"\d{1,30}")
_WRITE = 'write ["sky", "car, automobile"], or [{"id": 0, "name": "sky"}]'


@dataclass(frozen=True)
class _Entry:
    """A class in a file: its names, its number (None for its place), colour and whether it is countable."""

    names: tuple[str, ...]
    number: int | None = None
    color: tuple[int, int, int] | None = None
    thing: bool = False


def parse_json(value: Any, name: str) -> Vocabulary:
    """Return the vocabulary that a JSON value describes; see the module's documentation.

    Args:
        value: The value.
        name: Name of the vocabulary if the file has none.

    Raises:
        InputError: It describes none.
    """
    if isinstance(value, Mapping):
        if {"name", "classes", "novel", "things", "templates"} <= set(value):
            return Vocabulary.from_json(value)
        name = value["name"] if isinstance(value.get("name"), str) and value["name"].strip() else name
        things = value.get("panoptic") if isinstance(value.get("panoptic"), Mapping) else {}
        inner = next((value[key] for key in _LIST_KEYS if isinstance(value.get(key), (list, Mapping))), None)
        countable = things.get("things", ()) if isinstance(things, Mapping) else ()
        if inner is None and any(isinstance(each, Mapping) for each in value.values()):
            raise InputError(f"holds no list of classes; {_WRITE}")
        return _make_vocabulary(name, _parse_value(value if inner is None else inner), countable)
    return _make_vocabulary(name, _parse_value(value))


def parse_csv(text: str, name: str, *, delimiter: str = ",") -> Vocabulary:
    """Return the vocabulary of a table of text; see the module's documentation.

    Raises:
        InputError: A line has no name, or a number is missing, no number, or used twice.
    """
    try:
        rows = [
            [cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        ]
    except csv.Error as error:
        raise InputError(f"not a valid table ({error})") from error
    rows = [row for row in rows if any(row) and not row[0].startswith("#")]
    if not rows:
        raise InputError("no class; name at least one")
    head = [cell.casefold() for cell in rows[0]]
    if any(cell in _NAME_KEYS for cell in head) and (len(rows) > 1 or len(head) > 1):
        entries = [_parse_record(dict(zip(head, row, strict=False))) for row in rows[1:]]
    elif all(len(row) > 1 and _NUMBER.fullmatch(row[0]) for row in rows):
        entries = [_Entry(_drop_empty(",".join(row[1:]).split(",")), int(row[0])) for row in rows]
    else:
        entries = [_Entry(_drop_empty(",".join(row).split(","))) for row in rows]
    return _make_vocabulary(name, entries)


def _parse_value(value: Any) -> list[_Entry]:
    if isinstance(value, Mapping):
        return [_parse_pair(key, each) for key, each in value.items()]
    if not isinstance(value, list):
        raise InputError(f"{value!r} is no list of classes; {_WRITE}")
    entries = []
    for number, each in enumerate(value):
        if isinstance(each, Mapping):
            entries.append(_parse_record(each))
        elif isinstance(each, (str, list)):
            entries.append(_Entry(split_synonyms(f"class {number}", each)))
        else:
            raise InputError(f"class {number} is {each!r}; {_WRITE}")
    return entries


def _parse_pair(key: str, value: Any) -> _Entry:
    """Parse an entry of a mapping: number to name, name to number, or name to synonyms."""
    if isinstance(value, bool) or value is None:
        raise InputError(f"{key!r} is {value!r}; map numbers to names, or names to numbers")
    if isinstance(value, int):
        return _Entry(split_synonyms("class", key), value)
    if _NUMBER.fullmatch(key.strip()) and isinstance(value, (str, list)):
        return _Entry(split_synonyms(f"class {key}", value), int(key))
    if isinstance(value, (str, list)):
        others = split_synonyms(f"class {key!r}", value) if value else ()
        return _Entry(tuple(dict.fromkeys((key.strip(), *others))))
    raise InputError(f"{key!r} is {value!r}; map numbers to names, or names to numbers")


def _parse_record(record: Mapping[str, Any]) -> _Entry:
    """Parse an object of JSON or a line of a table with a header."""
    fields = {str(key).casefold(): value for key, value in record.items()}
    found = next((fields[key] for key in _NAME_KEYS if fields.get(key)), None)
    if not isinstance(found, str) or not found.strip():
        raise InputError(f"{dict(record)!r} has no name; give each class a name")
    number = next((fields[key] for key in _NUMBER_KEYS if fields.get(key) not in (None, "")), None)
    if number is not None:
        if isinstance(number, bool) or not _NUMBER.fullmatch(str(number).strip()):
            raise InputError(f"class {found!r} has the number {number!r}; give whole numbers from 0 on")
        number = int(number)
    given = next((fields[key] for key in _SYNONYM_KEYS if fields.get(key)), ())
    others = _drop_empty(re.split("[,;]", given)) if isinstance(given, str) else given
    if not isinstance(others, (list, tuple)) or not all(isinstance(other, str) for other in others):
        raise InputError(f"class {found!r} has the synonyms {given!r}; give a list of names")
    color = next((fields[key] for key in _COLOR_KEYS if isinstance(fields.get(key), (list, tuple))), None)
    if color is None and all(_NUMBER.fullmatch(str(fields.get(key, ""))) for key in "rgb"):
        color = [int(fields[key]) for key in "rgb"]
    names = tuple(dict.fromkeys((*split_synonyms("class", found), *_drop_empty(others))))
    thing = fields.get("isthing") in (1, True, "1", "true")
    return _Entry(names, number, None if color is None else parse_color(color), thing)


def _make_vocabulary(name: str, entries: Sequence[_Entry], things: Any = ()) -> Vocabulary:
    """Return the vocabulary of entries, ordered by their numbers if they have some."""
    numbers = Counter(entry.number for entry in entries)
    if any(number is not None for number in numbers):
        for entry in entries:
            if entry.number is None:
                raise InputError(f"class {entry.names[0]!r} has no number, others have; give all or none")
            if numbers[entry.number] > 1:
                raise InputError(f"the number {entry.number} is used twice; numbers of classes must differ")
        entries = sorted(entries, key=lambda entry: entry.number or 0)
    colors = [entry.color for entry in entries]
    whole = tuple(color for color in colors if color is not None)
    countable = {place for place, entry in enumerate(entries) if entry.thing}
    countable |= {index for index in things if isinstance(index, int) and 0 <= index < len(entries)}
    return Vocabulary.from_names(
        name,
        [list(entry.names) for entry in entries],
        colors=whole if whole and len(whole) == len(colors) else None,
        things=frozenset(countable),
    )


def _drop_empty(cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(cell.strip() for cell in cells if cell.strip()))
