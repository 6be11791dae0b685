"""Make the extracts of WordNet 3.0 that ship in `ovstrans/vocabulary/wordnet`; the README.md there says from what.

Run as `python -m tests.makers.wordnet --dict FOLDER [--names FILE] [--out FOLDER]`.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ovstrans.datasets.scenes.drawing import SHAPES, STUFF
from ovstrans.errors import InputError
from ovstrans.files import existing_file, write_text
from ovstrans.vocabulary.nouns import detach_endings
from ovstrans.vocabulary.prompts import clean_name
from ovstrans.vocabulary.wordnet import parse_lines
from tests.makers.wordnet_dictionary import ADJECTIVE, ADVERB, NOUN, VERB, WordNet, read_wordnet

SHIPPED = Path(__file__).parents[2] / "ovstrans" / "vocabulary" / "wordnet"
NOTICE = (
    "# Derived from WordNet 3.0 by tests.makers.wordnet; see LICENSE.txt beside this file.\n"
    "# WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved.\n"
)

EVERYDAY = frozenset({6, 11, 13, 15, 17, 18, 19, 25})
"""Topics (lexnames(5WN)) of what a picture can show: artifact, event, food, location, object, person,
phenomenon, shape."""
NATURAL = frozenset({5, 8, 20, 27})
"""The same, natural kinds: animal, body, plant, substance, each with many learned words."""
VISIBLE = EVERYDAY | NATURAL
PERSON = 18
MIN_PART = 3
"""Letters of the shortest word that counts as part of a compound."""
RIVAL = 8
"""A noun is marked with another part of speech that is at least 1/8 as frequent."""
RARE = 40
"""A word that is that many times as often something else is left out of the nouns."""

_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


def class_names(extra: Iterable[str] = ()) -> list[str]:
    """The names to find synonyms of: those of `scenes` and `extra`, cleaned, lower case, sorted."""
    return sorted({clean_name(name).strip().lower() for name in (*SHAPES, *STUFF, *extra)})


def synonym_lines(wordnet: WordNet, names: Iterable[str]) -> list[str]:
    """`name, synonym, ...` for each name that has one: the lemmas of all noun synsets of the name, and of
    what it may be the plural of (GKC's text diversification), in the order of WordNet."""
    lines = []
    for name in names:
        synonyms = {name: None}
        for base in detach_endings(name.replace(" ", "_"), wordnet.exceptions):
            for offset in wordnet.nouns.get(base, ()):
                words = wordnet.synsets[NOUN][offset].words
                synonyms.update(dict.fromkeys(word.replace("_", " ").lower() for word in words if "," not in word))
        if len(synonyms) > 1:
            lines.append(", ".join(synonyms))
    return lines


def noun_lines(wordnet: WordNet, names: Iterable[str]) -> list[str]:
    """`noun` or `noun MARKS`: the single words that a caption may use as nouns.

    Taken are words that were tagged as a noun (once is enough for what can be seen, twice for the rest)
    and, since most words were never met in the tagged text, words of class names, and words for what can be
    seen that WordNet uses to explain another word (two others for a natural kind), that are made of
    two words taken (cupcake), or that are people named after one (surf, surfer).

    MARKS: v, a for what the word also is, a verb or an adjective or adverb; V, A where it is that more often.
    """
    used = _words_of_glosses(wordnet)
    named = {word for name in names for word in name.split()}
    common = {word for synset in wordnet.synsets[NOUN].values() for word in synset.words}  # in lower case: not Paris,
    words = {word for word in common | named if _WORD.fullmatch(word) and word in wordnet.nouns}  # but Frisbee, a class
    topics = {word: [wordnet.synsets[NOUN][offset].topic for offset in wordnet.nouns[word]] for word in words}
    taken = {word for word in words if _taken(topics[word], wordnet.tags[NOUN][word], word in named, used[word])}
    compounds = {
        word
        for word in words
        if topics[word][0] in EVERYDAY
        and any(word[:cut] in taken and word[cut:] in taken for cut in range(MIN_PART, len(word) - MIN_PART + 1))
    }
    people = {word for word in words if PERSON in topics[word] and not taken.isdisjoint(_stems(word, "er"))}
    taken |= compounds | people
    taken = {word for word in taken if not _rarely_noun(wordnet, word)}
    marks = {word: _marks(wordnet, word, topics[word][0]) for word in taken}
    return [f"{word} {marks[word]}".rstrip() for word in sorted(taken) if not _is_just_plural(wordnet, word, marks)]


def plural_lines(wordnet: WordNet, nouns: Iterable[str]) -> list[str]:
    """`plural singular` for each irregular plural of the nouns that neither the rules nor the nouns themselves tell."""
    known = set(nouns)
    lines = []
    for form, bases in sorted(wordnet.exceptions.items()):
        singular = next((base for base in bases if base in known), None)
        regular = next((base for base in detach_endings(form, {}) if base in known), None)  # itself, where it is a noun
        if singular is not None and singular != regular:
            lines.append(f"{form} {singular}")
    return lines


def make(dict_folder: Path | str, names: Iterable[str], out: Path | str) -> None:
    """Write synonyms.txt, nouns.txt and plurals.txt into the folder `out`."""
    wordnet = read_wordnet(dict_folder)
    wanted = class_names(names)
    nouns = noun_lines(wordnet, wanted)
    plurals = plural_lines(wordnet, (line.split()[0] for line in nouns))
    for file, lines in (("synonyms", synonym_lines(wordnet, wanted)), ("nouns", nouns), ("plurals", plurals)):
        write_text(Path(out) / f"{file}.txt", NOTICE + "".join(f"{line}\n" for line in lines))


def _taken(topics: list[int], tags: int, named: bool, used: int) -> bool:
    if named:
        return True
    if VISIBLE.isdisjoint(topics):
        return tags >= 2
    return tags >= 1 or used >= (2 if EVERYDAY.isdisjoint(topics) else 1)


def _words_of_glosses(wordnet: WordNet) -> Counter[str]:
    """In how many glosses of other words each word stands."""
    used: Counter[str] = Counter()
    for synsets in wordnet.synsets.values():
        for synset in synsets.values():
            used.update(set(_WORD.findall(synset.gloss)).difference(synset.words))
    return used


def _uses(wordnet: WordNet, word: str, *parts: str) -> int:
    """How often a word is a certain part of speech: tags, and senses beside them, as most words lack tags."""
    return max(wordnet.tags[part][word] + wordnet.senses[part].get(word, 0) for part in parts)


def _rarely_noun(wordnet: WordNet, word: str) -> bool:
    other = _uses(wordnet, word, VERB, ADJECTIVE, ADVERB)
    return len(word) == 1 or other > RARE * _uses(wordnet, word, NOUN)


def _marks(wordnet: WordNet, word: str, topic: int) -> str:
    noun, verb = _uses(wordnet, word, NOUN), _uses(wordnet, word, VERB)
    if topic not in VISIBLE and any(stem in wordnet.senses[VERB] for stem in _stems(word, "ing")):
        verb = max(verb, noun + 1)  # riding, sitting: in a caption a form of the verb. Not building, ceiling.
    rivals = (("a", _uses(wordnet, word, ADJECTIVE, ADVERB)), ("v", verb))
    return "".join(letter.upper() if uses > noun else letter for letter, uses in rivals if uses * RIVAL >= noun)


def _is_just_plural(wordnet: WordNet, word: str, marks: Mapping[str, str]) -> bool:
    """Whether a noun is first of all the plural of another: eggs, not stairs; nor shorts, as short describes."""
    uses = _uses(wordnet, word, NOUN)
    singulars = detach_endings(word, wordnet.exceptions)[1:]
    return any("A" not in marks.get(base, "A") and _uses(wordnet, base, NOUN) > uses for base in singulars)


def _stems(word: str, ending: str) -> set[str]:
    """What `word` may be made from by `ending`: riding from rid, ride; runner from runn, run, runne."""
    if not word.endswith(ending):
        return set()
    stem = word.removesuffix(ending)
    doubled = len(stem) > 1 and stem[-1] == stem[-2]
    return {stem, stem + "e"} | ({stem[:-1]} if doubled else set())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; wrong input ends in one line and exit status 2."""
    parser = argparse.ArgumentParser("python -m tests.makers.wordnet", description="Make the extracts of WordNet.")
    parser.add_argument("--dict", required=True, metavar="FOLDER", help="the database: index.noun, data.noun, ...")
    parser.add_argument("--names", default=SHIPPED / "names.txt", metavar="FILE", help="class names, one a line")
    parser.add_argument("--out", default=SHIPPED, metavar="FOLDER", help="where to write (default: where they ship)")
    options = parser.parse_args(arguments)
    try:
        make(options.dict, parse_lines(existing_file(options.names).read_text(encoding="utf-8")), options.out)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
