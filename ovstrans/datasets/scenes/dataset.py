"""`scenes`: generated segmentation data, deterministic in (split, index, seed), at any size.

Textured *stuff* fills the image, *things* lie on it, with colours and patterns, occlusion, shadows,
lighting and noise. Every image comes with a caption, a label map and panoptic segments.

Classes are the 18 shapes, then the 10 grounds. Some of both are *novel*: they appear in captions
and when testing, and are never drawn in the split that segmenters train on.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from ovstrans.datasets.sample import Sample, Segment
from ovstrans.datasets.scenes.drawing import (
    PATTERNS,
    SHAPES,
    STUFF,
    draw_coverage,
    paint_ground,
    paint_pattern,
    smooth_noise,
)
from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import Vocabulary

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 34, 38),
    "green": (34, 160, 60),
    "blue": (36, 70, 214),
    "yellow": (246, 222, 44),
    "purple": (136, 44, 176),
    "orange": (248, 136, 24),
    "white": (246, 246, 246),
    "black": (22, 22, 26),
}
NOVEL_SHAPES = frozenset({"star", "heart", "horseshoe", "hammer"})
NOVEL_STUFF = frozenset({"wood", "snow"})
VOCABULARIES = ("scenes", "scenes-attr")


@dataclass(frozen=True)
class _Split:
    """length: images by default.  things: chances of 0, 1, ... of them.  radius: of a thing, in image sides."""

    length: int
    things: tuple[float, ...]
    radius: tuple[float, float]
    novel: bool = True
    grounds: tuple[float, ...] = (0.35, 0.5, 0.15)


_CROWDED = (0.0, 0.1, 0.25, 0.3, 0.2, 0.15)
SPLITS = {
    "train": _Split(400, _CROWDED, (0.13, 0.27), novel=False),
    "val": _Split(200, _CROWDED, (0.13, 0.27)),
    "test": _Split(400, _CROWDED, (0.13, 0.27)),
    "unlabelled": _Split(20_000, _CROWDED, (0.13, 0.27)),
    "pretrain": _Split(100_000, (0.08, 0.44, 0.28, 0.2), (0.15, 0.4)),
    "single": _Split(1_000, (0.0, 1.0), (0.2, 0.4), grounds=(1.0,)),
    "ground": _Split(400, (1.0,), (0.2, 0.4), grounds=(1.0,)),
}
"""train, val, test: for segmenters.  unlabelled: for pruning.  pretrain: image-caption pairs for a CLIP.
single, ground: one thing on one ground, and one ground alone, for zero-shot classification."""


def make_vocabulary(name: str = "scenes") -> Vocabulary:
    """`scenes`: shapes and stuff.  `scenes-attr`: every colour of every shape, and the stuff."""
    if name == "scenes":
        things = [(shape, shape) for shape in SHAPES]
    elif name == "scenes-attr":
        things = [(f"{color} {shape}", shape) for shape in SHAPES for color in COLORS]
    else:
        raise InputError(f"vocabulary {name!r}: scenes has {' and '.join(VOCABULARIES)}")
    novel = {number for number, (_, shape) in enumerate(things) if shape in NOVEL_SHAPES}
    novel |= {len(things) + number for number, stuff in enumerate(STUFF) if stuff in NOVEL_STUFF}
    return Vocabulary(
        name=name,
        classes=tuple((text,) for text, _ in things) + tuple((stuff,) for stuff in STUFF),
        novel=frozenset(novel),
        things=frozenset(range(len(things))),
        templates=("a {}", "{}", "a photo of a {}"),
    )


class Scenes:
    """A split of `scenes` as a dataset.

    size: pixels of a side, or (height, width).  shift: the domain-shifted variant (dusk light, haze,
    blur and grain; other images than the plain split's).  Image i is the same whatever the length.
    """

    ignore = 255
    published_size: tuple[int, int] | None = None
    videos: Sequence[range] = ()

    def __init__(
        self,
        split: str = "train",
        *,
        size: int | tuple[int, int] = 160,
        seed: int = 0,
        length: int | None = None,
        vocabulary_name: str = "scenes",
        shift: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"scenes:{split}: no such split; use {', '.join(SPLITS)}")
        self.height, self.width = (size, size) if isinstance(size, int) else size
        if min(self.height, self.width) < 16:
            raise InputError(f"scenes: a size of {self.width}x{self.height} is too small; 16 is the least")
        self.split, self.seed, self.shift = split, seed, shift
        self.name = "scenes-shift" if shift else vocabulary_name
        self.vocabulary = make_vocabulary(vocabulary_name)
        self._by_color = vocabulary_name == "scenes-attr"
        self._length = SPLITS[split].length if length is None else length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(index)
        scene = draw_scene(self.split, index, self.seed, self.height, self.width, self.shift)
        segments = [
            Segment(
                id=number,
                class_index=self.class_of(fact),
                isthing=isinstance(fact, Thing),
                area=area,
                attributes=fact.attributes(),
            )
            for number, (fact, area) in enumerate(zip(scene.facts, scene.areas, strict=True), start=1)
            if area
        ]
        classes = np.array([self.ignore, *(self.class_of(fact) for fact in scene.facts)], dtype=np.uint8)
        return Sample(
            image=torch.from_numpy(scene.image.transpose(2, 0, 1).copy()),
            label=torch.from_numpy(classes[scene.segment_map]),
            name=f"{self.name}-{self.split}-{index:06}",
            caption=scene.caption,
            segments=segments,
            segment_map=torch.from_numpy(scene.segment_map.astype(np.int32)),
        )

    def class_of(self, fact: Thing | Ground) -> int:
        """The class index of a thing or a ground in this dataset's vocabulary."""
        if isinstance(fact, Ground):
            return len(self.vocabulary) - len(STUFF) + STUFF.index(fact.stuff)
        shape = SHAPES.index(fact.shape)
        return shape * len(COLORS) + list(COLORS).index(fact.color) if self._by_color else shape


@dataclass
class Scene:
    """image: uint8 [H, W, 3].  segment_map: uint8 [H, W], 1 + index into facts.  areas: visible pixels of each fact."""

    image: np.ndarray
    segment_map: np.ndarray
    facts: list[Thing | Ground]
    areas: list[int]
    caption: str

    def visible(self) -> list[Thing | Ground]:
        """Facts that show enough to be named: things at least a third visible, grounds on 4 % of the image."""
        least = 0.04 * self.segment_map.size
        return [
            fact
            for fact, area in zip(self.facts, self.areas, strict=True)
            if area and (area >= fact.drawn / 3 if isinstance(fact, Thing) else area >= least)
        ]


def draw_scene(split: str, index: int, seed: int, height: int, width: int, shift: bool = False) -> Scene:
    """Draw one image. The generator is seeded by (seed, split, shift, index), so splits never share an image."""
    kind = SPLITS[split]
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), int(shift), index])
    stuff = [name for name in STUFF if kind.novel or name not in NOVEL_STUFF]
    shapes = [name for name in SHAPES if kind.novel or name not in NOVEL_SHAPES]
    count = 1 + int(rng.choice(len(kind.grounds), p=kind.grounds))
    names = [stuff[number] for number in rng.permutation(len(stuff))[:count]]
    canvas, segment_map = _paint_grounds(rng, names, height, width)
    facts: list[Thing | Ground] = [Ground(name) for name in names]
    placed: list[tuple[float, float, float]] = []
    for _ in range(int(rng.choice(len(kind.things), p=kind.things))):
        spot = _find_spot(rng, placed, kind.radius, height, width)
        if spot is None:
            continue
        placed.append(spot)
        color = list(COLORS)[rng.integers(len(COLORS))]
        surface = PATTERNS[rng.choice(len(PATTERNS), p=(0.55, 0.15, 0.15, 0.15))]
        thing = Thing(shapes[rng.integers(len(shapes))], color, surface)
        thing.drawn = _paint_thing(rng, canvas, segment_map, thing, spot, len(facts) + 1)
        facts.append(thing)
    image = _light(rng, canvas)
    if shift:
        image = _shift_domain(rng, image)
    areas = np.bincount(segment_map.ravel(), minlength=len(facts) + 1)[1:].tolist()
    scene = Scene(image, segment_map, facts, areas, "")
    scene.caption = write_caption(rng, scene.visible())
    return scene


