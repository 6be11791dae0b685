"""Reading a split of a published dataset.

Shapes: `H W` image, `N` segments.
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

from ovstrans.datasets.images import check_equal_size, read_image
from ovstrans.datasets.published.layouts import DatasetLocation, Pair
from ovstrans.datasets.published.panoptic import extract_segments, read_segment_ids
from ovstrans.datasets.sample import Sample, Segment, describe_dataset, get_ignore_label
from ovstrans.errors import InputError
from ovstrans.files import read_json, refuse_missing
from ovstrans.parsing import LARGEST_ANNOTATIONS
from ovstrans.vocabulary.catalog import load_published_vocabulary


class PublishedDataset:
    """A split of a published dataset, with label maps in class indices and, where they exist, segments and captions.

    Args:
        location: From `locate_dataset`.
        allow_missing: If True, files may be missing; reading them fails.

    Raises:
        InputError: A listing or annotation file is broken or, unless `allow_missing`, a file is missing.
    """

    def __init__(self, location: DatasetLocation, *, allow_missing: bool = False) -> None:
        if not allow_missing:
            refuse_missing(location.missing)
        self.location = location
        self.name, self.split = location.info.name, location.split
        self.vocabulary = load_published_vocabulary(location.info.vocabulary)
        self.ignore = get_ignore_label(location.info.classes)
        self.published_size = location.info.published_size
        self.videos: Sequence[range] = _find_videos(location.pairs)
        self._captions = _read_captions(location)
        self._annotations = location.annotations if location.labels else {}

    def __repr__(self) -> str:
        return describe_dataset(self)

    def __len__(self) -> int:
        return len(self.location.pairs)

    @property
    def missing(self) -> list[str]:
        """A message for each file that should exist and does not."""
        return self.location.missing

    def paths(self, index: int) -> tuple[Path, Path | None]:
        """Return the files of an image and of its label map; None for the latter if labels are not wanted."""
        pair = self.location.pairs[index]
        return pair.image, pair.label

    def files(self, index: int) -> list[tuple[Path, Callable[[Path], Any]]]:
        """Return the files of a sample, each with the function that reads it on its own."""
        pair, encoding = self.location.pairs[index], self.location.layout.encoding
        files: list[tuple[Path, Callable[[Path], Any]]] = [(pair.image, read_image)]
        if pair.label is not None and encoding is not None:
            files.append((pair.label, encoding.read))
        return files if pair.panoptic is None else [*files, (pair.panoptic, read_segment_ids)]

    def __getitem__(self, index: int) -> Sample:
        """Read an image with its annotations.

        Raises:
            InputError: A file is missing or broken, or holds a number that is no class.
            MismatchError: Image and label map differ in size.
        """
        pair = self.location.pairs[index]
        image = read_image(pair.image, upright=self.location.layout.upright)
        sample = Sample(image=image, name=pair.name, caption=self._captions.get(pair.name, ""))
        if pair.label is not None:
            label, sample.segments, ids = self._read_annotations(pair, sample.image)
            sample.label = torch.from_numpy(label)
            sample.segment_map = None if ids is None else torch.from_numpy(ids.astype(np.int32))
        return reduce_sample(sample, self.location.layout.short_side)

    def _read_annotations(self, pair: Pair, image: Tensor) -> tuple[np.ndarray, list[Segment], np.ndarray | None]:
        """Return label map, segments and segment map; the latter is None without panoptic ground truth."""
        layout, things = self.location.layout, self.vocabulary.things
        segments: list[Segment] = []
        ids = label = None
        assert pair.label is not None
        if layout.encoding is not None:
            numbers = layout.encoding.numbers(pair.label)
            check_equal_size(numbers, pair.label, image, pair.image)
            label = layout.encoding.classes(numbers, pair.label)
            if layout.instances:
                ids, segments = numbers, _make_segments(numbers, label, things, self.ignore)
        if pair.panoptic is not None:
            ids = read_segment_ids(pair.panoptic)
            check_equal_size(ids, pair.panoptic, image, pair.image)
            segments, from_segments = extract_segments(
                ids, self._find_annotation(pair), things, self.ignore, pair.panoptic
            )
            label = from_segments if label is None else label
        assert label is not None
        return label, segments, ids

    def _find_annotation(self, pair: Pair) -> np.ndarray:
        """Return the panoptic annotation of an image, int64 [N, 3]."""
        panoptic = self.location.layout.panoptic
        assert panoptic is not None and pair.panoptic is not None
        folder, json = self.location.path(panoptic.folder), self.location.path(panoptic.json)
        key = pair.panoptic.relative_to(folder).with_suffix("").as_posix()
        if key not in self._annotations:
            raise InputError(f"{json}: does not annotate {pair.panoptic.name} of {pair.image}; copy the file again")
        return self._annotations[key]


def reduce_sample(sample: Sample, short_side: int) -> Sample:
    """Reduce a sample to a short side, as ADE20K-847 is prepared for evaluation.

    The image is resized as by OpenCV's INTER_LINEAR, which does not antialias, and the label map as by INTER_NEAREST,
    which takes the pixel to the upper left. The long side is rounded.

    Args:
        sample: Changed in place if it is reduced.
        short_side: The short side; 0, or a side that is not shorter than the image's, changes nothing.
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
        sample.label = sample.label[_nearest_indices(height, rows)][:, _nearest_indices(width, columns)]
    return sample


def _nearest_indices(old: int, new: int) -> Tensor:
    """Return for each of `new` positions the index of the one of `old` positions to its left, int64 [new]."""
    return (torch.arange(new, dtype=torch.float64) * (1 / (new / old))).floor().long().clamp(max=old - 1)


def _make_segments(numbers: np.ndarray, label: np.ndarray, things: frozenset[int], ignore: int) -> list[Segment]:
    """Return one segment for each number in `numbers` [H, W], whose classes are in `label` [H, W]."""
    values, first, areas = np.unique(numbers, return_index=True, return_counts=True)
    classes = label.reshape(-1)[first]
    return [
        Segment(int(value), int(index), int(index) in things, int(area))
        for value, index, area in zip(values, classes, areas, strict=True)
        if index != ignore
    ]


def _find_videos(pairs: Sequence[Pair]) -> list[range]:
    """Return the range of frames of each video; frames of a video follow each other."""
    starts = [i for i, pair in enumerate(pairs) if pair.video and (i == 0 or pairs[i - 1].video != pair.video)]
    return [range(start, end) for start, end in pairwise([*starts, len(pairs)])]


def _read_captions(location: DatasetLocation) -> dict[str, str]:
    """Return the first caption of each image by name; COCO's images are named by their id."""
    if not location.layout.captions or not location.path(location.layout.captions).is_file():
        return {}
    path = location.path(location.layout.captions)
    content = read_json(path, limit=LARGEST_ANNOTATIONS)
    captions: dict[int, str] = {}
    try:
        for entry in content["annotations"]:
            captions.setdefault(int(entry["image_id"]), str(entry["caption"]).strip())
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not captions in COCO's format ({error}); copy it again, or remove it") from error
    return {pair.name: captions.get(int(pair.name), "") for pair in location.pairs if pair.name.isdigit()}
