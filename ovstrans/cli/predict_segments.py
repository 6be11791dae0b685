"""Segments in `ovstrans predict`: their options, and which classes are things where nobody said so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ovstrans.cli.inference_options import WORDS

if TYPE_CHECKING:
    from pathlib import Path

    from ovstrans.checkpoints.file import Checkpoint
    from ovstrans.vocabulary.vocabulary import Vocabulary

_SEGMENTS = "Segments"
_NAMED = 6

Panoptic = Annotated[
    bool,
    typer.Option(
        "--panoptic",
        help="Also write each pixel's segment: DIR/panoptic/NAME.png and DIR/panoptic.json, in COCO's format. Of gkc "
        "and fcclip.",
        rich_help_panel=_SEGMENTS,
    ),
]
Instances = Annotated[
    bool,
    typer.Option(
        "--instances",
        help="Also write DIR/instances.json: the things of each image with scores, boxes and masks, in COCO's format "
        "of results. Of gkc and fcclip.",
        rich_help_panel=_SEGMENTS,
    ),
]
Things = Annotated[
    str | None,
    typer.Option(
        metavar='"A, B, ..."',
        help="Which of the classes are countable. By default those the vocabulary says are; where it does not say, as "
        "with --classes, what the training knew by the same name, and of the rest each is stuff for --panoptic and a "
        "thing for --instances.",
        rich_help_panel=WORDS,
        show_default=False,
    ),
]


@dataclass(frozen=True)
class SegmentOptions:
    """What of segments a user asks for. things: as written, or None.

    Raises InputError where that is not possible with the way of looking, or `things` without segments.
    """

    panoptic: bool
    instances: bool
    things: str | None
    window: int | None
    flip: bool

    def __post_init__(self) -> None:
        from ovstrans.errors import InputError

        if not self:
            if self.things is not None:
                raise InputError("--things: is of segments; give --panoptic or --instances, or leave it out")
        elif self.window or self.flip:
            raise InputError(f"{self.option}: is of whole images as they are; leave out --window and --flip")

    def __bool__(self) -> bool:
        return self.panoptic or self.instances

    @property
    def option(self) -> str:
        """What to name in messages."""
        return "--panoptic" if self.panoptic else "--instances"

    def check(self, source: Path, checkpoint: Checkpoint) -> None:
        """InputError where the framework finds no segments."""
        from ovstrans.errors import InputError
        from ovstrans.frameworks import registry

        if self and not hasattr(registry.framework_class(checkpoint.framework), "panoptic_from_scores"):
            able = [
                name
                for name in registry.list_frameworks()
                if hasattr(registry.framework_class(name), "panoptic_from_scores")
            ]
            raise InputError(
                f"{source}: {checkpoint.framework} classifies pixels and finds no segments; {self.option} needs a run "
                f"of {' or '.join(able)}"
            )


@dataclass(frozen=True)
class Countable:
    """Classes that are things, by index: for panoptic segments, and for instances.

    unknown: those of which nobody says, which are stuff for the one and things for the other.
    """

    panoptic: frozenset[int]
    instances: frozenset[int]
    unknown: tuple[int, ...] = ()


def countable(words: Vocabulary, trained: Vocabulary, things: str | None) -> Countable:
    """The things among `words`: those that `things` names, else those of the vocabulary, else of the training's.

    things: names between commas, in any case. Raises InputError for one that is none of the classes.
    """
    if things is not None:
        found = frozenset(_named(words, things))
        return Countable(found, found)
    if words.things:
        return Countable(words.things, words.things)
    known = {name: index in trained.things for name, index in _by_name(trained).items()} if trained.things else {}
    said: dict[int, bool | None] = dict.fromkeys(range(len(words)))
    for name, index in _by_name(words).items():
        if said[index] is None:
            said[index] = known.get(name)
    sure = frozenset(index for index, is_thing in said.items() if is_thing)
    unknown = tuple(sorted(index for index, is_thing in said.items() if is_thing is None))
    return Countable(sure, sure | set(unknown), unknown)


def told(words: Vocabulary, found: Countable, asked: SegmentOptions) -> str:
    """What to say of classes of which nobody knows whether they are things, or ""."""
    if not found.unknown:
        return ""
    names = ", ".join(repr(words.names[index]) for index in found.unknown[:_NAMED])
    more = f" and {len(found.unknown) - _NAMED} more" if len(found.unknown) > _NAMED else ""
    ways = ["one segment a class in panoptic.json"] if asked.panoptic else []
    ways += ["things in instances.json"] if asked.instances else []
    return f"{names}{more}: nobody says whether they are countable, so {' and '.join(ways)}; --things chooses"


def _named(words: Vocabulary, things: str) -> list[int]:
    from ovstrans.errors import InputError, did_you_mean

    known, found = _by_name(words), []
    for part in things.split(","):
        name = " ".join(part.split())
        if name.casefold() not in known:
            hint = did_you_mean(name.casefold(), known).strip() or "write it as the classes are"
            raise InputError(f'--things "{things}": {name!r} is none of the {len(words)} classes; {hint}')
        found.append(known[name.casefold()])
    return found


def _by_name(vocabulary: Vocabulary) -> dict[str, int]:
    """Class indices by names, display names and synonyms, without case; a name of several is the first's."""
    names: dict[str, int] = {}
    for index, name in enumerate(vocabulary.names):
        names.setdefault(name.casefold(), index)
    for index, synonyms in enumerate(vocabulary.classes):
        for synonym in synonyms:
            names.setdefault(synonym.casefold(), index)
    return names
