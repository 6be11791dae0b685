"""Modules of GKC beyond the Mask2Former head: the classifier of queries, and projections that only training uses.

Han et al. 2023 (arXiv 2303.09181), as released; `ClipPath` is ours.

Shapes: `B` batch, `Q` queries, `K` classes, `E` embedding, `D` width of the head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.text import TextClassifier, cosine_scores
from ovstrans.frameworks.clip_head import ClipHead

NON_OBJECT_STD = 512**-0.5
"""Standard deviation of the initial non-object embedding: 1 / sqrt(width of the text encoder of CLIP RN50)."""


class QueryClassifier(nn.Module):
    """Projects query embeddings into CLIP's space and compares them with class names and a learned non-object.

    Args:
        width: D, the width of the head.
        dim: E, the dimension of the text embeddings.
        max_scale: Upper bound of the inverse temperature; 0 for none.

    Attributes:
        query: First projection, shared by all predictions of the decoder and by distillation.
        project: Second projection, of the final prediction; for the earlier ones see `TrainingOnly`.
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
        """The inverse temperature, exp(logit_scale)."""
        scale = self.logit_scale.exp()
        return scale.clamp(max=self.max_scale) if self.max_scale else scale

    def forward(self, embedding: Tensor, text: TextClassifier) -> Tensor:
        """Compare projected embeddings [B, Q, E], of any length, with class names.

        Returns:
            Class logits [B, Q, K + 1], the non-object last.
        """
        return cosine_scores(embedding.transpose(1, 2), text, self.scale, extra=self.non_object).transpose(1, 2)


class TrainingOnly(nn.Module):
    """Parameters that inference does not use.

    Args:
        width: D, the width of the head.
        dim: E, the dimension of the text embeddings.
        predictions: How many predictions the decoder makes.
        students: Whether distillation has projections of its own, one for each prediction.
        scaled: Whether text-guided distillation has a learned scale, 1 at first.

    Attributes:
        projections: Second projection of each prediction but the last (see `QueryClassifier`).
        students: Projections for distillation.
        text_scale: The scale s of `frameworks.gkc_distillation`, or None.
    """

    def __init__(self, width: int, dim: int, predictions: int, *, students: bool, scaled: bool) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, dim) for _ in range(predictions - 1))
        self.students = nn.ModuleList(nn.Linear(width, dim) for _ in range(predictions if students else 0))
        self.text_scale = nn.Parameter(torch.ones(())) if scaled else None


class ClipPath(ClipHead):
    """CLIP's own embedding of the image inside each mask, as a unit vector; frozen."""

    def forward(self, res5: Tensor, masks: Tensor) -> Tensor:
        """Embed masks: features [B, C, h, w] and mask logits [B, Q, *, *] give unit embeddings [B, Q, E]."""
        return F.normalize(self.embed_masks(res5, masks), dim=-1)
