"""`scenes`: generated images for segmentation, at any size, determined by split, index and seed.

An image shows *things*, which are shapes with a colour and a pattern, on a *ground* of textured stuff, with occlusion,
shadows, uneven light and noise. It has a caption, a label map and panoptic segments.

The classes are 18 shapes and 10 grounds. Some of both are *novel*: they appear in captions and in the splits for
testing, but never in the split that segmenters are trained on.

Shapes: `H W` image.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from ovstrans.datasets.sample import Sample, Segment, describe_dataset
from ovstrans.datasets.scenes.drawing import (
    PATTERNS,
    SHAPES,
    STUFF,
    Generator,
    draw_coverage,
    light_image,
    paint_grounds,
    paint_pattern,
    shift_domain,
    smooth_noise,
)
from ovstrans.environment import require_memory
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
DRAWING_BYTES = 100
"""Memory that drawing an image takes, in bytes a pixel, measured."""
_LARGE = 4_000_000
"""Pixels above which the memory is checked before an image is drawn."""
NOVEL_SHAPES = frozenset({"star", "heart", "horseshoe", "hammer"})
NOVEL_STUFF = frozenset({"wood", "snow"})
VOCABULARIES = ("scenes", "scenes-attr")


@dataclass
class Thing:
    """A shape with a colour and a surface pattern.

    Attributes:
        shape: Name of the shape.
        color: Name of the colour.
        pattern: Name of the pattern.
        drawn: Pixels that it covers, including those that later things hide.
    """

    shape: str
    color: str
    pattern: str
    drawn: int = field(default=0, compare=False)

    def attributes(self) -> dict[str, str]:
        """Return the attributes of its panoptic segment."""
        return {"shape": self.shape, "color": self.color, "pattern": self.pattern}


@dataclass
class Ground:
    """An area of one kind of stuff.

    Attributes:
        stuff: Name of the stuff.
    """

    stuff: str

    def attributes(self) -> dict[str, str]:
        """Return the attributes of its panoptic segment."""
        return {"stuff": self.stuff}


Element: TypeAlias = Thing | Ground
"""The elements of an image."""
_Spot: TypeAlias = tuple[float, float, float]
"""Position x and y and radius of a thing, in pixels."""


@dataclass(frozen=True)
class _Split:
    """Content of the images of a split.

    Attributes:
        length: Number of images, unless another is asked for.
        things: Probability of 0, 1, 2, ... things.
        radius: Smallest and largest radius of a thing, relative to the image's shorter side.
        novel: Whether novel classes may appear.
        grounds: Probability of 1, 2, 3, ... grounds.
    """

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
"""`train`, `val` and `test` are for segmenters, `unlabelled` for pruning, and `pretrain` for training a CLIP on images
with captions. `single` has one thing on one ground, and `ground` one ground alone, for zero-shot classification."""


def make_vocabulary(name: str = "scenes") -> Vocabulary:
    """Return a vocabulary of scenes.

    Args:
        name: `scenes` for a class per shape and per ground, or `scenes-attr` for a class per colour and shape and per
            ground.

    Raises:
        InputError: The name is another.
    """
    if name == "scenes":
        things = [(shape, shape) for shape in SHAPES]
    elif name == "scenes-attr":
        things = [(f"{color} {shape}", shape) for shape in SHAPES for color in COLORS]
    else:
        raise InputError(f"vocabulary {name!r}: unknown; scenes has {' and '.join(VOCABULARIES)}")
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
    """A split of `scenes` as a dataset. Image i does not depend on the length of the split.

    Args:
        split: One of `SPLITS`.
        size: Side of the images in pixels, or (height, width).
        seed: Seed of the images.
        length: Number of images; by default that of the split.
        vocabulary_name: One of `VOCABULARIES`.
        shift: Whether to draw images with a domain shift: at dusk, with haze, blur and grain. They show other scenes
            than those without.

    Raises:
        InputError: The split is unknown, or the size is below 16.
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
            raise InputError(f"scenes: a size of {self.width}x{self.height} is too small; give at least 16")
        self.split, self.seed, self.shift = split, seed, shift
        self.name = "scenes-shift" if shift else vocabulary_name
        self.vocabulary = make_vocabulary(vocabulary_name)
        self._by_color = vocabulary_name == "scenes-attr"
        self._length = SPLITS[split].length if length is None else length

    def __repr__(self) -> str:
        return describe_dataset(self)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(index)
        if self.height * self.width > _LARGE:
            what = f"{self.name}: drawing an image of {self.width}x{self.height} pixels takes"
            require_memory(DRAWING_BYTES * self.height * self.width, "cpu", what=what, remedy="lower its `size`")
        scene = draw_scene(self.split, index, self.seed, self.height, self.width, self.shift)
        segments = [
            Segment(
                id=number,
                class_index=self.find_class(element),
                isthing=isinstance(element, Thing),
                area=area,
                attributes=element.attributes(),
            )
            for number, (element, area) in enumerate(zip(scene.elements, scene.areas, strict=True), start=1)
            if area
        ]
        classes = np.array([self.ignore, *(self.find_class(element) for element in scene.elements)], dtype=np.uint8)
        return Sample(
            image=torch.from_numpy(scene.image.transpose(2, 0, 1).copy()),
            label=torch.from_numpy(classes[scene.segment_map]),
            name=f"{self.name}-{self.split}-{index:06}",
            caption=scene.caption,
            segments=segments,
            segment_map=torch.from_numpy(scene.segment_map.astype(np.int32)),
        )

    def find_class(self, element: Element) -> int:
        """Return the class index of an element in the dataset's vocabulary."""
        if isinstance(element, Ground):
            return len(self.vocabulary) - len(STUFF) + STUFF.index(element.stuff)
        shape = SHAPES.index(element.shape)
        return shape * len(COLORS) + list(COLORS).index(element.color) if self._by_color else shape


