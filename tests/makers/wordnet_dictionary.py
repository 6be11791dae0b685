"""The WordNet database as Princeton distributes it (formats: wndb(5WN), cntlist(5WN)), its nouns above all.

Read are the nouns with their synsets (`index.noun`, `datasets.noun`) and irregular plurals (`noun.exc`); of the other
parts of speech how many senses each word has (`index.*`) and the glosses (`data.*`); and how often each
word was met in tagged text (`cntlist.rev`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ovstrans.errors import InputError
from ovstrans.files import existing_file

NOUN, VERB, ADJECTIVE, ADVERB = "noun", "verb", "adj", "adv"
PARTS = (NOUN, VERB, ADJECTIVE, ADVERB)
_OF_SENSE_KEY = {"1": NOUN, "2": VERB, "3": ADJECTIVE, "4": ADVERB, "5": ADJECTIVE}

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Synset:
    """topic: number of the lexicographer's file (lexnames(5WN)).  words: as written, `_` for a space."""

    topic: int
    words: tuple[str, ...]
    gloss: str


@dataclass(frozen=True)
class WordNet:
    """synsets: of each part of speech, by offset.  nouns: offsets of each lemma's synsets, the most frequent first.
    senses, tags: per part of speech, senses of each lemma and how often they were tagged.
    exceptions: irregular plurals.  Lemmas are lower case, `_` for a space."""

    synsets: dict[str, dict[str, Synset]]
    nouns: dict[str, tuple[str, ...]]
    senses: dict[str, dict[str, int]]
    tags: dict[str, Counter[str]]
    exceptions: dict[str, tuple[str, ...]]


def read_wordnet(folder: Path | str) -> WordNet:
    """Read the database files in `folder`.

    Raises InputError that names a file that is missing, a line that is not of its format, or a synset that
    an index names and the data lack.
    """
    folder = Path(folder)
    synsets = {part: dict(_read(folder / f"data.{part}", _synset)) for part in PARTS}
    index = {part: dict(_read(folder / f"index.{part}", _index_entry)) for part in PARTS}
    for part, entries in index.items():
        for lemma, offsets in entries.items():
            for offset in offsets:
                if offset not in synsets[part]:
                    raise InputError(f"{folder}: index.{part} has {lemma} in synset {offset}, which data.{part} lacks")
    tags: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    for part, lemma, count in _read(folder / "cntlist.rev", _tag_count):
        tags[part][lemma] += count
    senses = {part: {lemma: len(offsets) for lemma, offsets in entries.items()} for part, entries in index.items()}
    exceptions = dict(_read(folder / "noun.exc", _exception))
    return WordNet(synsets, index[NOUN], senses, tags, exceptions)


def _read(path: Path, parse: Callable[[str], Entry]) -> Iterator[Entry]:
    """The entries of a file, whose lines are all but the licence, which is indented."""
    with existing_file(path).open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip() or line.startswith(" "):
                continue
            try:
                yield parse(line)
            except (ValueError, IndexError, KeyError) as error:
                raise InputError(f"{path}: line {number} is not in the format of a WordNet database") from error


def _synset(line: str) -> tuple[str, Synset]:
    """`OFFSET TOPIC n WORDS(hex) word id word id ... POINTERS ... | gloss`."""
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    count = int(fields[3], 16)
    if len(fields) < 5 + 2 * count:
        raise ValueError
    return fields[0], Synset(int(fields[1]), tuple(fields[4 : 4 + 2 * count : 2]), gloss.strip())


def _index_entry(line: str) -> tuple[str, tuple[str, ...]]:
    """`lemma n SYNSETS POINTERS pointer ... SENSES TAGGED offset offset ...`."""
    fields = line.split()
    count = int(fields[2])
    if not 0 < count <= len(fields) - 6:
        raise ValueError
    return fields[0], tuple(fields[-count:])


def _tag_count(line: str) -> tuple[str, str, int]:
    """`lemma%TYPE:TOPIC:ID:head:id SENSE COUNT`."""
    key, _, count = line.split()
    lemma, _, rest = key.rpartition("%")
    return _OF_SENSE_KEY[rest[0]], lemma, int(count)


def _exception(line: str) -> tuple[str, tuple[str, ...]]:
    """`plural singular ...`."""
    form, *bases = line.split()
    if not bases:
        raise ValueError
    return form, tuple(bases)
