"""Losses of mask classification: Hungarian matching, mask and dice losses on points, class losses.

Cheng et al. 2022 (arXiv 2112.01527), sec. 3.2.2 and 3.3; matcher and point sampling are those of
`transformers`.

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
"""Of one image: the matched queries and the segments they are matched with, int64 [min(Q, N)] each."""

IGNORED = -100


@dataclass(frozen=True)
class Targets:
    """What an image's queries are to find: masks float32 [N, H, W], padded as the images are; classes int64 [N],
    columns of the training softmax."""

    masks: Tensor
    classes: Tensor


def targets_of(segments: Segments, columns: Sequence[int], size: tuple[int, int]) -> Targets:
    """The targets of an image.

    columns: the classes that the training softmax ranges over, by index; every segment is of one of
    them.  size: H and W of the padded images, at least that of the segments' masks.
    """
    place = torch.full((max(columns) + 1,), -1, device=segments.classes.device)
    place[torch.tensor(columns, device=place.device)] = torch.arange(len(columns), device=place.device)
    height, width = segments.masks.shape[-2:]
    masks = F.pad(segments.masks.float(), (0, size[1] - width, 0, size[0] - height))
    return Targets(masks, place[segments.classes])


class Criterion:
    """Matching and losses with their settings.

    points: sampled in each mask for costs and losses.  oversample, importance: of the loss's points,
    `importance` times all are the least certain of `oversample` times as many.  class_cost, mask_cost,
    dice_cost: weights in the matching, whatever the losses weigh.
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
        """Each segment's query, at the least total cost.

        masks: logits [B, Q, h, w].  scores: class logits [B, Q, K + 1], the void last.
        """
        with full_precision(masks):
            found = self._published.matcher(
                masks.float(),
                scores.float(),
                [each.masks for each in targets],
                [each.classes for each in targets],
            )
        return [(query.to(masks.device), segment.to(masks.device)) for query, segment in found]

    def mask_losses(
        self, masks: Tensor, targets: Sequence[Targets], matches: Sequence[Match], count: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """(binary cross entropy, dice), each summed over the matched masks and divided by `count`.

        0, with gradients of 0, where nothing is matched.
        """
        found: dict[str, Any] = {}
        with full_precision(masks):
            if any(len(query) for query, _ in matches):
                found = self._published.loss_masks(masks.float(), [each.masks for each in targets], matches, count)
        none = masks.float().sum() * 0.0
        return found.get("loss_mask", none), found.get("loss_dice", none)


def segment_count(targets: Sequence[Targets]) -> Tensor:
    """Segments of the batch, as the mean over ranks, at least 1: what mask losses are divided by."""
    count = torch.tensor(float(sum(len(each.classes) for each in targets)), device=targets[0].masks.device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count /= torch.distributed.get_world_size()
    return count.clamp(min=1.0)


def class_targets(
    shape: tuple[int, int], void: int, targets: Sequence[Targets], matches: Sequence[Match], *, drop: float = 0.0
) -> Tensor:
    """The class that each query is to name, int64 [B, Q]: its segment's, or `void` where it has none.

    shape: B and Q.  drop: chance that a matched query carries no loss instead (`IGNORED`; the region
    dropout of Han et al. 2023).
    """
    wanted = torch.full(shape, void, dtype=torch.long, device=targets[0].classes.device)
    for row, (query, segment) in enumerate(matches):
        wanted[row, query] = targets[row].classes[segment]
        if drop > 0:
            dropped = torch.rand(len(query), device=query.device) < drop
            wanted[row, query[dropped]] = IGNORED
    return wanted


def class_loss(scores: Tensor, wanted: Tensor, void_weight: float) -> Tensor:
    """Cross entropy, a mean weighted by class: void counts `void_weight`, every class 1; 0 where nothing counts.

    scores: [B, Q, K + 1], the void last.  wanted: int64 [B, Q].
    """
    weight = scores.new_ones(scores.shape[-1], dtype=torch.float32)
    weight[-1] = void_weight
    flat = scores.flatten(0, 1).float()
    total = F.cross_entropy(flat, wanted.flatten(), weight=weight, ignore_index=IGNORED, reduction="sum")
    counted = weight[wanted[wanted != IGNORED]].sum()
    return total / counted.clamp(min=torch.finfo(torch.float32).tiny)
