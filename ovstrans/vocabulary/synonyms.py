"""Synonyms of class names from WordNet: GKC's text diversification (arXiv 2303.09181), without a download.

The synonyms come from `wordnet/synonyms.txt`, which covers the classes of COCO, ADE20K, Cityscapes, PASCAL, Mapillary,
LVIS and `scenes`.
"""

from __future__ import annotations

from functools import lru_cache

from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import clean_name
from ovstrans.vocabulary.wordnet import read_lines


def find_synonyms(name: str) -> tuple[str, ...]:
    """Return the cleaned name in lower case, followed by its WordNet synonyms over all its senses.

    A name of several words is looked up as a whole. A name that is not in the file has no synonym but itself.

    Raises:
        InputError: The name is blank.
    """
    cleaned = clean_name(name).strip().lower()
    if not cleaned:
        raise InputError(f"class name {name!r} is blank; a word is needed to look up synonyms")
    return _read_table().get(cleaned, (cleaned,))


@lru_cache(maxsize=1)
def _read_table() -> dict[str, tuple[str, ...]]:
    entries = (tuple(line.split(", ")) for line in read_lines("synonyms.txt"))
    return {entry[0]: entry for entry in entries}
