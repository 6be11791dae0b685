"""Nouns of a caption, found without a download.

GKC's grounding loss aligns the nouns of a caption with regions of the image. OpenTrans's code finds them with a
part-of-speech tagger whose model must be downloaded. Here a word list made from WordNet (`wordnet/nouns.txt`) says
which words can be nouns, and which of these can be a verb or an adjective too. For those, a few rules look at the
neighbouring words: `rides` is a verb in "a man rides", `ride` a noun in "the bus ride".

A caption is read as a sequence of *runs*. A run is a sequence of content words between two function words, such as
"red double decker bus" in "the red double decker bus on a road". The function word before a run, its *opener*, tells
what kind of words to expect in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from ovstrans.vocabulary.wordnet import read_lines


class Opener(Enum):
    """The word before a run of content words."""

    START = "nothing: the caption or a sentence begins"
    SINGULAR = "a determiner of the singular: a, every"
    PLURAL = "a number or a determiner of the plural: two, some"
    DETERMINER = "a determiner of either: the, his"
    OBJECT = "a preposition or a verb: on, riding"
    DESCRIBED = "an adjective after a conjunction: and fresh"
    TO = "to"
    SUBJECT = "a pronoun, which a verb follows: he, who"
    COPULA = "a form of be or an auxiliary: is, can"
    BREAK = "a conjunction, an adverb or punctuation"


def _split_words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION_WORDS = {
    Opener.SINGULAR: "a an one another each every this either neither",
    Opener.PLURAL: "two three four five six seven eight nine ten eleven twelve several some many few these those all"
    " both any more most other various numerous",
    Opener.DETERMINER: "the his her its their my your our what which whose such own no",
    Opener.OBJECT: "of in on at by with from into onto over under near beside besides behind below beneath above across"
    " along alongside around round against among amongst amid between beyond inside outside through throughout toward"
    " towards upon within without about during for like past via per atop underneath aboard off up down out",
    Opener.TO: "to",
    Opener.SUBJECT: "i you he she it we they who that me him us them himself herself itself themselves someone somebody"
    " something anyone anybody anything everyone everybody everything nothing nobody there",
    Opener.COPULA: "is are was were am be been being isn't aren't has have had having do does did can could will would"
    " may might must shall should cannot can't don't doesn't get gets got",
    Opener.BREAK: "and or but nor while as when where if than so because before after until since though although not"
    " very too just only also still even almost ready about here away together apart then how why yes"
    " etc next close ahead",
}
OPENERS: dict[str, Opener] = {word: opener for opener, words in _FUNCTION_WORDS.items() for word in words.split()}
"""Function words with the kind of opener they are. None of them is taken for a noun."""

_DETERMINERS = (Opener.SINGULAR, Opener.PLURAL, Opener.DETERMINER)
_COORDINATORS = _split_words("and or & ,")
_PARTICLES = _split_words("up down out off away")
"""Words that follow a verb: blows out."""
_BEFORE_TO = _split_words("next close up near according due attached tied connected")
"""Words after which `to` is a preposition: next to water."""
_POSITIONS = _split_words("top bottom front back rear side sides middle midst center centre left right inside outside")
"""Words for a place, as in `on top of` and `side by side`."""
_AMOUNTS = _split_words("couple lot lots bunch number variety array kind kinds type types sort sorts dozen dozens")
"""Words for an amount, before `of`."""
_PICTURES = _split_words("photo photograph picture image view shot close-up closeup scene")
"""Words for the picture itself, before `of`."""
_PLURALS = _split_words("people police cattle")
"""Plural nouns without an ending."""

_TOKEN = re.compile(r"[a-z]+(?:['-][a-z]+)*|\d+|[^\s\w]")

DETACHMENTS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
"""Endings of the plural and the singular endings that replace them: the detachment rules of WordNet's `morphy`
(morphy(7WN)), and `ves`, which readers of WordNet commonly add."""


def extract_nouns(caption: str) -> tuple[str, ...]:
    """Return the distinct nouns of an English caption in order of appearance, in lower case and in the singular.

    Compounds are split (`traffic light` gives traffic and light). Left out are words that name no part of the picture:
    positions (`on top of`), amounts (`a lot of`) and the picture itself (`a photo of`). Left out too are words that
    WordNet lacks, such as most proper names.
    """
    tokens = _tokenize(caption)
    nouns: list[str] = []
    run = _Run(Opener.START)
    for position, token in enumerate(tokens):
        if token in OPENERS or not token[0].isalpha():
            joined = run.noun if token in _COORDINATORS else None
            run = _Run(_opener_at(tokens, position), joined=joined)
        elif not _names_no_part(tokens, position):
            word, rest = lookup_noun(token), tokens[position + 1 :]
            if word is not None and not _is_verb(word, run, rest) and not _is_adjective(word, run, rest):
                nouns.append(word.singular)
                run.noun = word
                continue
            if token.endswith("ing") or (word is not None and word.verb and run.noun is not None):
                run = _Run(Opener.OBJECT)
            elif run.opener is Opener.BREAK and not token.endswith(("ly", "ed")):
                run = _Run(Opener.DESCRIBED)
    return tuple(dict.fromkeys(nouns))


@dataclass(frozen=True)
class Noun:
    """A word that can be a noun.

    Attributes:
        text: The word as written, in lower case.
        singular: Its singular.
        verb: "" if it is never a verb, "v" if it sometimes is, "V" if it mostly is.
        adjective: The same for adjectives: "", "a" or "A".
    """

    text: str
    singular: str
    verb: str
    adjective: str

    @property
    def plural(self) -> bool:
        """True if the word is a plural; also for a verb with -s, as only the ending is known."""
        return self.text != self.singular or self.text in _PLURALS


@dataclass
class _Run:
    """A sequence of content words.

    Attributes:
        opener: What stands before it.
        noun: Its last noun so far.
        joined: The noun right before the `and` that opened it, if any.
    """

    opener: Opener
    noun: Noun | None = None
    joined: Noun | None = None


def lookup_noun(text: str) -> Noun | None:
    """Return the entry of a word in lower case, or of its singular; None if it cannot be a noun."""
    marks, irregular = _read_lists()
    for form in (irregular.get(text, ""), *detach_endings(text, {})):
        if form in marks:
            mark = marks[form]
            return Noun(text, form, verb=mark.strip("aA"), adjective=mark.strip("vV"))
    return None


def detach_endings(form: str, exceptions: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the words that `form` may be a plural of, itself first: `boxes` gives boxes, boxe and box.

    Not all of them are words; the caller looks them up.

    Args:
        form: The word.
        exceptions: Singulars of irregular plurals. The rules are not applied to these.
    """
    if form in exceptions:
        singulars = exceptions[form]
    else:
        singulars = tuple(form.removesuffix(old) + new for old, new in DETACHMENTS if form.endswith(old))
    return tuple(dict.fromkeys((form, *(word for word in singulars if word))))


