"""Matcher and losses of Mask2Former: which query predicts which segment, and how well.

Cheng et al. 2022 (arXiv 2112.01527), sec. 3.2.2 and 3.3. The matcher and the point-sampled mask losses are those of
`transformers`; the class loss is here, because frameworks score classes in their own ways.

Shapes: `B` batch, `Q` queries, `K` classes, `N` segments of an image, `h w` mask logits, `H W` image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as published

from ovstrans.clip.backbone import full_precision
from ovstrans.datasets.segments import Segments

Match = tuple[Tensor, Tensor]
"""The matching of an image: indices of the matched queries and of their segments, int64 [min(Q, N)] each."""

IGNORED = -100
"""The class label of queries that carry no class loss (the default of torch's cross entropy)."""


@dataclass(frozen=True)
class Targets:
    """The segments that the queries of an image are trained to predict.

    Attributes:
        masks: float32 [N, H, W], 0 or 1, padded as the images are.
        classes: int64 [N], the segment's class as a column of the training softmax.
    """

    masks: Tensor
    classes: Tensor


def make_targets(segments: Segments, classes: Sequence[int], size: tuple[int, int]) -> Targets:
    """Turn the segments of an image into targets.

    Args:
        segments: Every segment has one of the given classes.
        classes: The class indices that the training softmax ranges over, one for each of its columns.
        size: (height, width) of the padded images.
    """
    column = torch.full((max(classes) + 1,), -1, device=segments.classes.device)
    column[torch.tensor(classes, device=column.device)] = torch.arange(len(classes), device=column.device)
    height, width = segments.masks.shape[-2:]
    masks = F.pad(segments.masks.float(), (0, size[1] - width, 0, size[0] - height))
    return Targets(masks, column[segments.classes])


class Criterion:
    """Hungarian matching of queries and segments, and the mask losses of matched pairs.

    The cost of a pair is the weighted sum of the negative class probability, the binary cross entropy of the mask and
    its dice loss, the latter two on points drawn at random (sec. 3.3). The weights of the costs do not depend on those
    of the losses.

    Args:
        points: How many points are sampled in each mask, for costs and losses.
        oversample: The points of a loss are chosen among this many times `points`.
        importance: The part of a loss's points that are the most uncertain ones; the rest are random.
        class_cost: Weight of the class cost.
        mask_cost: Weight of the cross entropy cost.
        dice_cost: Weight of the dice cost.

    Attributes:
        points: As given.
    """

    def __init__(
        self,
        *,
        points: int = 12544,
        oversample: float = 3.0,
        importance: float = 0.75,
        class_cost: float = 2.0,
        mask_cost: float = 5.0,
        dice_cost: float = 5.0,
    ) -> None:
        self.points = points
        config = Mask2FormerConfig(
            train_num_points=points,
            oversample_ratio=oversample,
            importance_sample_ratio=importance,
            class_weight=class_cost,
            mask_weight=mask_cost,
            dice_weight=dice_cost,
        )
        self._published: Any = published.Mask2FormerLoss(config, {})

    def match(self, masks: Tensor, scores: Tensor, targets: Sequence[Targets]) -> list[Match]:
        """Assign each segment a query of its own, at the least total cost.

        Args:
            masks: Mask logits [B, Q, h, w].
            scores: Class logits [B, Q, K + 1], the void class last.
            targets: Of each image.

        Returns:
            The match of each image.
        """
        with full_precision(masks):
            matches = self._published.matcher(
                masks.float(),
                scores.float(),
                [each.masks for each in targets],
                [each.classes for each in targets],
            )
        return [(query.to(masks.device), segment.to(masks.device)) for query, segment in matches]

    def mask_losses(
        self, masks: Tensor, targets: Sequence[Targets], matches: Sequence[Match], count: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Compute the mask losses of the matched pairs.

        Args:
            masks: Mask logits [B, Q, h, w].
            targets: Of each image.
            matches: Of each image.
            count: What the sums over masks are divided by; see `segment_count`.

        Returns:
            (binary cross entropy, dice loss), scalars; 0 with gradients of 0 if nothing is matched.
        """
        losses: dict[str, Any] = {}
        with full_precision(masks):
            if any(len(query) for query, _ in matches):
                losses = self._published.loss_masks(masks.float(), [each.masks for each in targets], matches, count)
        zero = masks.float().sum() * 0.0
        return losses.get("loss_mask", zero), losses.get("loss_dice", zero)


def segment_count(targets: Sequence[Targets]) -> Tensor:
    """Return the number of segments of a batch, averaged over processes and at least 1; it divides the mask losses."""
    count = torch.tensor(float(sum(len(each.classes) for each in targets)), device=targets[0].masks.device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count /= torch.distributed.get_world_size()
    return count.clamp(min=1.0)


def class_targets(
    shape: tuple[int, int], void: int, targets: Sequence[Targets], matches: Sequence[Match], *, drop: float = 0.0
) -> Tensor:
    """Label every query with the class that it should predict.

    Args:
        shape: (B, Q).
        void: The label of queries without a segment.
        targets: Of each image.
        matches: Of each image.
        drop: Probability that a matched query is labelled `IGNORED` instead (region dropout, Han et al. 2023).

    Returns:
        int64 [B, Q].
    """
    labels = torch.full(shape, void, dtype=torch.long, device=targets[0].classes.device)
    for row, (query, segment) in enumerate(matches):
        labels[row, query] = targets[row].classes[segment]
        if drop > 0:
            dropped = torch.rand(len(query), device=query.device) < drop
            labels[row, query[dropped]] = IGNORED
    return labels


def class_loss(scores: Tensor, labels: Tensor, void_weight: float) -> Tensor:
    """Compute the cross entropy of queries, a weighted mean in which void counts less.

    Args:
        scores: Class logits [B, Q, K + 1], the void class last.
        labels: int64 [B, Q]; see `class_targets`.
        void_weight: Weight of queries labelled void; all others weigh 1.

    Returns:
        A scalar, float32; 0 with gradients of 0 if every query is ignored.
    """
    weight = scores.new_ones(scores.shape[-1], dtype=torch.float32)
    weight[-1] = void_weight
    flat = scores.flatten(0, 1).float()
    total = F.cross_entropy(flat, labels.flatten(), weight=weight, ignore_index=IGNORED, reduction="sum")
    counted = weight[labels[labels != IGNORED]].sum()
    return total / counted.clamp(min=torch.finfo(torch.float32).tiny)
