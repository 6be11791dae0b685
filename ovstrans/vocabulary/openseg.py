"""Class lists as text in the format of OpenSeg (Ghiasi et al., ECCV 2022), which ODISE and FC-CLIP use too.

A line is `ID:name,synonym,...`; a class's index is the rank of its ID, and an ID whose name is
`invalid_class_id` is a hole: no class. Line 0 is a class like any other where it has a name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, count

from ovstrans.errors import InputError

HOLE = "invalid_class_id"
"""Stands for the name of an ID that has no class."""

_LINE = re.compile(r"(\d+)\s*:(.*)")


def is_openseg(lines: Sequence[str]) -> bool:
    """Do these lines, blank ones left out, begin as a list in this format does?"""
    return bool(lines) and _LINE.match(lines[0]) is not None


def parse_openseg(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """The synonyms of each class, in the order of the IDs; blanks around names are trimmed, repeats dropped.

    lines: without blank ones. Raises InputError that names the line where one is not of the format, an
    ID comes twice, a name is empty, or only holes are left.
    """
    found: dict[int, tuple[str, ...]] = {}
    for line in lines:
        parts = _LINE.match(line)
        if parts is None:
            raise InputError(f"line {line!r}: no ID; the first line has one, so write each as ID:name,synonym")
        number, names = int(parts[1]), tuple(dict.fromkeys(name.strip() for name in parts[2].split(",")))
        if number in found:
            raise InputError(f"line {line!r}: ID {number} comes twice; IDs must differ")
        if not all(names):
            raise InputError(f"line {line!r}: an empty name; write ID:name,synonym, or ID:{HOLE} for no class")
        found[number] = names
    classes = [found[number] for number in sorted(found) if found[number] != (HOLE,)]
    if not classes:
        raise InputError("no class; name at least one")
    return classes


def distinct_names(classes: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """A name to show for each class, all different: its first synonym, and another in brackets where others
    share the first, as in `pot (flowerpot)`; a class that has none other stays `pot`, a second one is `pot (2)`."""
    shared = Counter(synonyms[0] for synonyms in classes)
    names: dict[str, None] = {}
    for synonyms in classes:
        first = synonyms[0]
        plurals = (first, f"{first}s", f"{first}es")
        others = [other for other in synonyms[1:] if other not in plurals] if shared[first] > 1 else []
        choices = chain((f"{first} ({other})" for other in others), [first], (f"{first} ({n})" for n in count(2)))
        names[next(name for name in choices if name not in names)] = None
    return tuple(names)
