"""Distillation of regions, a loss of GKC: a student's embedding of a segment learns from CLIP's.

Han et al. 2023 (GKC, arXiv 2303.09181) and OpenTrans (arXiv 2404.07448, eq. 3 and 4). Of an image with N regions, v_a
is the student's embedding of region a, c_a CLIP's, t_a that of the name of its class; all are unit vectors:

    plain          Q_a  = |v_a - c_a|^2
    text-guided    P_ab = (s t_a . s t_b - v_a . c_b)^2, with a learned scale s
    vision-guided  P_ab = (c_a . c_b - v_a . c_b)^2

P_ab is taken over all N^2 pairs within an image. Text-guided and vision-guided distillation have the plain terms too.

The papers compare norms of differences: a pair of regions should be as far apart as their class names, or as CLIP's
embeddings of them. The authors' code, which made the published figures, compares these dot products instead; so do we.
In eq. 4, V are CLIP's embeddings and R the student's, hence c . c in the vision-guided terms. The released code lacks
the vision-guided loss.

A student equal to its teacher has a plain and a vision-guided loss of 0. Its text-guided loss is 0 only if the scaled
names are as similar as CLIP's embeddings.

Shapes: `N` regions of an image, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

METHODS = ("text-guided", "vision-guided", "plain")


def plain_terms(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Compute Q of all regions of a batch, [sum of N], from unit rows [N, E] of each image."""
    return (torch.cat(list(student)) - torch.cat(list(teacher))).square().sum(1)


def pair_terms(student: Sequence[Tensor], teacher: Sequence[Tensor], guides: Sequence[Tensor]) -> Tensor:
    """Compute P of all pairs of a batch.

    Args:
        student: Of each image unit rows [N, E].
        teacher: Of each image unit rows [N, E].
        guides: Of each image rows [N, E], whose dot products are the targets.

    Returns:
        [sum of N^2].
    """
    terms = [
        (guide @ guide.t() - v @ c.t()).square().flatten() for v, c, guide in zip(student, teacher, guides, strict=True)
    ]
    return torch.cat(terms)


def distillation_terms(
    method: str,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    names: Sequence[Tensor] | None = None,
    scale: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Compute the terms of a distillation method.

    Args:
        method: One of `METHODS`.
        student: Of each image unit rows [N, E].
        teacher: Of each image unit rows [N, E].
        names: Of each image the text embeddings of the regions' classes, unit rows [N, E]; for "text-guided".
        scale: s.

    Returns:
        Q [sum of N] and P [sum of N^2], the latter empty for "plain".

    Raises:
        ValueError: The method is unknown, or "text-guided" without names.
    """
    plain = plain_terms(student, teacher)
    if method == "plain":
        return plain, plain.new_zeros(0)
    if method == "vision-guided":
        return plain, pair_terms(student, teacher, teacher)
    if method != "text-guided" or names is None:
        raise ValueError(f"distillation {method!r}; known are {', '.join(METHODS)}, and text-guided needs names")
    return plain, pair_terms(student, teacher, [scale * each for each in names])


def distillation_loss(
    method: str,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    names: Sequence[Tensor] | None = None,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """Compute the mean of all terms of a batch, P and Q together, as the code of GKC and OpenTrans does by default.

    There are far more pairs than regions, so P dominates. Arguments as for `distillation_terms`.

    Returns:
        A scalar; 0 with gradients of 0 if there is no region.
    """
    return mean(torch.cat(distillation_terms(method, student, teacher, names, scale)))


def mean(terms: Tensor) -> Tensor:
    """Return the mean of terms [n]; 0 with gradients of 0 if there are none."""
    return terms.sum() / max(len(terms), 1)


def choose_regions(counts: Sequence[int], most: int) -> list[Tensor]:
    """Choose the regions of a batch that take part: all, or `most` drawn at random without replacement.

    Draws from torch's global generator, and only if there are more than `most`. Each region stays with its image; the
    published code shuffles the regions over the batch before it divides them among the images.

    Args:
        counts: N of each image.
        most: How many regions may take part.

    Returns:
        Of each image the indices of its chosen regions, int64, ascending.
    """
    total = sum(counts)
    drawn = torch.arange(total) if total <= most else torch.randperm(total)[:most].sort().values
    chosen, start = [], 0
    for count in counts:
        chosen.append(drawn[(drawn >= start) & (drawn < start + count)] - start)
        start += count
    return chosen
