"""The small words of English captions, by what may follow them; and the nouns that name no part of a picture."""

from __future__ import annotations

from enum import Enum


class Opener(Enum):
    """What stands before a run of content words, which says how to read an ambiguous one."""

    START = "nothing: the caption starts"
    ONE = "a determiner of the singular: a, every"
    MANY = "a number or a determiner of the plural: two, some"
    THE = "a determiner of either: the, his"
    OBJECT = "a preposition or a verb: on, riding"
    DESCRIBED = "an adjective after a conjunction: and fresh"
    TO = "to"
    SUBJECT = "a pronoun, after which a verb comes: he, who"
    COPULA = "a form of be or an auxiliary: is, can"
    BREAK = "a conjunction, an adverb, punctuation"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORDS = {
    Opener.ONE: "a an one another each every this either neither",
    Opener.MANY: "two three four five six seven eight nine ten eleven twelve several some many few these those all both"
    " any more most other various numerous",
    Opener.THE: "the his her its their my your our what which whose such own no",
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
OPENERS: dict[str, Opener] = {word: opener for opener, words in _WORDS.items() for word in words.split()}
"""What each small word opens. None of them is taken for a noun."""

COORDINATORS = _words("and or & ,")

PARTICLES = _words("up down out off away")
"""Go with a verb: blows out."""

BEFORE_TO = _words("next close up near according due attached tied connected")
"""After these, `to` is a preposition: next to water."""

POSITIONS = _words("top bottom front back rear side sides middle midst center centre left right inside outside")
"""Say where, as in `on top of` and `side by side`."""

AMOUNTS = _words("couple lot lots bunch number variety array kind kinds type types sort sorts dozen dozens")
"""Say how much, before `of`."""

PICTURES = _words("photo photograph picture image view shot close-up closeup scene")
"""Say that this is a picture, before `of`."""

PLURALS = _words("people police cattle")
"""Plural without an ending."""