@lru_cache(maxsize=1)
def _read_lists() -> tuple[dict[str, str], dict[str, str]]:
    """Return the marks of each noun in `nouns.txt`, and the singular of each plural in `plurals.txt`."""
    marks = {word: mark for word, _, mark in (line.partition(" ") for line in read_lines("nouns.txt"))}
    singulars = {plural: word for plural, _, word in (line.partition(" ") for line in read_lines("plurals.txt"))}
    return marks, singulars


def _tokenize(caption: str) -> list[str]:
    """Split into words without the possessive 's, numbers and punctuation marks, in lower case without accents."""
    text = unicodedata.normalize("NFKD", caption.lower().replace("’", "'"))
    text = "".join(letter for letter in text if not unicodedata.combining(letter))  # café
    return [token.removesuffix("'s") for token in _TOKEN.findall(text)]


def _opener_at(tokens: list[str], position: int) -> Opener:
    token = tokens[position]
    if token == "to" and position and tokens[position - 1] in _BEFORE_TO:
        return Opener.OBJECT
    if token.isdigit():
        return Opener.PLURAL
    if token == ".":
        return Opener.START
    return OPENERS.get(token, Opener.BREAK)


def _names_no_part(tokens: list[str], position: int) -> bool:
    """Return whether the token tells a position, an amount, or that this is a picture."""
    token = tokens[position]
    following = tokens[position + 1] if position + 1 < len(tokens) else ""
    if token in _POSITIONS:
        before = [word for word in tokens[max(0, position - 2) : position] if word != "the"][-1:]
        return following in ("of", "by") or (bool(before) and OPENERS.get(before[0]) in (Opener.OBJECT, Opener.TO))
    return following == "of" and (token in _AMOUNTS or token in _PICTURES)


