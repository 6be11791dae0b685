"""Classifying features by their similarity to text embeddings.

Shapes: `B` batch, `E` embedding, `R` text rows, `K` classes, `*` positions (pixels or queries).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.precision import full_precision
from ovstrans.clip.text import TextClassifier, class_scores
from ovstrans.vocabulary.vocabulary import Vocabulary

MAX_SCALE = 100.0
"""CLIP's bound on the inverse temperature (Radford et al. 2021, sec. 2.5)."""

IGNORED = -100
"""What `training_targets` writes for pixels that carry no loss (cross entropy's own default)."""


def cosine_scores(
    features: Tensor, text: TextClassifier, scale: Tensor | float, *, extra: Tensor | None = None
) -> Tensor:
    """Scaled cosine similarity to each class, the best of its synonyms.

    features: [B, E, *], of any length.  extra: [E], of any length, one more class after the others.
    Returns [B, K, *], or [B, K + 1, *], in float32 whatever autocast says.
    """
    rows, owner, classes = text.embeddings.float(), text.owner, text.num_classes
    with full_precision(features):
        if extra is not None:
            rows = torch.cat([rows, F.normalize(extra.float(), dim=0).unsqueeze(0)])
            owner, classes = torch.cat([owner, owner.new_tensor([classes])]), classes + 1
        flat = F.normalize(features.float().flatten(2), dim=1)
        similarity = scale * torch.einsum("bep,re->brp", flat, rows)
        scores = class_scores(similarity, owner, classes, dim=1)
    return scores.unflatten(2, features.shape[2:])


class TextScores(nn.Module):
    """Scores against text embeddings, with a learned temperature and a learned non-object vector.

    The temperature is `exp(logit_scale)`, at most 100, and starts where CLIP's does, at 1 / 0.07. The
    non-object vector competes with the classes in the softmax: a feature that fits no name has
    somewhere to go.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.non_object = nn.Parameter(torch.randn(dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """The inverse temperature."""
        return self.logit_scale.exp().clamp(max=MAX_SCALE)

    def forward(self, features: Tensor, text: TextClassifier) -> Tensor:
        """features [B, E, *] to scores [B, K + 1, *] in float32, the non-object last."""
        return cosine_scores(features, text, self.scale, extra=self.non_object)


def training_targets(labels: Tensor, ignore: int, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Targets and columns of a softmax over the base classes.

    labels: int64 [...], class indices or `ignore`.  Returns (targets, columns): columns [K'] are the
    indices of the base classes, targets [...] count in them; ignored pixels and any pixel of a
    novel class are `IGNORED`. Leaving novel names out of the softmax matters as much as leaving out
    their pixels: a column that is never the answer is pushed away from every image.
    """
    columns = torch.tensor(sorted(vocabulary.base), dtype=torch.long, device=labels.device)
    # A label that is neither a class nor `ignore` lands on -1, which cross entropy refuses.
    table = torch.full((max(len(vocabulary), ignore + 1),), -1, dtype=torch.long, device=labels.device)
    table[: len(vocabulary)] = IGNORED
    table[columns] = torch.arange(len(columns), device=labels.device)
    table[ignore] = IGNORED
    return table[labels], columns


def pixel_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over the labelled pixels; 0 (with gradients of 0) where there are none.

    scores: [B, C, H, W].  targets: int64 [B, H, W], `IGNORED` where nothing counts.
    """
    total = F.cross_entropy(scores.float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def seen_classes(vocabulary: Vocabulary, trained: Vocabulary) -> list[bool]:
    """For each class of `vocabulary`: is any of its names a name of a base class of `trained`?

    Exact string match, as FC-CLIP decides it (sec. 3.3).
    """
    known = {name for index in trained.base for name in trained.classes[index]}
    return [not known.isdisjoint(names) for names in vocabulary.classes]


def geometric_ensemble(inner: Tensor, outer: Tensor, seen: Iterable[bool], *, alpha: float, beta: float) -> Tensor:
    """FC-CLIP's ensemble of two classifiers, as log probabilities up to a constant (sec. 3.3, eq. 7).

    inner, outer: scores [B, K, *] of the trained and of the frozen classifier.  The result is
    (1 - w) log p_inner + w log p_outer with w = alpha for seen classes, beta for the others, so a seen
    class leans on what was trained and an unseen one on CLIP.
    """
    weight = torch.tensor([alpha if known else beta for known in seen], device=inner.device)
    weight = weight.view(1, -1, *[1] * (inner.dim() - 2))
    return (1 - weight) * inner.log_softmax(1) + weight * outer.log_softmax(1)
