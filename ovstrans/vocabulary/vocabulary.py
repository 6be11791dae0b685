"""Vocabularies: the classes a dataset labels and a model names.

A class is a tuple of synonyms, the first of which is its display name; its index is its place in the
list. A vocabulary written by a user is a text file (one class a line, synonyms separated by commas,
`#` starts a comment), a text file in OpenSeg's format (`ID:name,synonym`, see `openseg`) or a TOML file:

    name = "street"                         # optional; the file's name otherwise
    classes = ["sky", "car, automobile", ["person", "pedestrian"]]
    plain = ["sky", "vehicle-other", "person"]   # optional: what the dataset's authors call the classes,
                                            # commas and all; a list where they have several names
    display = ["sky", "car", "person"]      # optional: what reports call the classes, all different
    novel = ["car"]                         # optional: never labelled in training
    things = ["car", "person"]              # optional: countable
    templates = ["a photo of a {}."]        # optional: prompts
    colors = [[70, 130, 180], ...]          # optional: one RGB colour a class

Shapes: `K` classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ovstrans.errors import InputError, did_you_mean
from ovstrans.files import existing_file
from ovstrans.vocabulary.openseg import distinct_names, is_openseg, parse_openseg
from ovstrans.vocabulary.palette import distinct_colors
from ovstrans.vocabulary.toml_tables import naming, read_toml, refuse_unknown

VOCABULARY_KEYS = ("name", "classes", "plain", "display", "novel", "things", "templates", "colors")
"""The keys of a vocabulary table, in a file of its own or in a dataset's."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a dataset or a model, in index order.

    name: what reports call it.
    classes: per class the synonyms that go into prompts. May be empty (unlabelled images).
    novel: indices of the classes that segmentation training never labels.
    things: indices of the countable classes; the others are stuff.
    templates: prompts with `{}` for the synonym.
    colors: one RGB colour a class, 0..255; None generates distinct ones.
    plain: per class the names that the dataset's authors gave it; None where `classes` are those.
    display: one name a class for reports and legends, all different; None takes the first synonyms.

    Raises InputError where an entry is empty, repeated, out of range or of the wrong length.
    """

    name: str
    classes: tuple[tuple[str, ...], ...]
    novel: frozenset[int] = frozenset()
    things: frozenset[int] = frozenset()
    templates: tuple[str, ...] = ("{}",)
    colors: tuple[tuple[int, int, int], ...] | None = None
    plain: tuple[tuple[str, ...], ...] | None = None
    display: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_names(self.classes, "class")
        self._check_names(self.plain or (), "plain class")
        for kind, indices in (("novel", self.novel), ("things", self.things)):
            for index in sorted(indices):
                if not 0 <= index < len(self.classes):
                    raise InputError(f"vocabulary {self.name}: {kind} class {index}, of {len(self.classes)} classes")
        if not self.templates:
            raise InputError(f"vocabulary {self.name}: templates is empty; leave it out for the bare class name")
        for template in self.templates:
            if "{}" not in template:
                raise InputError(f"vocabulary {self.name}: template {template!r} has no {{}} for the class name")
        for kind, each in (("colors", self.colors), ("plain names", self.plain), ("display names", self.display)):
            if each is not None and len(each) != len(self.classes):
                raise InputError(f"vocabulary {self.name}: {len(each)} {kind} for {len(self.classes)} classes; match")
        for name, times in Counter(self.display or ()).items():
            if times > 1 or not name.strip():
                fault = "is used twice; display names must differ" if name.strip() else "is empty"
                raise InputError(f"vocabulary {self.name}: display name {name!r} {fault}")

    def _check_names(self, classes: Sequence[Sequence[str]], kind: str) -> None:
        for index, synonyms in enumerate(classes):
            if isinstance(synonyms, str):
                raise InputError(f"vocabulary {self.name}: {kind} {index} is a string; a tuple of synonyms is needed")
            if not synonyms or not all(synonym.strip() for synonym in synonyms):
                raise InputError(f"vocabulary {self.name}: {kind} {index} has an empty name")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """The display names, in index order."""
        return self.display or tuple(synonyms[0] for synonyms in self.classes)

    @property
    def base(self) -> frozenset[int]:
        """Indices of the classes that are not novel."""
        return frozenset(range(len(self.classes))) - self.novel

    def subset(self, classes: Sequence[int]) -> Vocabulary:
        """The vocabulary of some classes, by index and in that order."""
        place = {old: new for new, old in enumerate(classes)}
        return replace(
            self,
            classes=tuple(self.classes[index] for index in classes),
            novel=frozenset(place[index] for index in self.novel if index in place),
            things=frozenset(place[index] for index in self.things if index in place),
            colors=None if self.colors is None else tuple(self.colors[index] for index in classes),
            plain=None if self.plain is None else tuple(self.plain[index] for index in classes),
            display=None if self.display is None else tuple(self.display[index] for index in classes),
        )

    def palette(self) -> np.ndarray:
        """RGB colours, uint8 [K, 3]; a generated colour depends on the index alone."""
        if self.colors is not None:
            return np.array(self.colors, dtype=np.uint8).reshape(-1, 3)
        return distinct_colors(len(self.classes))

    def to_json(self) -> dict[str, Any]:
        """A plain table that `json` can write; `from_json` reads it back."""
        table: dict[str, Any] = {
            "name": self.name,
            "classes": [list(synonyms) for synonyms in self.classes],
            "novel": sorted(self.novel),
            "things": sorted(self.things),
            "templates": list(self.templates),
            "colors": None if self.colors is None else [list(color) for color in self.colors],
        }
        if self.plain is not None:
            table["plain"] = [list(names) for names in self.plain]
        if self.display is not None:
            table["display"] = list(self.display)
        return table

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that `to_json` described; InputError where the table is not one."""
        try:
            colors, plain, display = value.get("colors"), value.get("plain"), value.get("display")
            return cls(
                name=str(value["name"]),
                classes=tuple(tuple(str(synonym) for synonym in synonyms) for synonyms in value["classes"]),
                novel=frozenset(int(index) for index in value.get("novel", ())),
                things=frozenset(int(index) for index in value.get("things", ())),
                templates=tuple(str(template) for template in value.get("templates", ("{}",))),
                colors=None if colors is None else tuple(_color(color) for color in colors),
                plain=None if plain is None else tuple(tuple(str(name) for name in names) for names in plain),
                display=None if display is None else tuple(str(name) for name in display),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not a vocabulary ({type(error).__name__}: {error})") from error

    @classmethod
    def from_names(cls, name: str, names: Iterable[str | Sequence[str]], **fields: Any) -> Vocabulary:
        """A vocabulary from class names: each a string with comma-separated synonyms, or a list.

        Two classes may begin with the same synonym where `display` tells them apart. Raises InputError
        where there is none, one is empty, or two classes share a display name.
        """
        classes = tuple(_synonyms(name, entry) for entry in names)
        if not classes:
            raise InputError(f"{name}: no class; name at least one")
        if fields.get("display") is None:
            for display, times in Counter(synonyms[0] for synonyms in classes).items():
                if times > 1:
                    raise InputError(f"{name}: class {display!r} is named twice; class names must differ")
        return cls(name=name, classes=classes, **fields)


def load_vocabulary(path: Path | str) -> Vocabulary:
    """A user's vocabulary file, `.toml` or text; see the module's text for the formats.

    In OpenSeg's format classes that begin with the same synonym are displayed by another one as well.
    """
    path = existing_file(path)
    if path.suffix == ".toml":
        return parse_vocabulary(read_toml(path), where=str(path), name=path.stem)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file; give one class a line") from error
    entries = [entry for line in lines if (entry := line.partition("#")[0].strip())]
    with naming(path):
        if not is_openseg(entries):
            return Vocabulary.from_names(path.stem, entries)
        classes = parse_openseg(entries)
        names = distinct_names(classes)
        same = names == tuple(synonyms[0] for synonyms in classes)
        return Vocabulary(path.stem, tuple(classes), display=None if same else names)


def parse_vocabulary(table: Mapping[str, Any], *, where: str, name: str) -> Vocabulary:
    """The vocabulary in a TOML table; `where` is named in errors, `name` stands in for a missing one."""
    refuse_unknown(table, VOCABULARY_KEYS, where)
    classes = table.get("classes")
    if not isinstance(classes, list) or not classes:
        raise InputError(f'{where}: classes is missing or empty; write classes = ["sky", "car, automobile"]')
    with naming(where):
        display = tuple(_strings(table["display"], "display")) if "display" in table else None
        bare = Vocabulary.from_names(str(table.get("name", name)), classes, display=display)
        index = {display: number for number, display in enumerate(bare.names)}
        colors = table.get("colors")
        if colors is not None and not isinstance(colors, list):
            raise InputError(f"colors: a list of RGB colours is needed, not {colors!r}")
        return replace(
            bare,
            plain=_plain(table["plain"]) if "plain" in table else None,
            novel=_indices(table.get("novel", []), index, "novel"),
            things=_indices(table.get("things", []), index, "things"),
            templates=tuple(_strings(table.get("templates", ["{}"]), "templates")),
            colors=None if colors is None else tuple(_color(color) for color in colors),
        )


def _synonyms(where: str, entry: Any) -> tuple[str, ...]:
    parts = entry.split(",") if isinstance(entry, str) else entry
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise InputError(f"{where}: class {entry!r} is neither a name nor a list of synonyms")
    synonyms = tuple(part.strip() for part in parts)
    if not synonyms or not all(synonyms):
        raise InputError(f"{where}: class {entry!r} has an empty name")
    return synonyms


def _plain(entries: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(entries, list):
        raise InputError(f"plain: a list of names is needed, not {entries!r}")
    return tuple((entry.strip(),) if isinstance(entry, str) else _synonyms("plain", entry) for entry in entries)


def _indices(entries: Any, index: Mapping[str, int], key: str) -> frozenset[int]:
    for entry in _strings(entries, key):
        if entry not in index:
            hint = did_you_mean(entry, index).strip() or "write it as in classes, first synonym"
            raise InputError(f"{key}: {entry!r} is not among the classes; {hint}")
    return frozenset(index[entry] for entry in entries)


def _strings(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{key}: a list of strings is needed, not {value!r}")
    return value


def _color(value: Any) -> tuple[int, int, int]:
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 3
        or not all(isinstance(part, int) and 0 <= part <= 255 for part in value)
    ):
        raise InputError(f"color {value!r}: three whole numbers from 0 to 255 are needed")
    return (value[0], value[1], value[2])