def _is_verb(word: Noun, run: _Run, rest: list[str]) -> bool:
    """Return whether the word is a verb here; `rest` are the tokens after it."""
    if not word.verb:
        return False
    participle = word.text.endswith("ing") and word.verb == "V"
    has_object = bool(rest) and OPENERS.get(rest[0]) in _DETERMINERS
    if run.noun is not None:
        # A verb agrees with its subject: a plane lands, two men race. A compound does not: a street sign.
        subject_is_plural = run.noun.plural or run.joined is not None
        if has_object or not _PARTICLES.isdisjoint(rest[:1]):
            return True
        if word.plural:
            return not subject_is_plural and run.opener not in (Opener.PLURAL, Opener.OBJECT)
        # The plural of a subject without an ending shows in its determiner: some sheep rest.
        plural_by_determiner = run.opener is Opener.PLURAL and _next_noun(rest) is None
        return participle or subject_is_plural or plural_by_determiner
    if run.opener is Opener.TO:
        return word.verb == "V" or has_object
    if run.opener in (Opener.SUBJECT, Opener.COPULA):
        return True
    if run.opener is Opener.BREAK and has_object:
        return True
    if word.verb == "v":
        return False
    if participle:
        return run.opener not in _DETERMINERS or _next_noun(rest) is not None
    if run.opener is Opener.BREAK:
        return run.joined is None or run.joined.plural != word.plural
    following = _next_noun(rest)
    return following is not None and not _is_predicate(following, word)


def _is_adjective(word: Noun, run: _Run, rest: list[str]) -> bool:
    """Return whether the word is an adjective here; `rest` are the tokens after it."""
    if not word.adjective or word.plural:
        return False
    if run.opener is Opener.COPULA or _joins_adjective(rest):
        return True
    following = _next_noun(rest)
    if following is not None and not (run.opener is Opener.SINGULAR and _is_predicate(following, word)):
        return True
    if word.adjective == "a":
        return False
    described = bool(rest) and _is_content(rest[0]) and not rest[0].endswith("ing")
    return described or run.noun is not None or run.opener not in _DETERMINERS


def _is_content(token: str) -> bool:
    return token not in OPENERS and token[0].isalpha()


def _next_noun(rest: list[str]) -> Noun | None:
    """Return the next word of the same run that can be a noun."""
    for token in rest:
        word = lookup_noun(token)
        if not _is_content(token) or (word is None and token.endswith("ing")):
            return None
        if word is not None:
            return word
    return None


def _is_predicate(word: Noun, subject: Noun) -> bool:
    """Return whether `word`, which follows `subject`, has the ending of its verb: a bear swims."""
    return bool(word.verb) and word.plural and not subject.plural


def _joins_adjective(rest: list[str]) -> bool:
    """Return whether a conjunction and an adjective follow, such as `and white`."""
    if len(rest) < 2 or rest[0] not in _COORDINATORS or not _is_content(rest[1]):
        return False
    word = lookup_noun(rest[1])
    return word is not None and bool(word.adjective)