@dataclass
class Scene:
    """A drawn image and what it shows.

    Attributes:
        image: uint8 [H, W, 3].
        segment_map: For each pixel 1 plus the index of its element, uint8 [H, W].
        elements: What was drawn, grounds first.
        areas: Number of visible pixels of each element.
        caption: A sentence about the image.
    """

    image: np.ndarray
    segment_map: np.ndarray
    elements: list[Element]
    areas: list[int]
    caption: str

    def visible_elements(self) -> list[Element]:
        """Return what a caption may name: things that are visible to a third, and grounds on 4 % of the image."""
        min_ground = 0.04 * self.segment_map.size
        return [
            element
            for element, area in zip(self.elements, self.areas, strict=True)
            if area and area >= (element.drawn / 3 if isinstance(element, Thing) else min_ground)
        ]


def draw_scene(split: str, index: int, seed: int, height: int, width: int, shift: bool = False) -> Scene:
    """Draw an image. The generator is seeded by seed, split, shift and index, so that splits share no image.

    Args:
        split: One of `SPLITS`.
        index: Index of the image.
        seed: Seed of the images.
        height: Height in pixels.
        width: Width in pixels.
        shift: Whether to shift the domain, see `Scenes`.
    """
    settings = SPLITS[split]
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), int(shift), index])
    stuff = [name for name in STUFF if settings.novel or name not in NOVEL_STUFF]
    shapes = [name for name in SHAPES if settings.novel or name not in NOVEL_SHAPES]
    count = 1 + int(rng.choice(len(settings.grounds), p=settings.grounds))
    names = [stuff[number] for number in rng.permutation(len(stuff))[:count]]
    canvas, segment_map = paint_grounds(rng, names, height, width)
    elements: list[Element] = [Ground(name) for name in names]
    spots: list[_Spot] = []
    for _ in range(int(rng.choice(len(settings.things), p=settings.things))):
        spot = _find_spot(rng, spots, settings.radius, height, width)
        if spot is None:
            continue
        spots.append(spot)
        color = list(COLORS)[rng.integers(len(COLORS))]
        surface = PATTERNS[rng.choice(len(PATTERNS), p=(0.55, 0.15, 0.15, 0.15))]
        thing = Thing(shapes[rng.integers(len(shapes))], color, surface)
        thing.drawn = _paint_thing(rng, canvas, segment_map, thing, spot, len(elements) + 1)
        elements.append(thing)
    image = light_image(rng, canvas)
    if shift:
        image = shift_domain(rng, image)
    areas = np.bincount(segment_map.ravel(), minlength=len(elements) + 1)[1:].tolist()
    scene = Scene(image, segment_map, elements, areas, "")
    scene.caption = write_caption(rng, scene.visible_elements())
    return scene


