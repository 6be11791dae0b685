"""From queries to pictures: semantic, panoptic and instance segmentation (Mask2Former's three inferences).

Shapes: `B` batch, `Q` queries, `K` classes, `H W` image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ovstrans.datasets.sample import Segment
from ovstrans.frameworks.scores import Axis, Best, Scores, best_of, joined, resize_columns, resize_rows

INSIDE = 0.5
"""A pixel is inside a mask from this probability on."""


@dataclass(frozen=True)
class Instances:
    """The things of an image, the surest first.

    scores: float32 [N].  classes: int64 [N].  masks: bool [N, H, W].
    """

    scores: Tensor
    classes: Tensor
    masks: Tensor


def semantic(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Class scores of pixels, [B, K, H, W]: sum over queries of class probability times mask probability.

    probabilities: [B, Q, K], without the void.  masks: logits [B, Q, H, W].
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
    """Segments that do not overlap: a map int32 [H, W] of ids from 1 on (0: none), and what they are.

    probabilities: [Q, K + 1], the void last.  masks: logits [Q, H, W].  things: the countable classes;
    all of one kind of stuff is one segment.  A query counts whose best class is not the void and
    surer than `object_threshold`; each pixel goes to the query with the highest product of class and
    mask probability; a query that keeps less than `overlap_threshold` of its own mask is dropped.
    """
    return panoptic_from(
        probabilities,
        lambda queries: [masks[queries].float().sigmoid()],
        (int(masks.shape[-2]), int(masks.shape[-1])),
        things,
        object_threshold=object_threshold,
        overlap_threshold=overlap_threshold,
    )


def panoptic_from(
    probabilities: Tensor,
    bands: Callable[[Tensor], Iterable[Tensor]],
    size: tuple[int, int],
    things: Collection[int],
    *,
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[Segment]]:
    """`panoptic` without whole masks: `bands` yields the mask probabilities [queries, n, W] of the queries
    it is given, n rows after n rows; together they make up `size`."""
    score, label = probabilities.float().max(-1)
    kept = ((label != probabilities.shape[-1] - 1) & (score > object_threshold)).nonzero().flatten()
    score, label = score[kept], label[kept]
    count, device = len(kept), probabilities.device
    segment_map = torch.zeros(size, dtype=torch.int32, device=device)
    segments: list[Segment] = []
    if not count:
        return segment_map, segments
    owned, areas, visible = (torch.zeros(count, dtype=torch.int64, device=device) for _ in range(3))
    shown = torch.full(size, count, dtype=torch.int32, device=device)  # whose pixel it is; `count`: no one's
    first = 0
    for inside in bands(kept):
        whole = inside >= INSIDE
        owner = (score[:, None, None] * inside).argmax(0)
        clear = whole.gather(0, owner[None])[0]
        owned += torch.bincount(owner.flatten(), minlength=count)
        areas += whole.flatten(1).sum(1)
        visible += torch.bincount(owner[clear], minlength=count)
        shown[first : first + len(owner)] = torch.where(clear, owner, count).int()
        first += len(owner)
    numbers = torch.zeros(count + 1, dtype=torch.int32)
    stuff: dict[int, int] = {}
    found = zip(label.tolist(), owned.tolist(), areas.tolist(), visible.tolist(), strict=True)
    for query, (kind, own, whole_area, area) in enumerate(found):
        if not area or own / whole_area < overlap_threshold:
            continue
        isthing = kind in things
        if not isthing and kind in stuff:
            numbers[query] = stuff[kind]
            segments[stuff[kind] - 1].area += area
        else:
            numbers[query] = number = len(segments) + 1
            segments.append(Segment(id=number, class_index=kind, isthing=isthing, area=area))
            if not isthing:
                stuff[kind] = number
    return numbers.to(device)[shown.long()], segments


def instances(probabilities: Tensor, masks: Tensor, things: Collection[int], *, top: int = 100) -> Instances:
    """The `top` surest pairs of query and class, those that are things.

    probabilities: [Q, K], without the void.  masks: logits [Q, H, W].  A score is the class
    probability times the mean mask probability inside the mask.
    """
    return instances_from(
        probabilities,
        lambda queries: [masks[queries].float().sigmoid()],
        (int(masks.shape[-2]), int(masks.shape[-1])),
        things,
        top=top,
    )


def instances_from(
    probabilities: Tensor,
    bands: Callable[[Tensor], Iterable[Tensor]],
    size: tuple[int, int],
    things: Collection[int],
    *,
    top: int,
) -> Instances:
    """`instances` without whole masks of numbers: `bands` as for `panoptic_from`."""
    classes, device = probabilities.shape[-1], probabilities.device
    score, place = probabilities.float().flatten().topk(min(top, probabilities.numel()))
    label, query = place % classes, place // classes
    countable = torch.tensor([kind in things for kind in range(classes)], device=device)
    score, label, query = (each[countable[label]] for each in (score, label, query))
    if not len(query):
        return Instances(score, label, torch.zeros(0, *size, dtype=torch.bool, device=device))
    queries, row = query.unique(return_inverse=True)
    whole = torch.zeros(len(queries), *size, dtype=torch.bool, device=device)
    sure, area = (torch.zeros(len(queries), dtype=torch.float64, device=device) for _ in range(2))
    first = 0
    for band in bands(queries):
        inside = band > INSIDE
        whole[:, first : first + band.shape[1]] = inside
        sure += (band * inside).flatten(1).sum(1)
        area += inside.flatten(1).sum(1)
        first += band.shape[1]
    score = score * (sure / area.clamp(min=1)).float()[row]
    order = score.argsort(descending=True, stable=True)
    return Instances(score[order], label[order], whole[row[order]])


class QueryScores(Scores):
    """Sums over queries of class probability times mask probability (Mask2Former's semantic inference).

    probabilities: [Q, K + 1], the void last, which gets no score.  masks: logits [Q, h, w] of the padded image.
    size: of the image itself, at the top left.
    """

    logits = False

    def __init__(
        self, probabilities: Tensor, masks: Tensor, size: tuple[int, int], padded: tuple[int, int] | None = None
    ) -> None:
        self.probabilities, self.masks = probabilities.float(), masks.float()
        self.named = self.probabilities[:, :-1].contiguous()
        self.image, self.size = size, size
        self.padded = padded or (int(masks.shape[-2]), int(masks.shape[-1]))
        self.num_classes, self.device = int(probabilities.shape[1]) - 1, masks.device
        self.masks_first = False
        self.raised = Axis.resize(int(masks.shape[1]), self.padded[0]).crop(size[0])
        self.resized = Axis.resize(size[0], size[0])

    def at(self, size: tuple[int, int], *, masks_first: bool = False) -> QueryScores:
        found = copy.copy(self)
        found.size, found.masks_first = size, masks_first
        found.resized = Axis.resize(self.image[0], size[0])
        return found

    @property
    def band(self) -> int:
        wide = max(self.size[1], self.padded[1]) * max(1, -(-self.image[0] // self.size[0]))
        return max(1, self._numbers // (wide * len(self.masks)))

    def inside(self, first: int, last: int, queries: Tensor | None = None) -> Tensor:
        """Mask probabilities [Q, n, W] of rows [first, last), of all queries or of those given."""
        low, high = self.resized.needs(first, last)
        masks = self.masks if queries is None else self.masks[queries]
        masks = resize_rows(masks, self.raised, low, high)
        if self.masks_first:
            masks = resize_rows(masks, self.resized, first, last, start=low)
        masks = resize_columns(masks, self.padded[1])[..., : self.image[1]]
        if self.masks_first:
            return resize_columns(masks, self.size[1]).sigmoid()
        # Resizing is linear and so is the sum over queries: resized Q probabilities sum to resized K scores.
        inside = resize_rows(masks.sigmoid(), self.resized, first, last, start=low)
        return resize_columns(inside, self.size[1])

    def rows(self, first: int, last: int) -> Tensor:
        inside = self.inside(first, last).flatten(1).t()
        return (inside @ self.named).unflatten(0, (last - first, self.size[1]))

    def best(self, first: int, last: int, *, share: bool = False) -> Best:
        inside = self.inside(first, last).flatten(1)
        step = max(1, self._numbers // self.num_classes)
        parts = [
            best_of(inside[:, start : start + step].t() @ self.named, logits=False, share=share)
            for start in range(0, inside.shape[1], step)
        ]
        return joined(parts, dim=0, shape=(last - first, self.size[1]))

    def panoptic(
        self, things: Collection[int], *, object_threshold: float, overlap_threshold: float
    ) -> tuple[Tensor, list[Segment]]:
        """Segment map int32 [H, W] and segments, by masks that are resized first; see `panoptic`."""
        return panoptic_from(
            self.probabilities,
            self._mask_bands,
            self.size,
            things,
            object_threshold=object_threshold,
            overlap_threshold=overlap_threshold,
        )

    def instances(self, things: Collection[int], *, top: int) -> Instances:
        """The things, by masks that are resized first; see `instances`."""
        return instances_from(self.named, self._mask_bands, self.size, things, top=top)

    def _mask_bands(self, queries: Tensor) -> Iterable[Tensor]:
        """Probabilities of the resized masks of some queries [queries, n, W], n rows after n rows."""
        found = self.at(self.size, masks_first=True)
        return (found.inside(first, last, queries) for first, last in found.bands())
