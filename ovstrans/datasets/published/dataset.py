"""A split of a published dataset, read from whatever layout it was found in.

Shapes: `H W` image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.datasets.images import read_image
from ovstrans.datasets.published.layouts import DatasetLocation, Pair
from ovstrans.datasets.published.panoptic import extract_segments, read_segment_ids
from ovstrans.datasets.sample import Sample, Segment, get_ignore_label
from ovstrans.errors import InputError, MismatchError
from ovstrans.files import read_json, refuse_missing


class PublishedDataset:
    """Samples of a published dataset: label maps in class indices, panoptic segments and captions where it has them.

    found: from `find_layout`.
    complete: False leaves it to reading to complain of files that are missing.
    Raises InputError for a missing image or label map, a broken listing or annotation file.
    """

    def __init__(self, found: DatasetLocation, *, allow_missing: bool = False) -> None:
        from ovstrans.vocabulary.catalog import load_published_vocabulary

        if not allow_missing:
            refuse_missing(found.missing)
        self.found = found
        self.name, self.split = found.published.name, found.split
        self.vocabulary = load_published_vocabulary(found.published.vocabulary)
        self.ignore = get_ignore_label(found.published.classes)
        self.published_size = found.published.published_size
        self.videos: Sequence[range] = _videos(found.pairs)
        self._captions = _captions(found)
        self._annotations = found.annotations if found.labels else {}

    def __len__(self) -> int:
        return len(self.found.pairs)

    def paths(self, index: int) -> tuple[Path, Path | None]:
        """The files of an image and of its label map (None where labels were not asked for)."""
        pair = self.found.pairs[index]
        return pair.image, pair.label

    def files(self, index: int) -> list[tuple[Path, Callable[[Path], Any]]]:
        """The files of an image, each with what reads it without the others."""
        pair, encoding = self.found.pairs[index], self.found.layout.encoding
        found: list[tuple[Path, Callable[[Path], Any]]] = [(pair.image, read_image)]
        if pair.label is not None and encoding is not None:
            found.append((pair.label, encoding.read))
        return found if pair.panoptic is None else [*found, (pair.panoptic, read_segment_ids)]

    def __getitem__(self, index: int) -> Sample:
        """Read one image with all that is known of it.

        Raises InputError for a missing or broken file or an illegal label value, MismatchError for unequal
        sizes, with the path.
        """
        pair = self.found.pairs[index]
        image = read_image(pair.image, upright=self.found.layout.upright)
        sample = Sample(image=image, name=pair.name, caption=self._captions.get(pair.name, ""))
        if pair.label is not None:
            label, sample.segments, ids = self._labels(pair, sample.image)
            sample.label = torch.from_numpy(label)
            sample.segment_map = None if ids is None else torch.from_numpy(ids.astype(np.int32))
        return reduce_sample(sample, self.found.layout.short_side)

    def _labels(self, pair: Pair, image: Tensor) -> tuple[np.ndarray, list[Segment], np.ndarray | None]:
        """Label map, segments and segment map, the latter None without panoptic ground truth."""
        layout, things = self.found.layout, self.vocabulary.things
        segments: list[Segment] = []
        ids = label = None
        assert pair.label is not None
        if layout.encoding is not None:
            numbers = layout.encoding.numbers(pair.label)
            _check_size(numbers, pair.label, image, pair.image)
            label = layout.encoding.classes(numbers, pair.label)
            if layout.instances:
                ids, segments = numbers, _instances(numbers, label, things, self.ignore)
        if pair.panoptic is not None:
            ids = read_segment_ids(pair.panoptic)
            _check_size(ids, pair.panoptic, image, pair.image)
            segments, painted = extract_segments(ids, self._rows(pair), things, self.ignore, pair.panoptic)
            label = painted if label is None else label
        assert label is not None
        return label, segments, ids

    def _rows(self, pair: Pair) -> np.ndarray:
        panoptic = self.found.layout.panoptic
        assert panoptic is not None and pair.panoptic is not None
        folder, json = self.found.path(panoptic.folder), self.found.path(panoptic.json)
        key = pair.panoptic.relative_to(folder).with_suffix("").as_posix()
        if key not in self._annotations:
            raise InputError(f"{json}: annotates no {pair.panoptic.name}, which {pair.image} needs; copy it again")
        return self._annotations[key]


def reduce_sample(sample: Sample, short_side: int) -> Sample:
    """The sample with its short side reduced to `short_side`, where it is longer; 0 leaves all as they are.

    As ADE20K-847 is prepared for evaluation (OpenCV's INTER_LINEAR, which does not smooth, and INTER_NEAREST,
    which takes the pixel to the upper left); the long side is rounded.
    """
    height, width = sample.image.shape[1:]
    if not 0 < short_side < min(height, width):
        return sample
    rows, columns = short_side, round(width / height * short_side)
    if height > width:
        rows, columns = round(height / width * short_side), short_side
    image = F.interpolate(sample.image[None].float(), (rows, columns), mode="bilinear", align_corners=False)[0]
    sample.image = image.round().clamp(0, 255).byte()
    if sample.label is not None:
        sample.label = sample.label[_nearest(height, rows)][:, _nearest(width, columns)]
    return sample


def _nearest(old: int, new: int) -> Tensor:
    """For each of `new` places the one of `old` to its left."""
    return (torch.arange(new, dtype=torch.float64) * (1 / (new / old))).floor().long().clamp(max=old - 1)


def _check_size(label: np.ndarray, path: Path, image: Tensor, image_path: Path) -> None:
    if label.shape != tuple(image.shape[1:]):
        (height, width), (rows, columns) = image.shape[1:], label.shape
        raise MismatchError(
            f"{path}: the label map is {columns}x{rows}, its image {image_path} is {width}x{height}; "
            "they must be the same"
        )


def _instances(numbers: np.ndarray, label: np.ndarray, things: frozenset[int], ignore: int) -> list[Segment]:
    """The segments of a map whose every number is one."""
    values, first, areas = np.unique(numbers, return_index=True, return_counts=True)
    classes = label.reshape(-1)[first]
    return [
        Segment(int(value), int(index), int(index) in things, int(area))
        for value, index, area in zip(values, classes, areas, strict=True)
        if index != ignore
    ]


def _videos(pairs: Sequence[Pair]) -> list[range]:
    """The frames of each video, which follow each other."""
    starts = [i for i, pair in enumerate(pairs) if pair.video and (i == 0 or pairs[i - 1].video != pair.video)]
    return [range(start, end) for start, end in pairwise([*starts, len(pairs)])]


def _captions(found: DatasetLocation) -> dict[str, str]:
    """The first caption of each image, by name; COCO's images are named by their number."""
    if not found.layout.captions or not found.path(found.layout.captions).is_file():
        return {}
    path = found.path(found.layout.captions)
    first: dict[int, str] = {}
    try:
        for entry in read_json(path)["annotations"]:
            first.setdefault(int(entry["image_id"]), str(entry["caption"]).strip())
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not captions in COCO's format ({error}); copy it again, or remove it") from error
    return {pair.name: first.get(int(pair.name), "") for pair in found.pairs if pair.name.isdigit()}