def _find_spot(
    rng: Generator, spots: list[_Spot], radius: tuple[float, float], height: int, width: int
) -> _Spot | None:
    """Find a spot for a thing that overlaps earlier ones only a little; None if a few tries find none."""
    side = min(height, width)
    for _ in range(12):
        r = side * rng.uniform(*radius)
        x, y = rng.uniform(0.75 * r, width - 0.75 * r), rng.uniform(0.75 * r, height - 0.75 * r)
        if all((x - a) ** 2 + (y - b) ** 2 > (0.8 * (r + c)) ** 2 for a, b, c in spots):
            return x, y, r
    return None


def _paint_thing(
    rng: Generator,
    canvas: np.ndarray,
    segment_map: np.ndarray,
    thing: Thing,
    spot: _Spot,
    number: int,
) -> int:
    """Paint a thing and its shadow onto the canvas and the segment map; returns the number of pixels it covers."""
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
    # The second tone is the same colour, darker or lighter, so that its name stays the same.
    other = tone * 0.5 if tone.mean() > 60 else tone * 0.5 + 95
    marks = paint_pattern(thing.pattern, rng, high, wide, radius)[part][..., None]
    shading = 1 + 0.16 * (smooth_noise(rng, high, wide, max(4.0, radius)) - 0.5)[part][..., None]
    alpha = cover[part][..., None]
    canvas[window] = canvas[window] * (1 - alpha) + (tone * (1 - marks) + other * marks) * shading * alpha
    solid = cover[part] >= 0.5
    segment_map[window][solid] = number
    return int(solid.sum())


def _clip(canvas: np.ndarray, patch: np.ndarray, top: int, left: int) -> tuple[Any, Any] | None:
    """Return the slices of canvas and patch in which they overlap; None if they do not."""
    bottom, right = min(top + patch.shape[0], canvas.shape[0]), min(left + patch.shape[1], canvas.shape[1])
    first, start = max(top, 0), max(left, 0)
    if first >= bottom or start >= right:
        return None
    window = (slice(first, bottom), slice(start, right))
    return window, (slice(first - top, bottom - top), slice(start - left, right - left))


@dataclass(frozen=True)
class Mention:
    """Mention of one element in a caption.

    Attributes:
        shape: Shape of a thing.
        color: Its colour, or "" if the caption does not tell.
        pattern: Its pattern, likewise.
        stuff: Stuff of a ground; all others are then "".
    """

    shape: str = ""
    color: str = ""
    pattern: str = ""
    stuff: str = ""

    def words(self) -> str:
        """Return the mention in words: `a red striped star` or `grass`."""
        if self.stuff:
            return self.stuff
        noun = " ".join(word for word in (self.color, self.pattern, self.shape) if word)
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def choose_mentions(rng: Generator, elements: Sequence[Element], *, short: bool = False) -> list[Mention]:
    """Choose what a caption mentions: most things and often the grounds, or, if `short`, a single thing.

    Colours, patterns and grounds are left out at random. If captions always named everything, a CLIP could tell images
    apart by colour and ground alone, and would not learn the shapes.
    """
    things = [element for element in elements if isinstance(element, Thing)]
    grounds = [element for element in elements if isinstance(element, Ground)]
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
        mentioned = [ground.stuff for ground in grounds]
        if len(mentioned) > 1 and rng.random() < 0.4:
            mentioned = mentioned[: rng.integers(1, len(mentioned))]
        mentions += [Mention(stuff=stuff) for stuff in mentioned]
    return mentions


def format_caption(rng: Generator, mentions: Sequence[Mention]) -> str:
    """Return a caption with the given mentions, such as `a photo of a red star and a fish on grass`."""
    things = [mention.words() for mention in mentions if not mention.stuff]
    grounds = [mention.words() for mention in mentions if mention.stuff]
    start = "a photo of " if rng.random() < 0.25 else ""
    text = " and ".join(things)
    if grounds:
        text = f"{text} on {' and '.join(grounds)}" if text else " and ".join(grounds)
    return start + text


def write_caption(rng: Generator, elements: Sequence[Element]) -> str:
    """Return a caption of the elements; "" if there is none."""
    return format_caption(rng, choose_mentions(rng, elements)) if elements else ""
