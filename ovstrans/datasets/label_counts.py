"""Counting the values in the label maps of a described folder, to name what scores would hide.

Masks of 0 and 255 are the usual case: 255 is ignored by default, so nothing of the second class is left, and every
score is near 100 %.

Shapes: `H W` image, `K` classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ovstrans.datasets.description import LABEL_VALUES, Description
from ovstrans.datasets.folder import FolderDataset
from ovstrans.datasets.parallel import map_in_threads
from ovstrans.datasets.sample import Dataset
from ovstrans.errors import InputError
from ovstrans.progress import ProgressReporter

logger = logging.getLogger(__name__)

_MOST_MAPS = 1000
"""Label maps that are counted before training or evaluation, at most."""
_BLOCK = 100
"""Counting ends after so many more label maps if every class has been seen."""
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class LabelCounts:
    """Pixels of each value in a number of label maps.

    Attributes:
        maps: Number of label maps.
        pixels: Pixels of each raw value that occurs; 65536 stands for all values beyond 16 bits.
    """

    maps: int = 0
    pixels: Counter[int] = field(default_factory=Counter)

    def __add__(self, other: LabelCounts) -> LabelCounts:
        return LabelCounts(self.maps + other.maps, self.pixels + other.pixels)

    def absent_classes(self, description: Description) -> list[int]:
        """Return the indices of the classes without a pixel."""
        present = {index for value, index in description.values.items() if self.pixels[value]}
        return [index for index in range(len(description.vocabulary)) if index not in present]


def count_values(raw: np.ndarray) -> LabelCounts:
    """Count the raw values of a label map [H, W]."""
    values = raw if raw.dtype == np.uint8 else np.where(raw < 0, LABEL_VALUES, raw.clip(max=LABEL_VALUES))
    counts = np.bincount(values.reshape(-1))
    return LabelCounts(1, Counter({int(value): int(counts[value]) for value in np.flatnonzero(counts)}))


def count_labels(dataset: FolderDataset, indices: Sequence[int]) -> LabelCounts:
    """Count the values of label maps spread evenly over `indices`, until every class has been seen.

    At most 1,000 label maps are read. Those that cannot be read are left out.
    """

    def count(index: int) -> LabelCounts:
        try:
            return count_values(dataset.read_raw_label(index))
        except InputError:  # whoever reads the sample reports it
            return LabelCounts()

    stride = max(1, -(-len(indices) // _MOST_MAPS))
    order = [
        indices[place] for first in range(_BLOCK) for place in range(first * stride, len(indices), _BLOCK * stride)
    ]
    total = LabelCounts()
    for first in range(0, len(order), _BLOCK):
        block = order[first : first + _BLOCK]
        total = sum(map_in_threads(count, block, ProgressReporter(None, "count", len(block))), total)
        if not total.absent_classes(dataset.description):
            break
    return total


def warn_of_labels(dataset: Dataset, limit: int | None = None) -> None:
    """Log what makes scores on a dataset say little: one class only, classes without a pixel, values that are ignored.

    Args:
        dataset: A labelled dataset. Label maps are looked at if it is a described folder.
        limit: Look at the first so many label maps; None for all.
    """
    counts = LabelCounts()
    if isinstance(dataset, FolderDataset) and len(dataset.vocabulary) > 1:
        counts = count_labels(dataset, range(min(limit or len(dataset), len(dataset))))
    for message in describe_labels(dataset, counts):
        logger.warning("%s:%s: %s", dataset.name, dataset.split, message)


def describe_labels(dataset: Dataset, counts: LabelCounts) -> list[str]:
    """Return what makes scores on a dataset say little, a sentence each.

    Args:
        dataset: The dataset.
        counts: The values in its label maps.
    """
    names = dataset.vocabulary.names
    if len(names) == 1:
        return [
            f"its only class is {names[0]}, which every pixel is given to: all scores are 100 %, whatever the model "
            "does; add a class for everything else, such as background"
        ]
    if not isinstance(dataset, FolderDataset) or not counts.maps:
        return []
    description = dataset.description
    absent = counts.absent_classes(description)
    parts = [_describe_absent([names[index] for index in absent], len(names), counts.maps)] if absent else []
    ignored = {value: counts.pixels[value] for value in sorted(description.ignore) if counts.pixels[value]}
    if ignored and (absent or description.ignores_by_default):
        total = sum(counts.pixels.values())
        share = f"{100 * sum(ignored.values()) / total:.3g} %"
        if len(ignored) == 1:
            parts.append(f"value {next(iter(ignored))} covers {share} and is ignored")
        else:
            parts.append(f"values {' and '.join(str(value) for value in ignored)} cover {share} and are ignored")
    if not parts:
        return []
    if not ignored:
        return parts
    return [f"{', and '.join(parts)}; {_advise(description, absent, list(ignored))}"]


def _describe_absent(absent: Sequence[str], classes: int, maps: int) -> str:
    shown = ", ".join(absent[:_NAMES_SHOWN])
    more = f" and {len(absent) - _NAMES_SHOWN} more" if len(absent) > _NAMES_SHOWN else ""
    subject = f"class {shown} has" if len(absent) == 1 else f"classes {shown}{more} have"
    where = "its label map" if maps == 1 else f"{maps} label maps"
    alone = ", one class alone is left to score" if len(absent) == classes - 1 else ""
    return f"{subject} no pixel anywhere in {where}{alone}"


def _advise(description: Description, absent: Sequence[int], ignored: Sequence[int]) -> str:
    """Say how to give ignored values a class, or to confirm that they have none."""
    names = description.vocabulary.names
    free = {index: value for value, index in zip(ignored, absent, strict=False)}
    if not absent:
        free = {len(names) - 1: ignored[0]}
    pairs = {value: index for value, index in description.values.items() if index not in absent}
    pairs |= {value: index for index, value in free.items()}
    shown = [f'{value} = "{names[index]}"' for value, index in sorted(pairs.items())]
    if len(shown) > _NAMES_SHOWN:
        shown = [*shown[:1], "...", shown[-1]]
    keep = f"ignore = {list(ignored)} if it does not" if description.ignores_by_default else ""
    return (
        f"if that stands for a class, write values = {{ {', '.join(shown)} }} in {description.path}"
        f"{f', or {keep}' if keep else ''}"
    )
