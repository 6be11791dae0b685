"""Segments for the eye: the image under its segments, each thing in a shade of its class's colour.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovstrans.datasets.drawing import IGNORED
from ovstrans.datasets.sample import Segment
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.segmenter.coco_files import told_apart
from ovstrans.segmenter.label_maps import SHOWN_SHARE, page, percent
from ovstrans.vocabulary.vocabulary import Vocabulary

_NONE = -1
_SHADES = (0.0, 0.5, -0.42, 0.28, -0.22)
"""Towards white (above 0) or black, of the first thing of a class, the second, and so on, round and round."""


def draw_panoptic(
    image: Tensor, segment_map: Tensor, segments: Sequence[Segment], vocabulary: Vocabulary
) -> Image.Image:
    """The image uint8 [3, H, W] under its segments, ids [H, W] (0: none), above a legend of their classes.

    The legend has each class's share of the pixels, and the number of its things where it is more than one.
    """
    place = torch.full((max((segment.id for segment in segments), default=0) + 1,), _NONE)
    for number, segment in enumerate(segments):
        place[segment.id] = number
    painted = _painted([segment.class_index for segment in segments], vocabulary)
    areas = Counter[int]()
    for segment in segments:
        areas[segment.class_index] += segment.area
    count = Counter(segment.class_index for segment in segments)
    return _page(image, place[segment_map.long()], painted, areas, count, vocabulary, rest="no segment")


def draw_instances(image: Tensor, found: Instances, vocabulary: Vocabulary) -> Image.Image:
    """The image uint8 [3, H, W] under its instances, those that `told_apart` gives, the surest on top, above a legend.

    The legend has the share of the pixels on which each class is seen, and the number of its instances.
    """
    shown = told_apart(found.scores.tolist(), list(found.masks.numpy()))
    values = torch.full(tuple(image.shape[-2:]), _NONE)
    for number in reversed(range(len(shown))):
        values[found.masks[shown[number]]] = number
    kinds = [int(found.classes[index]) for index in shown]
    notes = [f"{found.scores[index]:.2f}" for index in shown]
    visible = torch.bincount(values[values != _NONE], minlength=len(shown)).tolist()
    areas = Counter[int]()
    for kind, area in zip(kinds, visible, strict=True):
        areas[kind] += area
    painted = _painted(kinds, vocabulary, notes)
    return _page(image, values, painted, areas, Counter(kinds), vocabulary, rest="no instance")


def shade(color: Iterable[int], number: int) -> tuple[int, int, int]:
    """A class's colour for its thing number 0, 1, ...: the colour itself, and from then on lighter and darker ones."""
    step = _SHADES[number % len(_SHADES)]
    values = np.array(list(color), dtype=np.float64)
    red, green, blue = np.rint(values + step * (255 - values) if step > 0 else values * (1 + step)).astype(int).tolist()
    return red, green, blue


def _painted(kinds: Sequence[int], vocabulary: Vocabulary, notes: Sequence[str] = ()) -> Vocabulary:
    """A vocabulary with a class a segment: its name, and its shade."""
    palette, seen = vocabulary.palette().tolist(), Counter[int]()
    names, colors = [], []
    for number, kind in enumerate(kinds):
        names.append((" ".join([vocabulary.names[kind], *notes[number : number + 1]]),))
        colors.append(shade(palette[kind], seen[kind]))
        seen[kind] += 1
    return Vocabulary("segments", tuple(names), colors=tuple(colors))


def _page(
    image: Tensor,
    values: Tensor,
    painted: Vocabulary,
    areas: Counter[int],
    count: Counter[int],
    vocabulary: Vocabulary,
    *,
    rest: str,
) -> Image.Image:
    """The page, its legend by class, the largest first, and of what has no segment, as `rest`."""
    none = len(vocabulary)
    listed = Vocabulary(
        "legend",
        (*((name,) for name in vocabulary.names), (rest,)),
        novel=vocabulary.novel,
        colors=(*((red, green, blue) for red, green, blue in vocabulary.palette().tolist()), IGNORED),
    )
    entries = []
    for kind, area in sorted(areas.items(), key=lambda entry: (-entry[1], entry[0])):
        if (share := area / values.numel()) >= SHOWN_SHARE:
            entries.append((kind, f"{count[kind]} x, {percent(share)}" if count[kind] > 1 else percent(share)))
    if (empty := float((values == _NONE).float().mean())) >= SHOWN_SHARE:
        entries.append((none, percent(empty)))
    return page(image, values, painted, entries, listed, ignore=_NONE)
