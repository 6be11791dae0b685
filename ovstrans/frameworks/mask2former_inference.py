"""Semantic, panoptic and instance segmentation from the masks and classes of queries.

Mask2Former's three kinds of inference (Cheng et al. 2022, arXiv 2112.01527; as in its released code). `semantic`,
`panoptic` and `instances` work on whole masks; `QueryScores` gives the same results a few rows at a time, at any size.

Shapes: `B` batch, `Q` queries, `K` classes, `H W` image, `h w` mask logits, `n` rows of an image, `N` instances.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ovstrans.datasets.sample import Segment
from ovstrans.frameworks.scores import (
    Best,
    Interpolation,
    Scores,
    best_class,
    concatenate,
    resize_columns,
    resize_rows,
)

MASK_THRESHOLD = 0.5
"""Mask probability of the pixels inside a mask: at least this in panoptic, above it in instance segmentation."""

MaskBands = Callable[[Tensor], Iterable[Tensor]]
"""Yields the mask probabilities [q, n, W] of q queries, given by index, one band of n rows after the other."""


@dataclass(frozen=True)
class Instances:
    """The instances found in an image, by descending score.

    Attributes:
        scores: float32 [N].
        classes: int64 [N], class indices.
        masks: bool [N, H, W].
    """

    scores: Tensor
    classes: Tensor
    masks: Tensor


def semantic(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Sum class probability times mask probability over queries.

    Args:
        probabilities: [B, Q, K], without the void class.
        masks: Logits [B, Q, H, W].

    Returns:
        Class scores [B, K, H, W], float32.
    """
    return torch.einsum("bqk,bqhw->bkhw", probabilities.float(), masks.float().sigmoid())


def panoptic(
    probabilities: Tensor,
    masks: Tensor,
    things: Collection[int],
    *,
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[Segment]]:
    """Assign pixels to queries so that segments do not overlap.

    A query takes part if its best class is not the void and has a probability above `object_threshold`. Each pixel
    goes to the query with the highest product of class and mask probability. A query that keeps less than
    `overlap_threshold` of its own mask is dropped. Queries of one stuff class become one segment.

    Args:
        probabilities: [Q, K + 1], the void class last.
        masks: Logits [Q, H, W].
        things: The classes that can be counted; all others are stuff.
        object_threshold: Least class probability of a segment.
        overlap_threshold: Least part of its mask that a query must keep.

    Returns:
        The segment map, int32 [H, W] of ids from 1 on (0 for no segment), and the segments in the order of their ids.
    """
    return _panoptic_from_bands(
        probabilities,
        lambda queries: [masks[queries].float().sigmoid()],
        (int(masks.shape[-2]), int(masks.shape[-1])),
        things,
        object_threshold=object_threshold,
        overlap_threshold=overlap_threshold,
    )


