"""Distillation of regions: what a student sees in a segment is drawn to what CLIP sees in it.

Han et al. 2023 (GKC, arXiv 2303.09181) and OpenTrans (arXiv 2404.07448, eq. 3 and 4). There a
pair of regions is to be as far apart as their class names (text-guided) or as CLIP's own embeddings of
them (vision-guided), in norms of differences. The authors' code, which made the published figures,
compares dot products instead; so do we.

Of an image with N regions, v_a is the student's embedding of region a, c_a CLIP's, t_a that of its class
name; all are of unit length:

    plain          Q_a  = |v_a - c_a|^2
    text-guided    P_ab = (s t_a . s t_b - v_a . c_b)^2, with a learned number s
    vision-guided  P_ab = (c_a . c_b - v_a . c_b)^2

Eq. 4 has V for CLIP's embeddings and R for the student's, hence c . c in the last: the code lacks it. Each
P_ab is taken within an image, over all N^2 pairs.

A student that equals its teacher has a plain and a vision-guided loss of 0; its text-guided loss is 0 just
where names are as far apart as what CLIP sees.

Shapes: `N` regions of an image, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

KINDS = ("text-guided", "vision-guided", "plain")


def plain_terms(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Q of all images, [sum of N]. student, teacher: per image its unit rows [N, E]."""
    return (torch.cat(list(student)) - torch.cat(list(teacher))).square().sum(1)


def pair_terms(student: Sequence[Tensor], teacher: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """P of all images, [sum of N^2]. targets: per image [N, E], the rows whose products are aimed at."""
    terms = [
        (aim @ aim.t() - seen @ known.t()).square().flatten()
        for seen, known, aim in zip(student, teacher, targets, strict=True)
    ]
    return torch.cat(terms)


def distillation_terms(
    kind: str,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    names: Sequence[Tensor] | None = None,
    scale: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(Q [sum of N], P [sum of N^2, or 0 where the kind has no pairs]) of a batch.

    kind: one of `KINDS`.  student, teacher: per image its unit rows [N, E].  names: per image the text
    embeddings of its regions' classes, unit rows [N, E], for "text-guided".  scale: s.
    """
    plain = plain_terms(student, teacher)
    if kind == "plain":
        return plain, plain.new_zeros(0)
    if kind == "vision-guided":
        return plain, pair_terms(student, teacher, teacher)
    if kind != "text-guided" or names is None:
        raise ValueError(f"distillation {kind!r}; known are {', '.join(KINDS)}, and text-guided needs names")
    return plain, pair_terms(student, teacher, [scale * each for each in names])


def distillation_loss(
    kind: str,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    names: Sequence[Tensor] | None = None,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """The mean over all P and Q of a batch together, as the code of GKC and OpenTrans has it by default.

    There are far more pairs than regions, so pairs dominate. 0, with gradients of 0, without a region.
    Arguments as of `distillation_terms`.
    """
    return mean(torch.cat(distillation_terms(kind, student, teacher, names, scale)))


def mean(terms: Tensor) -> Tensor:
    """The mean of terms [n]; 0, with gradients of 0, where there are none."""
    return terms.sum() / max(len(terms), 1)


def chosen_regions(counts: Sequence[int], most: int) -> list[Tensor]:
    """Which regions of each image take part: all, or `most` of the batch drawn at random, evenly.

    counts: N of each image.  Returns per image the indices, int64 and ascending, so that a region stays
    with its image (the published subset is shuffled over the batch before it is cut up by image). Draws
    from torch's global generator where there are more than `most`.
    """
    total = sum(counts)
    drawn = torch.arange(total) if total <= most else torch.randperm(total)[:most].sort().values
    chosen, start = [], 0
    for count in counts:
        chosen.append(drawn[(drawn >= start) & (drawn < start + count)] - start)
        start += count
    return chosen
