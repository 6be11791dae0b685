"""Make the extracts of WordNet 3.0 that are shipped in `ovstrans/vocabulary/wordnet`; see the README.md there.

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
from ovstrans.vocabulary.vocabulary import clean_name
from ovstrans.vocabulary.wordnet import parse_lines
from tests.makers.wordnet_dictionary import ADJECTIVE, ADVERB, NOUN, VERB, WordNet, read_wordnet

SHIPPED = Path(__file__).parents[2] / "ovstrans" / "vocabulary" / "wordnet"
NOTICE = (
    "# Derived from WordNet 3.0 by tests.makers.wordnet; see LICENSE.txt beside this file.\n"
    "# WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved.\n"
)

EVERYDAY = frozenset({6, 11, 13, 15, 17, 18, 19, 25})
"""Numbers of the lexicographer files (lexnames(5WN)) with words for what a picture can show: artifact, event, food,
location, object, person, phenomenon, shape."""
NATURAL = frozenset({5, 8, 20, 27})
"""The same for natural kinds: animal, body, plant, substance. These hold many words that only experts use."""
VISIBLE = EVERYDAY | NATURAL
PERSON = 18
MIN_PART = 3
"""Letters of the shortest word that may be part of a compound."""
RIVAL = 8
"""A noun is marked as another part of speech, too, if it is that at least 1/8 as often."""
RARE = 40
"""A word that is another part of speech more than this many times as often is not listed as a noun."""

_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


def class_names(extra: Iterable[str] = ()) -> list[str]:
    """Return the class names to find synonyms of: those of `scenes` and `extra`, cleaned, in lower case, sorted."""
    return sorted({clean_name(name).strip().lower() for name in (*SHAPES, *STUFF, *extra)})


def synonym_lines(wordnet: WordNet, names: Iterable[str]) -> list[str]:
    """Return a line `name, synonym, ...` for each name that has synonyms.

    These are the lemmas of all noun synsets of the name and of its singular, in WordNet's order, as in GKC's text
    diversification.
    """
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
    """Return a line `noun` or `noun MARKS` for each single word that a caption may use as a noun.

    Listed are words that were tagged as a noun: once for words of visible things, else twice. As most words do not
    occur in the tagged texts, these are listed, too: words of class names; words of visible things that the gloss of
    another word uses (of two others for natural kinds); compounds of two listed words (cupcake); and persons named
    after a listed word (surf, surfer).

    MARKS tell what the word can be besides: `v` a verb, `a` an adjective or adverb; `V` and `A` if it is that more
    often than a noun.
    """
    used = _words_of_glosses(wordnet)
    named = {word for name in names for word in name.split()}
    common = {word for synset in wordnet.synsets[NOUN].values() for word in synset.words}  # not Paris,
    words = {word for word in common | named if _WORD.fullmatch(word) and word in wordnet.nouns}  # but frisbee
    topics = {word: [wordnet.synsets[NOUN][offset].topic for offset in wordnet.nouns[word]] for word in words}
    taken = {word for word in words if _is_listed(topics[word], wordnet.tags[NOUN][word], word in named, used[word])}
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
    """Return a line `plural singular` for each irregular plural of `nouns` that the rules do not find."""
    known = set(nouns)
    lines = []
    for form, bases in sorted(wordnet.exceptions.items()):
        singular = next((base for base in bases if base in known), None)
        regular = next((base for base in detach_endings(form, {}) if base in known), None)  # itself, where it is a noun
        if singular is not None and singular != regular:
            lines.append(f"{form} {singular}")
    return lines


def make(dict_folder: Path | str, names: Iterable[str], out: Path | str) -> None:
    """Write synonyms.txt, nouns.txt and plurals.txt.

    Args:
        dict_folder: Folder of the WordNet database.
        names: Class names to find synonyms of.
        out: Folder to write to.
    """
    wordnet = read_wordnet(dict_folder)
    wanted = class_names(names)
    nouns = noun_lines(wordnet, wanted)
    plurals = plural_lines(wordnet, (line.split()[0] for line in nouns))
    for file, lines in (("synonyms", synonym_lines(wordnet, wanted)), ("nouns", nouns), ("plurals", plurals)):
        write_text(Path(out) / f"{file}.txt", NOTICE + "".join(f"{line}\n" for line in lines))


def _is_listed(topics: list[int], tags: int, named: bool, used: int) -> bool:
    if named:
        return True
    if VISIBLE.isdisjoint(topics):
        return tags >= 2
    return tags >= 1 or used >= (2 if EVERYDAY.isdisjoint(topics) else 1)


def _words_of_glosses(wordnet: WordNet) -> Counter[str]:
    """Count in how many glosses of other words each word occurs."""
    used: Counter[str] = Counter()
    for synsets in wordnet.synsets.values():
        for synset in synsets.values():
            used.update(set(_WORD.findall(synset.gloss)).difference(synset.words))
    return used


def _uses(wordnet: WordNet, word: str, *parts: str) -> int:
    """Estimate how often a word is one of some parts of speech: number of tags plus senses, as most have no tags."""
    return max(wordnet.tags[part][word] + wordnet.senses[part].get(word, 0) for part in parts)


def _rarely_noun(wordnet: WordNet, word: str) -> bool:
    other = _uses(wordnet, word, VERB, ADJECTIVE, ADVERB)
    return len(word) == 1 or other > RARE * _uses(wordnet, word, NOUN)


def _marks(wordnet: WordNet, word: str, topic: int) -> str:
    noun, verb = _uses(wordnet, word, NOUN), _uses(wordnet, word, VERB)
    if topic not in VISIBLE and any(stem in wordnet.senses[VERB] for stem in _stems(word, "ing")):
        verb = max(verb, noun + 1)  # riding, sitting: forms of the verb in a caption; not building
    rivals = (("a", _uses(wordnet, word, ADJECTIVE, ADVERB)), ("v", verb))
    return "".join(letter.upper() if uses > noun else letter for letter, uses in rivals if uses * RIVAL >= noun)


def _is_just_plural(wordnet: WordNet, word: str, marks: Mapping[str, str]) -> bool:
    """Return whether a noun is mainly the plural of another: eggs, but not stairs, nor shorts, as short describes."""
    uses = _uses(wordnet, word, NOUN)
    singulars = detach_endings(word, wordnet.exceptions)[1:]
    return any("A" not in marks.get(base, "A") and _uses(wordnet, base, NOUN) > uses for base in singulars)


def _stems(word: str, ending: str) -> set[str]:
    """Return what `word` may be derived from by `ending`: riding from rid, ride; runner from runn, run, runne."""
    if not word.endswith(ending):
        return set()
    stem = word.removesuffix(ending)
    doubled = len(stem) > 1 and stem[-1] == stem[-2]
    return {stem, stem + "e"} | ({stem[:-1]} if doubled else set())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; wrong input ends with one line and exit status 2."""
    parser = argparse.ArgumentParser("python -m tests.makers.wordnet", description="Make the extracts of WordNet.")
    parser.add_argument("--dict", required=True, metavar="FOLDER", help="the database: index.noun, data.noun, ...")
    parser.add_argument(
        "--names",
        default=SHIPPED / "names.txt",
        metavar="FILE",
        help="class names, one per line; default: names.txt there",
    )
    parser.add_argument(
        "--out", default=SHIPPED, metavar="FOLDER", help="where to write; default: ovstrans/vocabulary/wordnet"
    )
    options = parser.parse_args(arguments)
    try:
        make(options.dict, parse_lines(existing_file(options.names).read_text(encoding="utf-8")), options.out)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