def _panoptic_from_bands(
    probabilities: Tensor,
    bands: MaskBands,
    size: tuple[int, int],
    things: Collection[int],
    *,
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[Segment]]:
    """Compute `panoptic` without whole masks: `bands` together make up `size`."""
    score, label = probabilities.float().max(-1)
    kept = ((label != probabilities.shape[-1] - 1) & (score > object_threshold)).nonzero().flatten()
    score, label = score[kept], label[kept]
    count, device = len(kept), probabilities.device
    segment_map = torch.zeros(size, dtype=torch.int32, device=device)
    segments: list[Segment] = []
    if not count:
        return segment_map, segments
    # Pixels that each query wins, pixels of its mask, and pixels that are both: its segment.
    won, mask_areas, areas = (torch.zeros(count, dtype=torch.int64, device=device) for _ in range(3))
    owners = torch.full(size, count, dtype=torch.int32, device=device)  # of each pixel; `count` for none
    first = 0
    for band in bands(kept):
        inside = band >= MASK_THRESHOLD
        winner = (score[:, None, None] * band).argmax(0)
        visible = inside.gather(0, winner[None])[0]
        won += torch.bincount(winner.flatten(), minlength=count)
        mask_areas += inside.flatten(1).sum(1)
        areas += torch.bincount(winner[visible], minlength=count)
        owners[first : first + len(winner)] = torch.where(visible, winner, count).int()
        first += len(winner)
    ids = torch.zeros(count + 1, dtype=torch.int32)  # of each query; 0 for a dropped one
    stuff_ids: dict[int, int] = {}
    rows = zip(label.tolist(), won.tolist(), mask_areas.tolist(), areas.tolist(), strict=True)
    for query, (class_index, pixels_won, mask_area, area) in enumerate(rows):
        if not area or pixels_won / mask_area < overlap_threshold:
            continue
        isthing = class_index in things
        if not isthing and class_index in stuff_ids:
            ids[query] = stuff_ids[class_index]
            segments[stuff_ids[class_index] - 1].area += area
        else:
            ids[query] = segment_id = len(segments) + 1
            segments.append(Segment(id=segment_id, class_index=class_index, isthing=isthing, area=area))
            if not isthing:
                stuff_ids[class_index] = segment_id
    return ids.to(device)[owners.long()], segments


def instances(probabilities: Tensor, masks: Tensor, things: Collection[int], *, top: int = 100) -> Instances:
    """Take the best pairs of query and class as instances.

    The `top` pairs with the highest class probability are considered, those of things are kept. The score of an
    instance is its class probability times the mean mask probability inside its mask.

    Args:
        probabilities: [Q, K], without the void class.
        masks: Logits [Q, H, W].
        things: The classes that can be counted.
        top: How many pairs to consider.
    """
    return _instances_from_bands(
        probabilities,
        lambda queries: [masks[queries].float().sigmoid()],
        (int(masks.shape[-2]), int(masks.shape[-1])),
        things,
        top=top,
    )


def _instances_from_bands(
    probabilities: Tensor, bands: MaskBands, size: tuple[int, int], things: Collection[int], *, top: int
) -> Instances:
    """Compute `instances` without whole masks of floats: `bands` together make up `size`."""
    classes, device = probabilities.shape[-1], probabilities.device
    score, pair = probabilities.float().flatten().topk(min(top, probabilities.numel()))
    label, query = pair % classes, pair // classes
    is_thing = torch.tensor([index in things for index in range(classes)], device=device)
    score, label, query = (each[is_thing[label]] for each in (score, label, query))
    if not len(query):
        return Instances(score, label, torch.zeros(0, *size, dtype=torch.bool, device=device))
    queries, row = torch.unique(query, return_inverse=True)
    masks = torch.zeros(len(queries), *size, dtype=torch.bool, device=device)
    total, area = (torch.zeros(len(queries), dtype=torch.float64, device=device) for _ in range(2))
    first = 0
    for band in bands(queries):
        inside = band > MASK_THRESHOLD
        masks[:, first : first + band.shape[1]] = inside
        total += (band * inside).flatten(1).sum(1)
        area += inside.flatten(1).sum(1)
        first += band.shape[1]
    score = score * (total / area.clamp(min=1)).float()[row]
    order = score.argsort(descending=True, stable=True)
    return Instances(score[order], label[order], masks[row[order]])


