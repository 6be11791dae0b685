"""Reader of the WordNet database as Princeton distributes it (formats: wndb(5WN), cntlist(5WN)).

It reads the nouns with their synsets (`index.noun`, `data.noun`) and irregular plurals (`noun.exc`); the number of
senses (`index.*`) and the glosses (`data.*`) of all parts of speech; and how often each word was tagged in texts
(`cntlist.rev`).
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
    """A set of words with the same meaning.

    Attributes:
        topic: Number of its lexicographer file (lexnames(5WN)).
        words: The words as written, with `_` for a space.
        gloss: Its definition.
    """

    topic: int
    words: tuple[str, ...]
    gloss: str


@dataclass(frozen=True)
class WordNet:
    """The database. Lemmas are in lower case, with `_` for a space.

    Attributes:
        synsets: Synsets of each part of speech by offset.
        nouns: Offsets of the synsets of each noun, the most frequent first.
        senses: Number of senses of each lemma, by part of speech.
        tags: How often each lemma was tagged, by part of speech.
        exceptions: Singulars of irregular plurals.
    """

    synsets: dict[str, dict[str, Synset]]
    nouns: dict[str, tuple[str, ...]]
    senses: dict[str, dict[str, int]]
    tags: dict[str, Counter[str]]
    exceptions: dict[str, tuple[str, ...]]


def read_wordnet(folder: Path | str) -> WordNet:
    """Read the database files in a folder.

    Raises:
        InputError: A file is missing, a line is not in the format, or an index names a synset that does not exist.
    """
    folder = Path(folder)
    synsets = {part: dict(_read_entries(folder / f"data.{part}", _parse_synset)) for part in PARTS}
    index = {part: dict(_read_entries(folder / f"index.{part}", _parse_index_entry)) for part in PARTS}
    for part, entries in index.items():
        for lemma, offsets in entries.items():
            for offset in offsets:
                if offset not in synsets[part]:
                    raise InputError(f"{folder}: index.{part} has {lemma} in synset {offset}, which data.{part} lacks")
    tags: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    for part, lemma, count in _read_entries(folder / "cntlist.rev", _parse_tag_count):
        tags[part][lemma] += count
    senses = {part: {lemma: len(offsets) for lemma, offsets in entries.items()} for part, entries in index.items()}
    exceptions = dict(_read_entries(folder / "noun.exc", _parse_exception))
    return WordNet(synsets, index[NOUN], senses, tags, exceptions)


def _read_entries(path: Path, parse: Callable[[str], Entry]) -> Iterator[Entry]:
    """Yield the entries of a file, one per line; the licence at the top is indented."""
    with existing_file(path).open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip() or line.startswith(" "):
                continue
            try:
                yield parse(line)
            except (ValueError, IndexError, KeyError) as error:
                raise InputError(f"{path}: line {number} is not in the format of a WordNet database") from error


def _parse_synset(line: str) -> tuple[str, Synset]:
    """Parse `OFFSET TOPIC n WORDS(hex) word id word id ... POINTERS ... | gloss`."""
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    count = int(fields[3], 16)
    if len(fields) < 5 + 2 * count:
        raise ValueError
    return fields[0], Synset(int(fields[1]), tuple(fields[4 : 4 + 2 * count : 2]), gloss.strip())


def _parse_index_entry(line: str) -> tuple[str, tuple[str, ...]]:
    """Parse `lemma n SYNSETS POINTERS pointer ... SENSES TAGGED offset offset ...`."""
    fields = line.split()
    count = int(fields[2])
    if not 0 < count <= len(fields) - 6:
        raise ValueError
    return fields[0], tuple(fields[-count:])


def _parse_tag_count(line: str) -> tuple[str, str, int]:
    """Parse `lemma%TYPE:TOPIC:ID:head:id SENSE COUNT`."""
    key, _, count = line.split()
    lemma, _, rest = key.rpartition("%")
    return _OF_SENSE_KEY[rest[0]], lemma, int(count)


def _parse_exception(line: str) -> tuple[str, tuple[str, ...]]:
    """Parse `plural singular ...`."""
    form, *bases = line.split()
    if not bases:
        raise ValueError
    return form, tuple(bases)
