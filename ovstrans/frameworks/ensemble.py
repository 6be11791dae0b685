"""FC-CLIP's ensemble of a trained classifier and CLIP's own (Yu et al. 2023, arXiv 2308.02487, sec. 3.3).

Shapes: `B` batch, `K` classes, `*` positions (pixels or queries).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ovstrans.vocabulary.vocabulary import Vocabulary


def find_seen_classes(vocabulary: Vocabulary, trained: Vocabulary) -> list[bool]:
    """Find the classes that a model was trained on.

    A class is seen if one of its names is also a name of a base class of the training vocabulary. Names are compared
    as exact strings, as in FC-CLIP (sec. 3.3).

    Args:
        vocabulary: The classes in question.
        trained: The training vocabulary.

    Returns:
        For each class of `vocabulary` whether it is seen.
    """
    known = {name for index in trained.base for name in trained.classes[index]}
    return [not known.isdisjoint(names) for names in vocabulary.classes]


def geometric_ensemble(trained: Tensor, frozen: Tensor, seen: Iterable[bool], *, alpha: float, beta: float) -> Tensor:
    """Average two classifiers geometrically, class by class (FC-CLIP, sec. 3.3, eq. 7).

    The result is (1 - w) log p_trained + w log p_frozen, where w is `alpha` for seen classes and `beta` for unseen
    ones. With alpha < beta a seen class relies on the trained classifier and an unseen one on CLIP.

    Args:
        trained: Logits [B, K, *] of the trained classifier.
        frozen: Logits [B, K, *] of CLIP's own.
        seen: For each class whether it is seen.
        alpha: Weight of CLIP's classifier for seen classes, in [0, 1].
        beta: Its weight for unseen classes, in [0, 1].

    Returns:
        Log probabilities [B, K, *], up to a constant per position.
    """
    weight = torch.tensor([alpha if known else beta for known in seen], device=trained.device)
    weight = weight.view(1, -1, *[1] * (trained.dim() - 2))
    return (1 - weight) * trained.log_softmax(1) + weight * frozen.log_softmax(1)