class QueryScores(Scores):
    """Class scores of an image from its queries: the `semantic` sums, computed a few rows at a time.

    Args:
        probabilities: [Q, K + 1], the void class last; it gets no score.
        masks: Logits [Q, h, w] of the padded image.
        size: (H, W) of the image, which is at the top left of the padded one.
        padded: (height, width) of the padded image; None if `masks` has the size of the image.
    """

    logits = False

    def __init__(
        self, probabilities: Tensor, masks: Tensor, size: tuple[int, int], padded: tuple[int, int] | None = None
    ) -> None:
        self.probabilities, self.masks = probabilities.float(), masks.float()
        self.class_probabilities = self.probabilities[:, :-1].contiguous()
        self.image_size, self.size = size, size
        self.padded = padded or (int(masks.shape[-2]), int(masks.shape[-1]))
        self.num_classes, self.device = int(probabilities.shape[1]) - 1, masks.device
        self.masks_first = False
        self.to_image = Interpolation.between(int(masks.shape[1]), self.padded[0]).crop(size[0])
        self.to_size = Interpolation.between(size[0], size[0])

    def resize(self, size: tuple[int, int], *, masks_first: bool = False) -> QueryScores:
        """Return the scores at another size; see `Scores.resize`."""
        resized = copy.copy(self)
        resized.size, resized.masks_first = size, masks_first
        resized.to_size = Interpolation.between(self.image_size[0], size[0])
        return resized

    @property
    def band(self) -> int:
        """Number of rows to compute at once."""
        widest = max(self.size[1], self.padded[1]) * max(1, -(-self.image_size[0] // self.size[0]))
        return max(1, self._numbers // (widest * len(self.masks)))

    def mask_probabilities(self, first: int, last: int, queries: Tensor | None = None) -> Tensor:
        """Compute mask probabilities of rows `first` to `last` (exclusive).

        Args:
            first: The first row.
            last: The row after the last one.
            queries: Indices [q] of the queries; None for all.

        Returns:
            [q, n, W].
        """
        low, high = self.to_size.source_range(first, last)
        masks = self.masks if queries is None else self.masks[queries]
        masks = resize_rows(masks, self.to_image, low, high)
        if self.masks_first:
            masks = resize_rows(masks, self.to_size, first, last, start=low)
        masks = resize_columns(masks, self.padded[1])[..., : self.image_size[1]]
        if self.masks_first:
            return resize_columns(masks, self.size[1]).sigmoid()
        # Resizing is linear, and so is the sum over queries: Q resized probabilities sum to K resized scores.
        probabilities = resize_rows(masks.sigmoid(), self.to_size, first, last, start=low)
        return resize_columns(probabilities, self.size[1])

    def rows(self, first: int, last: int) -> Tensor:
        """Compute the scores of rows `first` to `last` (exclusive), float32 [n, W, K]."""
        pixels = self.mask_probabilities(first, last).flatten(1).t()
        return (pixels @ self.class_probabilities).view(last - first, self.size[1], self.num_classes)

    def best(self, first: int, last: int, *, confidence: bool = False) -> Best:
        """Return the best class of each pixel; see `Scores.best`."""
        masks = self.mask_probabilities(first, last).flatten(1)
        step = max(1, self._numbers // self.num_classes)
        parts = [
            best_class(
                masks[:, start : start + step].t() @ self.class_probabilities, logits=False, confidence=confidence
            )
            for start in range(0, masks.shape[1], step)
        ]
        return concatenate(parts, dim=0, shape=(last - first, self.size[1]))

    def panoptic(
        self, things: Collection[int], *, object_threshold: float, overlap_threshold: float
    ) -> tuple[Tensor, list[Segment]]:
        """Compute the panoptic segmentation at `size`, from resized mask logits; see `panoptic`."""
        return _panoptic_from_bands(
            self.probabilities,
            self._mask_bands,
            self.size,
            things,
            object_threshold=object_threshold,
            overlap_threshold=overlap_threshold,
        )

    def instances(self, things: Collection[int], *, top: int) -> Instances:
        """Compute the instances at `size`, from resized mask logits; see `instances`."""
        return _instances_from_bands(self.class_probabilities, self._mask_bands, self.size, things, top=top)

    def _mask_bands(self, queries: Tensor) -> Iterable[Tensor]:
        """Yield mask probabilities [q, n, W] of some queries from resized mask logits, band by band."""
        resized = self.resize(self.size, masks_first=True)
        return (resized.mask_probabilities(first, last, queries) for first, last in resized.bands())
