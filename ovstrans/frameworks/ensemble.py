"""FC-CLIP's ensemble of a trained classifier and a frozen one (Yu et al. 2023, arXiv 2308.02487, sec. 3.3).

Shapes: `B` batch, `K` classes, `*` positions (pixels or queries).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ovstrans.vocabulary.vocabulary import Vocabulary


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
