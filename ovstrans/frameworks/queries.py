"""From queries to pictures: semantic, panoptic and instance segmentation (Mask2Former's three inferences).

Shapes: `B` batch, `Q` queries, `K` classes, `H W` image.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ovstrans.data.sample import Segment

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
    score, label = probabilities.float().max(-1)
    void = probabilities.shape[-1] - 1
    kept = (label != void) & (score > object_threshold)
    score, label, inside = score[kept], label[kept], masks[kept].float().sigmoid()
    segment_map = torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device)
    segments: list[Segment] = []
    if not len(label):
        return segment_map, segments
    owner = (score[:, None, None] * inside).argmax(0)
    stuff: dict[int, int] = {}
    for query, kind in enumerate(label.tolist()):
        own, whole = owner == query, inside[query] >= INSIDE
        shown = own & whole
        owned, area = int(own.sum()), int(whole.sum())
        if not owned or not area or not shown.any() or owned / area < overlap_threshold:
            continue
        isthing = kind in things
        if not isthing and kind in stuff:
            number = stuff[kind]
            segments[number - 1].area += int(shown.sum())
        else:
            number = len(segments) + 1
            segments.append(Segment(id=number, class_index=kind, isthing=isthing, area=int(shown.sum())))
            if not isthing:
                stuff[kind] = number
        segment_map[shown] = number
    return segment_map, segments


def instances(probabilities: Tensor, masks: Tensor, things: Collection[int], *, top: int = 100) -> Instances:
    """The `top` surest pairs of query and class, those that are things.

    probabilities: [Q, K], without the void.  masks: logits [Q, H, W].  A score is the class
    probability times the mean mask probability inside the mask.
    """
    classes = probabilities.shape[-1]
    score, place = probabilities.float().flatten().topk(min(top, probabilities.numel()))
    label, query = place % classes, place // classes
    countable = torch.tensor([kind in things for kind in range(classes)], device=label.device)
    score, label, query = (each[countable[label]] for each in (score, label, query))
    inside = masks[query] > 0
    weight = masks[query].float().sigmoid() * inside
    score = score * weight.flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    order = score.argsort(descending=True)
    return Instances(score[order], label[order], inside[order])
