"""The nouns of a caption, offline: the words that GKC's grounding loss aligns with regions (OpenTrans' code
asks a part-of-speech tagger, whose model is a download).

A list made from WordNet (`wordnet/nouns.txt`) says what can be a noun, and whether it is a verb or an
adjective as well; for those a few rules look at the words around: `a man rides`, `the bus ride`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from ovstrans.vocabulary.function_words import (
    AMOUNTS,
    BEFORE_TO,
    COORDINATORS,
    OPENERS,
    PARTICLES,
    PICTURES,
    PLURALS,
    POSITIONS,
    Opener,
)
from ovstrans.vocabulary.morphology import base_forms
from ovstrans.vocabulary.wordnet import read_lines

_TOKEN = re.compile(r"[a-z]+(?:['-][a-z]+)*|\d+|[^\s\w]")
_DETERMINERS = (Opener.ONE, Opener.MANY, Opener.THE)


def nouns(caption: str) -> tuple[str, ...]:
    """The nouns of an English caption in order of appearance, distinct, in lower case and the singular.

    Compounds come apart (`traffic light` gives traffic and light). Words that name no part of the picture
    are left out: positions (`on top of`), amounts (`a lot of`), the picture itself (`a photo of`). So are
    words that WordNet lacks, most proper names among them. Empty where nothing is left.
    """
    tokens = _tokens(caption)
    found: list[str] = []
    run = _Run(Opener.START)
    for place, token in enumerate(tokens):
        if token in OPENERS or not token[0].isalpha():
            joined = run.noun if token in COORDINATORS else None
            run = _Run(_opener(tokens, place), joined=joined)
        elif not _names_no_part(tokens, place):
            word, rest = look_up(token), tokens[place + 1 :]
            if word is not None and not _is_verb(word, run, rest) and not _is_adjective(word, run, rest):
                found.append(word.singular)
                run.noun = word
                continue
            if token.endswith("ing") or (word is not None and word.verb and run.noun is not None):
                run = _Run(Opener.OBJECT)
            elif run.opener is Opener.BREAK and not token.endswith(("ly", "ed")):
                run = _Run(Opener.DESCRIBED)
    return tuple(dict.fromkeys(found))


@dataclass
class _Run:
    """Content words in a row. noun: the last one among them so far.  joined: the noun right before `and`, if any."""

    opener: Opener
    noun: _Word | None = None
    joined: _Word | None = None


@dataclass(frozen=True)
class _Word:
    """A word that can be a noun. verb, adjective: "" never, "v", "a" sometimes, "V", "A" mostly."""

    text: str
    singular: str
    verb: str
    adjective: str

    @property
    def plural(self) -> bool:
        """Whether it is one; of an inflected form, that is all that shows."""
        return self.text != self.singular or self.text in PLURALS


def look_up(text: str) -> _Word | None:
    """The entry of a word, in lower case, or of what it is the plural of; None where it cannot be a noun."""
    marks, plurals = _lists()
    for form in (plurals.get(text, ""), *base_forms(text, {})):
        if form in marks:
            mark = marks[form]
            return _Word(text, form, verb=mark.strip("aA"), adjective=mark.strip("vV"))
    return None


@lru_cache(maxsize=1)
def _lists() -> tuple[dict[str, str], dict[str, str]]:
    marks = {word: mark for word, _, mark in (line.partition(" ") for line in read_lines("nouns.txt"))}
    plurals = {plural: word for plural, _, word in (line.partition(" ") for line in read_lines("plurals.txt"))}
    return marks, plurals


def _tokens(caption: str) -> list[str]:
    """Words without the possessive 's, numbers, and punctuation marks, in lower case."""
    text = unicodedata.normalize("NFKD", caption.lower().replace("’", "'"))
    text = "".join(letter for letter in text if not unicodedata.combining(letter))  # café
    return [token.removesuffix("'s") for token in _TOKEN.findall(text)]


def _opener(tokens: list[str], place: int) -> Opener:
    token = tokens[place]
    if token == "to" and place and tokens[place - 1] in BEFORE_TO:
        return Opener.OBJECT
    if token.isdigit():
        return Opener.MANY
    if token == ".":
        return Opener.START
    return OPENERS.get(token, Opener.BREAK)


def _names_no_part(tokens: list[str], place: int) -> bool:
    """Whether the word says where, how much, or that this is a picture."""
    token = tokens[place]
    following = tokens[place + 1] if place + 1 < len(tokens) else ""
    if token in POSITIONS:
        earlier = [word for word in tokens[max(0, place - 2) : place] if word != "the"][-1:]
        return following in ("of", "by") or (bool(earlier) and OPENERS.get(earlier[0]) in (Opener.OBJECT, Opener.TO))
    return following == "of" and (token in AMOUNTS or token in PICTURES)


def _is_verb(word: _Word, run: _Run, rest: list[str]) -> bool:
    """Whether it is a verb here. rest: the tokens after it."""
    if not word.verb:
        return False
    participle = word.text.endswith("ing") and word.verb == "V"
    has_object = bool(rest) and OPENERS.get(rest[0]) in _DETERMINERS
    if run.noun is not None:
        # A verb agrees with its subject: a plane lands, two men race. A compound does not: a street sign.
        subject_is_plural = run.noun.plural or run.joined is not None
        if has_object or not PARTICLES.isdisjoint(rest[:1]):
            return True
        if word.plural:
            return not subject_is_plural and run.opener not in (Opener.MANY, Opener.OBJECT)
        sheep = run.opener is Opener.MANY and _next_noun(rest) is None  # some sheep rest
        return participle or subject_is_plural or sheep
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


def _is_adjective(word: _Word, run: _Run, rest: list[str]) -> bool:
    """Whether it describes something here. rest: the tokens after it."""
    if not word.adjective or word.plural:
        return False
    if run.opener is Opener.COPULA or _joins_adjective(rest):
        return True
    following = _next_noun(rest)
    if following is not None and not (run.opener is Opener.ONE and _is_predicate(following, word)):
        return True
    if word.adjective == "a":
        return False
    described = bool(rest) and _is_content(rest[0]) and not rest[0].endswith("ing")
    return described or run.noun is not None or run.opener not in _DETERMINERS


def _is_content(token: str) -> bool:
    return token not in OPENERS and token[0].isalpha()


def _next_noun(rest: list[str]) -> _Word | None:
    """The next word of the same run that can be a noun."""
    for token in rest:
        word = look_up(token)
        if not _is_content(token) or (word is None and token.endswith("ing")):
            return None
        if word is not None:
            return word
    return None


def _is_predicate(word: _Word, subject: _Word) -> bool:
    """Whether `word`, which follows, is by its ending the verb of `subject`: a bear swims."""
    return bool(word.verb) and word.plural and not subject.plural


def _joins_adjective(rest: list[str]) -> bool:
    """Whether `and white` or the like follows."""
    if len(rest) < 2 or rest[0] not in COORDINATORS or not _is_content(rest[1]):
        return False
    word = look_up(rest[1])
    return word is not None and bool(word.adjective)
