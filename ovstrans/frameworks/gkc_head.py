"""GKC's modules beyond the head: naming queries by their embeddings, and what only training needs for it.

Han et al. 2023 (arXiv 2303.09181), as released; `ClipPool` is ours.

Shapes: `B` batch, `Q` queries, `K` classes, `E` embedding, `D` width of the head.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.backbone import drop_head, encoder_kind
from ovstrans.clip.pooling import encode_masks
from ovstrans.clip.text import TextClassifier, cosine_scores

NON_OBJECT_STD = 512**-0.5
"""Of the non-object embedding at the start: one over the root of the width of CLIP RN50's text encoder."""


class QueryClassifier(nn.Module):
    """What a query holds, its projection into CLIP's space, and scores against text and a learned non-object.

    query: the decoder's class head, shared by all predictions.  project: the final prediction's.
    width: D.  dim: E.  max_scale: bound on the inverse temperature exp(logit_scale), 0 for none.
    """

    def __init__(self, width: int, dim: int, max_scale: float) -> None:
        super().__init__()
        self.max_scale = max_scale
        self.query = nn.Linear(width, width)
        self.project = nn.Linear(width, dim)
        self.non_object = nn.Parameter(torch.randn(dim) * NON_OBJECT_STD)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """The inverse temperature."""
        scale = self.logit_scale.exp()
        return scale.clamp(max=self.max_scale) if self.max_scale else scale

    def forward(self, embedding: Tensor, text: TextClassifier) -> Tensor:
        """Embeddings [B, Q, E], of any length, to class logits [B, Q, K + 1], the non-object last."""
        return cosine_scores(embedding.transpose(1, 2), text, self.scale, extra=self.non_object).transpose(1, 2)


class TrainingOnly(nn.Module):
    """What inference does without: the projections of the earlier predictions, and those to be distilled.

    predictions: of the decoder.  students: whether queries have a projection of their own for
    distillation, one a prediction.  scaled: whether text structure has a learned scale (1 at first).
    """

    def __init__(self, width: int, dim: int, predictions: int, *, students: bool, scaled: bool) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, dim) for _ in range(predictions - 1))
        self.students = nn.ModuleList(nn.Linear(width, dim) for _ in range(predictions if students else 0))
        self.text_scale = nn.Parameter(torch.ones(())) if scaled else None


class ClipPool(nn.Module):
    """CLIP's own embedding of what each mask covers: a ResNet's attention pool, a ConvNeXt's norm and projection.

    Frozen. It is taken off the tower, and keeps the tower's names, so that `clip.pooling` finds its way.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        given = cast(Any, encoder)
        if encoder_kind(encoder) == "convnext":
            self.trunk = nn.ModuleDict({"norm_pre": given.trunk.norm_pre, "head": given.trunk.head})
            self.head = given.head
        else:
            self.attnpool = given.attnpool
        drop_head(encoder)
        self.requires_grad_(False)

    def forward(self, res5: Tensor, masks: Tensor) -> Tensor:
        """Features [B, C, h, w] and mask logits [B, Q, *, *] to unit embeddings [B, Q, E]."""
        return F.normalize(encode_masks(self, res5, masks), dim=-1)
