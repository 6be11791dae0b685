"""Other names of a class, from WordNet: GKC's text diversification (arXiv 2303.09181), offline.

The names are looked up in a file made beforehand, `wordnet/synonyms.txt`, which covers the classes of
COCO, ADE20K, Cityscapes, PASCAL, Mapillary, LVIS and `scenes`.
"""

from __future__ import annotations

from functools import lru_cache

from ovstrans.errors import InputError
from ovstrans.vocabulary.class_names import clean_name
from ovstrans.vocabulary.wordnet import read_lines


def synonyms(name: str) -> tuple[str, ...]:
    """The cleaned name in lower case, then its WordNet synonyms over all its senses.

    A name of several words is looked up whole. A name that the file lacks has no synonym but itself.
    Raises InputError for a blank name.
    """
    cleaned = clean_name(name).strip().lower()
    if not cleaned:
        raise InputError(f"class name {name!r} is blank; a word is needed to find synonyms of")
    return _table().get(cleaned, (cleaned,))


@lru_cache(maxsize=1)
def _table() -> dict[str, tuple[str, ...]]:
    entries = (tuple(line.split(", ")) for line in read_lines("synonyms.txt"))
    return {entry[0]: entry for entry in entries}
