"""The classes to tell apart in images: parsing a user's class names, and which of them are countable."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ovstrans.datasets.catalog import find_vocabulary
from ovstrans.errors import InputError, did_you_mean
from ovstrans.vocabulary.vocabulary import Vocabulary, generate_colors

ClassNames = str | Sequence[str]
"""Class names, separated by commas or in a list."""

_NAMED = 6
_COLORS = 48
"""Number of colours that names choose from."""


def choose_vocabulary(classes: ClassNames | None, vocabulary: Vocabulary | str | None) -> Vocabulary | None:
    """Return the vocabulary that a user asks for; None if neither is given.

    Args:
        classes: As for `parse_classes`.
        vocabulary: A vocabulary, the name of a published one, or a file of class names.

    Raises:
        InputError: If both are given, or one is not valid.
    """
    if classes is not None and vocabulary is not None:
        raise InputError("`classes` and `vocabulary`: give one of them")
    if classes is not None:
        return parse_classes(classes)
    return find_vocabulary(vocabulary) if isinstance(vocabulary, str) else vocabulary


def parse_classes(classes: ClassNames) -> Vocabulary:
    """Return the vocabulary of a list of class names.

    Args:
        classes: Names separated by commas, such as "road, pavement, a red car"; or a list of names. In a list, a name
            may be followed by synonyms: ["road", "car, automobile"].

    Raises:
        InputError: If there is no name, an empty one, or one twice (whatever its case).
    """
    if isinstance(classes, str):
        given, entries = f"`classes={classes}`", classes.split(",")
    else:
        given, entries = "`classes`", list(classes)
    names = [" ".join(entry.split()) if isinstance(entry, str) else "" for entry in entries]
    if not any(names):
        raise InputError(f'{given}: names no class; write for instance "road, pavement, a red car"')
    for number, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"{given}: class {number} is empty; name it, or take it out")
        if name.casefold() in (other.casefold() for other in names[: number - 1]):
            raise InputError(f"{given}: {name!r} is named twice; class names must differ")
    return Vocabulary.from_names("classes", names)


def share_colors(vocabulary: Vocabulary, trained: Vocabulary) -> Vocabulary:
    """Give the classes of a vocabulary without colours those that they have in other pictures.

    A class that the training knew by the same name has its colour of the training. The colour of another depends on its
    name, so that it stays the same whatever classes stand beside it; where two would have one colour, the later takes
    the next that is free.
    """
    if vocabulary.colors is not None or vocabulary is trained:
        return vocabulary
    of_training, palette = _index_by_name(trained), trained.palette().tolist()
    known = [of_training.get(name.casefold()) for name in vocabulary.names]
    colors: list[tuple[int, int, int] | None] = [None if index is None else tuple(palette[index]) for index in known]
    choices = [tuple(color) for color in generate_colors(max(_COLORS, 2 * len(vocabulary))).tolist()]
    taken = {color for color in colors if color is not None}
    for number, name in enumerate(vocabulary.names):
        if colors[number] is None:
            start = int.from_bytes(hashlib.sha256(name.casefold().encode()).digest()[:4], "big") % _COLORS
            free = next((color for color in choices[start:] + choices[:start] if color not in taken), choices[start])
            colors[number] = free
            taken.add(free)
    return replace(vocabulary, colors=tuple(color for color in colors if color is not None))


@dataclass(frozen=True)
class ThingClasses:
    """Indices of the countable classes.

    Attributes:
        panoptic: Things in panoptic segmentation.
        instances: Things in instance segmentation.
        unknown: Classes of which nothing says whether they are countable. They are stuff in `panoptic` and things in
            `instances`.
    """

    panoptic: frozenset[int]
    instances: frozenset[int]
    unknown: tuple[int, ...] = ()


def find_things(vocabulary: Vocabulary, trained: Vocabulary, things: ClassNames | None = None) -> ThingClasses:
    """Determine which classes are countable.

    Args:
        vocabulary: The classes.
        trained: The vocabulary of the training.
        things: Names of the countable classes, in any case. None takes the things of `vocabulary`; if it has none,
            those that `trained` knows by the same name.

    Raises:
        InputError: If `things` names what is not a class.
    """
    if things is not None:
        found = frozenset(_find_classes(vocabulary, things))
        return ThingClasses(found, found)
    if vocabulary.things:
        return ThingClasses(vocabulary.things, vocabulary.things)
    known = {name: index in trained.things for name, index in _index_by_name(trained).items()} if trained.things else {}
    is_thing: dict[int, bool | None] = dict.fromkeys(range(len(vocabulary)))
    for name, index in _index_by_name(vocabulary).items():
        if is_thing[index] is None:
            is_thing[index] = known.get(name)
    certain = frozenset(index for index, thing in is_thing.items() if thing)
    unknown = tuple(index for index, thing in is_thing.items() if thing is None)
    return ThingClasses(certain, certain | set(unknown), unknown)


def describe_unknown(vocabulary: Vocabulary, things: ThingClasses, *, panoptic: bool, instances: bool) -> str:
    """Return a notice about the classes of which nothing says whether they are countable; "" if there are none.

    Args:
        vocabulary: The classes.
        things: The countable ones among them.
        panoptic: Panoptic segments were asked for.
        instances: Instances were asked for.
    """
    if not things.unknown:
        return ""
    names = ", ".join(repr(vocabulary.names[index]) for index in things.unknown[:_NAMED])
    more = f" and {len(things.unknown) - _NAMED} more" if len(things.unknown) > _NAMED else ""
    ways = ["as stuff for panoptic segments (one segment a class)"] if panoptic else []
    ways += ["as things for instances"] if instances else []
    return f"{names}{more}: not known whether countable; taken {' and '.join(ways)}; `things` chooses"


def _find_classes(vocabulary: Vocabulary, things: ClassNames) -> list[int]:
    known, found = _index_by_name(vocabulary), []
    for entry in things.split(",") if isinstance(things, str) else things:
        name = " ".join(entry.split())
        if name.casefold() not in known:
            hint = did_you_mean(name.casefold(), known).strip() or "write it as the classes are written"
            raise InputError(f"`things`: {name!r} is none of the {len(vocabulary)} classes; {hint}")
        found.append(known[name.casefold()])
    return found


def _index_by_name(vocabulary: Vocabulary) -> dict[str, int]:
    """Map display names and synonyms, casefolded, to class indices; the first class of a name that several have."""
    names: dict[str, int] = {}
    for index, name in enumerate(vocabulary.names):
        names.setdefault(name.casefold(), index)
    for index, synonyms in enumerate(vocabulary.classes):
        for synonym in synonyms:
            names.setdefault(synonym.casefold(), index)
    return names
