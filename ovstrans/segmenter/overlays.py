"""Pictures of predictions for people: the image under its classes, segments or instances, above a legend.

Each thing has a shade of its class's colour, so that neighbours of one class can be told apart.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovstrans.datasets.drawing import IGNORED, PAPER, TEXT, draw_legend, draw_overlay
from ovstrans.datasets.sample import Segment, get_ignore_label
from ovstrans.figures import drawable_names
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.segmenter.coco import select_distinct
from ovstrans.segmenter.label_maps import class_shares
from ovstrans.vocabulary.vocabulary import Vocabulary

_LEAST_SHARE = 0.0005
"""Share of the pixels from which on a class is in the legend."""
_LARGEST, _SMALLEST = 2048, 360
_TEXT_SHARE = 40
_NONE = -1
_SHADES = (0.0, 0.5, -0.42, 0.28, -0.22)
"""Shift towards white (above 0) or black of the first thing of a class, the second and so on, cyclically."""


def draw_classes(image: Tensor, labels: Tensor, vocabulary: Vocabulary) -> Image.Image:
    """Draw an image uint8 [3, H, W] under its classes [H, W], above a legend of those that occur, the largest first.

    Small images are enlarged, and those beyond 2048 pixels reduced.
    """
    entries = [(index, format_share(share)) for index, share in class_shares(labels) if share >= _LEAST_SHARE]
    return _draw_page(image, labels, vocabulary, entries, vocabulary, ignore=get_ignore_label(len(vocabulary)))


def draw_panoptic(
    image: Tensor, segment_map: Tensor, segments: Sequence[Segment], vocabulary: Vocabulary
) -> Image.Image:
    """Draw an image under its panoptic segments, above a legend of their classes.

    The legend has each class's share of the pixels, and the number of its segments if there are several.

    Args:
        image: uint8 [3, H, W].
        segment_map: Segment ids [H, W]; 0 is no segment.
        segments: The segments.
        vocabulary: Names and colours of the classes.
    """
    place = torch.full((max((segment.id for segment in segments), default=0) + 1,), _NONE)
    for number, segment in enumerate(segments):
        place[segment.id] = number
    shaded = _shade_segments([segment.class_index for segment in segments], vocabulary)
    areas = Counter[int]()
    for segment in segments:
        areas[segment.class_index] += segment.area
    count = Counter(segment.class_index for segment in segments)
    return _draw_segments(image, place[segment_map.long()], shaded, areas, count, vocabulary, rest="no segment")


def draw_instances(image: Tensor, instances: Instances, vocabulary: Vocabulary) -> Image.Image:
    """Draw an image under its distinct instances, the highest score on top, above a legend of their classes.

    The legend has the share of the pixels on which each class is visible, and the number of its instances.

    Args:
        image: uint8 [3, H, W].
        instances: The instances; drawn are those of `segmenter.coco.select_distinct`.
        vocabulary: Names and colours of the classes.
    """
    shown = select_distinct(instances.scores.tolist(), list(instances.masks.numpy()))
    values = torch.full(tuple(image.shape[-2:]), _NONE)
    for number in reversed(range(len(shown))):
        values[instances.masks[shown[number]]] = number
    classes = [int(instances.classes[index]) for index in shown]
    notes = [f"{instances.scores[index]:.2f}" for index in shown]
    visible = torch.bincount(values[values != _NONE], minlength=len(shown)).tolist()
    areas = Counter[int]()
    for index, area in zip(classes, visible, strict=True):
        areas[index] += area
    shaded = _shade_segments(classes, vocabulary, notes)
    return _draw_segments(image, values, shaded, areas, Counter(classes), vocabulary, rest="no instance")


def shade_color(color: Iterable[int], number: int) -> tuple[int, int, int]:
    """Return a class's colour for its thing number 0, 1, ...: the colour itself, then lighter and darker ones."""
    step = _SHADES[number % len(_SHADES)]
    values = np.array(list(color), dtype=np.float64)
    red, green, blue = np.rint(values + step * (255 - values) if step > 0 else values * (1 + step)).astype(int).tolist()
    return red, green, blue


def format_share(share: float) -> str:
    """Return a share of the pixels as a legend has it, such as "12 %" or "0.4 %"."""
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"


def _draw_page(
    image: Tensor,
    values: Tensor,
    painted: Vocabulary,
    entries: Sequence[tuple[int, str]],
    vocabulary: Vocabulary,
    *,
    ignore: int,
) -> Image.Image:
    """Draw an image uint8 [3, H, W] under the colours and names of `values` [H, W], above a legend.

    Args:
        image: The image.
        values: Indices in `painted`.
        painted: Names and colours on the image.
        entries: Entries of the legend, indices in `vocabulary` with notes.
        vocabulary: Names and colours in the legend.
        ignore: Value of pixels to leave grey.
    """
    height, width = (int(side) for side in values.shape)
    factor = min(max(1, -(-_SMALLEST // width)), _LARGEST / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    text = max(TEXT, round(min(size) / _TEXT_SHARE))
    picture = draw_overlay(image, values, painted, ignore=ignore, size=size, text=text)
    margin = text // 2
    page_width = max(size[0], _SMALLEST)
    below = draw_legend(entries, vocabulary, page_width - 2 * margin, text=text)
    page = Image.new("RGB", (page_width, size[1] + below.height + margin), PAPER)
    page.paste(picture, (0, 0))
    page.paste(below, (margin, size[1]))
    return page


def _shade_segments(classes: Sequence[int], vocabulary: Vocabulary, notes: Sequence[str] = ()) -> Vocabulary:
    """Return a vocabulary with an entry for each segment: the name of its class and a note, and its shade."""
    palette, seen = vocabulary.palette().tolist(), Counter[int]()
    shown, names, colors = drawable_names(vocabulary.names), [], []
    for number, index in enumerate(classes):
        names.append((" ".join([shown[index], *notes[number : number + 1]]),))
        colors.append(shade_color(palette[index], seen[index]))
        seen[index] += 1
    return Vocabulary("segments", tuple(names), colors=tuple(colors))


def _draw_segments(
    image: Tensor,
    values: Tensor,
    shaded: Vocabulary,
    areas: Counter[int],
    count: Counter[int],
    vocabulary: Vocabulary,
    *,
    rest: str,
) -> Image.Image:
    """Draw a page whose legend lists classes, the largest first, and as `rest` the pixels without a segment."""
    none = len(vocabulary)
    listed = Vocabulary(
        "legend",
        (*((name,) for name in vocabulary.names), (rest,)),
        novel=vocabulary.novel,
        colors=(*((red, green, blue) for red, green, blue in vocabulary.palette().tolist()), IGNORED),
    )
    entries = []
    for index, area in sorted(areas.items(), key=lambda entry: (-entry[1], entry[0])):
        if (share := area / values.numel()) >= _LEAST_SHARE:
            note = format_share(share)
            entries.append((index, f"{count[index]} x, {note}" if count[index] > 1 else note))
    if (empty := float((values == _NONE).float().mean())) >= _LEAST_SHARE:
        entries.append((none, format_share(empty)))
    return _draw_page(image, values, shaded, entries, listed, ignore=_NONE)
