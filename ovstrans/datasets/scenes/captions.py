"""Captions of `scenes`: what an image holds, said in words that vary.

A caption names some of what is there: colours, patterns and grounds are mentioned at random. Captions
that always name everything let a CLIP tell pairs apart by colour and ground alone, and it never
learns the shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Thing:
    """A shape with its colour and surface pattern. drawn: pixels it covered before others hid it."""

    shape: str
    color: str
    pattern: str
    drawn: int = field(default=0, compare=False)

    def attributes(self) -> dict[str, str]:
        """For the panoptic segment."""
        return {"shape": self.shape, "color": self.color, "pattern": self.pattern}


@dataclass
class Ground:
    """A kind of stuff."""

    stuff: str

    def attributes(self) -> dict[str, str]:
        """For the panoptic segment."""
        return {"stuff": self.stuff}


@dataclass(frozen=True)
class Mention:
    """What a caption says of one thing (shape, and colour or pattern where said) or of one ground (stuff)."""

    shape: str = ""
    color: str = ""
    pattern: str = ""
    stuff: str = ""

    def words(self) -> str:
        """`a red striped star`, or `grass`."""
        if self.stuff:
            return self.stuff
        noun = " ".join(word for word in (self.color, self.pattern, self.shape) if word)
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"

    def fits(self, fact: Thing | Ground) -> bool:
        """Whether it is true of a thing or ground."""
        if isinstance(fact, Ground):
            return self.stuff == fact.stuff
        return (
            self.shape == fact.shape
            and self.color in ("", fact.color)
            and self.pattern in ("", fact.pattern)
            and not self.stuff
        )


def choose_mentions(rng: Any, facts: Sequence[Thing | Ground], *, short: bool = False) -> list[Mention]:
    """Pick what to say: `short` says one thing only, otherwise most things and often the grounds."""
    things = [fact for fact in facts if isinstance(fact, Thing)]
    grounds = [fact for fact in facts if isinstance(fact, Ground)]
    order = rng.permutation(len(things))
    if short and things:
        order = order[:1]
    elif len(things) > 1 and rng.random() < 0.3:
        order = order[: rng.integers(1, len(things))]
    order = order[:3]
    mentions = [
        Mention(
            shape=things[number].shape,
            color=things[number].color if rng.random() < 0.5 else "",
            pattern=things[number].pattern if things[number].pattern != "plain" and rng.random() < 0.4 else "",
        )
        for number in order
    ]
    if not mentions or (not short and rng.random() < 0.5):
        said = [fact.stuff for fact in grounds]
        if len(said) > 1 and rng.random() < 0.4:
            said = said[: rng.integers(1, len(said))]
        mentions += [Mention(stuff=stuff) for stuff in said]
    return mentions


def phrase(rng: Any, mentions: Sequence[Mention]) -> str:
    """Put mentions into words: `a photo of a red star and a fish on grass`."""
    things = [mention.words() for mention in mentions if not mention.stuff]
    grounds = [mention.words() for mention in mentions if mention.stuff]
    start = "a photo of " if rng.random() < 0.25 else ""
    text = " and ".join(things)
    if grounds:
        text = f"{text} on {' and '.join(grounds)}" if text else " and ".join(grounds)
    return start + text


def describe(rng: Any, facts: Sequence[Thing | Ground]) -> str:
    """A caption of what is there; empty where nothing is."""
    return phrase(rng, choose_mentions(rng, facts)) if facts else ""