def _paint_grounds(rng: Any, names: list[str], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ground fills the image; each further one takes the far side of a wavy line."""
    canvas = paint_ground(names[0], rng, height, width)
    segment_map = np.ones((height, width), dtype=np.uint8)
    rows = np.arange(height, dtype=np.float32)[:, None] / height - 0.5
    columns = np.arange(width, dtype=np.float32)[None, :] / width - 0.5
    for number, name in enumerate(names[1:], start=2):
        angle = rng.normal(0, 0.25) if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
        across = rows * np.cos(angle) + columns * np.sin(angle)
        along = columns * np.cos(angle) - rows * np.sin(angle)
        wave = rng.uniform(0, 0.05) * np.sin(along * rng.uniform(6, 20) + rng.uniform(0, 6.3))
        beyond = across + wave > rng.uniform(-0.22, 0.28)
        canvas = np.where(beyond[..., None], paint_ground(name, rng, height, width), canvas)
        segment_map[beyond] = number
    return canvas, segment_map


def _find_spot(
    rng: Any, placed: list[tuple[float, float, float]], radius: tuple[float, float], height: int, width: int
) -> tuple[float, float, float] | None:
    """(x, y, radius) in pixels, overlapping earlier things a little at most; None where none is found."""
    side = min(height, width)
    for _ in range(12):
        r = side * rng.uniform(*radius)
        x, y = rng.uniform(0.75 * r, width - 0.75 * r), rng.uniform(0.75 * r, height - 0.75 * r)
        if all((x - a) ** 2 + (y - b) ** 2 > (0.8 * (r + c)) ** 2 for a, b, c in placed):
            return x, y, r
    return None


def _paint_thing(
    rng: Any,
    canvas: np.ndarray,
    segment_map: np.ndarray,
    thing: Thing,
    spot: tuple[float, float, float],
    number: int,
) -> int:
    """Paint one thing with its shadow; returns the pixels it covers in the image."""
    x, y, radius = spot
    cover, top, left = draw_coverage(thing.shape, radius, rng.uniform(0, 2 * np.pi), (x, y), rng.uniform(0.88, 1.0))
    offset = max(1, round(radius * rng.uniform(0.05, 0.14)))
    box = _clip(canvas, cover, top + offset, left + offset)
    if box is not None:
        canvas[box[0]] *= 1 - 0.42 * cover[box[1]][..., None]
    box = _clip(canvas, cover, top, left)
    if box is None:
        return 0
    window, part = box
    high, wide = cover.shape
    tone = np.array(COLORS[thing.color], dtype=np.float32) + rng.normal(0, 9, 3).astype(np.float32)
    # The second tone is the same colour, darker or lighter, so that the colour's name stays true.
    other = tone * 0.5 if tone.mean() > 60 else tone * 0.5 + 95
    marks = paint_pattern(thing.pattern, rng, high, wide, radius)[part][..., None]
    shading = 1 + 0.16 * (smooth_noise(rng, high, wide, max(4.0, radius)) - 0.5)[part][..., None]
    alpha = cover[part][..., None]
    canvas[window] = canvas[window] * (1 - alpha) + (tone * (1 - marks) + other * marks) * shading * alpha
    solid = cover[part] >= 0.5
    segment_map[window][solid] = number
    return int(solid.sum())


def _clip(canvas: np.ndarray, patch: np.ndarray, top: int, left: int) -> tuple[Any, Any] | None:
    """Index pairs (in canvas, in patch) of the part of a patch that lies inside the canvas."""
    bottom, right = min(top + patch.shape[0], canvas.shape[0]), min(left + patch.shape[1], canvas.shape[1])
    first, start = max(top, 0), max(left, 0)
    if first >= bottom or start >= right:
        return None
    window = (slice(first, bottom), slice(start, right))
    return window, (slice(first - top, bottom - top), slice(start - left, right - left))


def _light(rng: Any, canvas: np.ndarray) -> np.ndarray:
    height, width = canvas.shape[:2]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    rows = np.arange(height, dtype=np.float32)[:, None] / height - 0.5
    columns = np.arange(width, dtype=np.float32)[None, :] / width - 0.5
    field = 1 + strength * (rows * np.float32(np.sin(angle)) + columns * np.float32(np.cos(angle)))
    grain = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(1, 7))
    lit = canvas * field[..., None] * np.float32(rng.uniform(0.8, 1.15)) + grain
    return np.clip(lit, 0, 255).astype(np.uint8)


def _shift_domain(rng: Any, image: np.ndarray) -> np.ndarray:
    """Dusk: little light of a cold cast, haze, blur and coarse grain."""
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1) * min(image.shape[:2]) / 96))
    dusk = np.asarray(blurred, dtype=np.float32)
    gray = dusk.mean(axis=2, keepdims=True)
    dusk = gray + (dusk - gray) * np.float32(rng.uniform(0.45, 0.7))
    haze = np.float32(rng.uniform(0.05, 0.2))
    dusk = (
        dusk * np.float32(rng.uniform(0.4, 0.65)) * np.array((0.88, 0.96, 1.15), dtype=np.float32) * (1 - haze)
        + 150 * haze
    )
    grain = smooth_noise(rng, image.shape[0], image.shape[1], 2.0)[..., None] - 0.5
    return np.clip(dusk + 34 * grain, 0, 255).astype(np.uint8)


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


def format_caption(rng: Any, mentions: Sequence[Mention]) -> str:
    """Put mentions into words: `a photo of a red star and a fish on grass`."""
    things = [mention.words() for mention in mentions if not mention.stuff]
    grounds = [mention.words() for mention in mentions if mention.stuff]
    start = "a photo of " if rng.random() < 0.25 else ""
    text = " and ".join(things)
    if grounds:
        text = f"{text} on {' and '.join(grounds)}" if text else " and ".join(grounds)
    return start + text


def write_caption(rng: Any, facts: Sequence[Thing | Ground]) -> str:
    """A caption of what is there; empty where nothing is."""
    return format_caption(rng, choose_mentions(rng, facts)) if facts else ""
