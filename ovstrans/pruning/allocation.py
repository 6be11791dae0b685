"""Allocation: how many weights each layer keeps, apart from which.

global    All layers compete in one ranking of the weights; nothing is fixed for a layer (OpenTrans sec. 3.1).
macs      One ranking too, but of what a weight is worth against what it costs, see `scores_per_mac`.
uniform   The same density in every layer.
erk       Erdos-Renyi-Kernel (Evci et al. 2020, arXiv 1911.11134, sec. 3; for matrices Mocanu et al. 2018): the density
          of a layer is proportional to the sum of the sizes of its weight over their product.
alpha     AlphaPruning (Lu et al. 2024, arXiv 2410.10912, sec. 3.2): the sparsity of a layer is linear in its alpha.

The last three give every layer a density of its own. Over the rounds it falls geometrically: with the share e of the
way that the whole has gone, measured by the logarithm of the density, a layer of final density d has d^e.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ovstrans.clip.layers import plan_layers, weight_matrices, weight_name
from ovstrans.errors import InputError
from ovstrans.pruning.severed import sever_encoders

logger = logging.getLogger(__name__)

Shapes = Mapping[str, Sequence[int]]
"""Parameter name to the shape of the weight, output channels first."""

LEAST_ALPHA_DENSITY = 0.1
"""Least density of a layer under `alpha`, over that of the whole; a range that would go below is narrowed."""


def uniform_densities(shapes: Shapes, keep: int) -> dict[str, float]:
    """Return the same density for every layer.

    Args:
        shapes: The layers.
        keep: Number of weights to keep in all.
    """
    return dict.fromkeys(shapes, keep / sum(map(math.prod, shapes.values())))


def erk_densities(shapes: Shapes, keep: int) -> dict[str, float]:
    """Return densities in proportion to the sum of a weight's sizes over their product.

    A layer of shape [O, I, k, k] gets e (O + I + k + k) / (O I k k), a matrix e (O + I) / (O I), with e such that
    `keep` weights stay. Layers that would exceed density 1 are dense, and e is found again for the others.

    Args:
        shapes: The layers.
        keep: Number of weights to keep in all.
    """
    dense: set[str] = set()
    while True:
        rest = keep - sum(math.prod(shapes[name]) for name in dense)
        others = {name: shape for name, shape in shapes.items() if name not in dense}
        factor = rest / sum(map(sum, others.values())) if others else 0.0
        full = {name for name, shape in others.items() if factor * sum(shape) > math.prod(shape)}
        if not full:
            return {
                name: 1.0 if name in dense else factor * sum(each) / math.prod(each) for name, each in shapes.items()
            }
        dense |= full


def alpha_densities(shapes: Shapes, keep: int, alphas: Mapping[str, float | None], tau: float) -> dict[str, float]:
    """Return densities from a linear map of alpha to sparsity: a larger alpha, less trained, is pruned more.

    The sparsity of a layer is h ((alpha - min) / (max - min) (s2 - s1) + s1) with s1 = 1 - tau and s2 = 1 + tau, and h
    such that `keep` weights stay (AlphaPruning, eq. 2). At high sparsity this can exceed 1; tau is then narrowed until
    every layer keeps a tenth of the density of the whole.

    Args:
        shapes: The layers.
        keep: Number of weights to keep in all.
        alphas: Parameter name to alpha; a layer without one gets the mean of the others.
        tau: Half the range of the factor on the sparsity.

    Raises:
        InputError: If no layer has an alpha.
    """
    known = [alpha for alpha in (alphas[name] for name in shapes) if alpha is not None]
    if not known:
        raise InputError("`allocation=alpha`: no layer in scope has an alpha; `ovstrans analyze` says why")
    low, spread = min(known), max(known) - min(known)
    places = {}
    for name in shapes:
        alpha = alphas[name]
        alpha = sum(known) / len(known) if alpha is None else alpha
        places[name] = (alpha - low) / spread if spread else 0.5
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    sparsity = 1.0 - keep / total
    # The mean place by weights says where the map has the sparsity of the whole: factor 1 + tau (2 place - 1).
    mean = sum(sizes[name] * place for name, place in places.items()) / total
    most = 1.0 - LEAST_ALPHA_DENSITY * (1.0 - sparsity)
    # most >= sparsity (1 + tau) / (1 + tau (2 mean - 1)), solved for tau
    room = sparsity - most * (2.0 * mean - 1.0)
    widest = (most - sparsity) / room if room > 0 else math.inf
    if spread and tau > widest:
        logger.info("alpha: tau %g is narrowed to %.3g, so that every layer keeps some of its weights", tau, widest)
        tau = widest
    scale = sparsity / (1.0 + tau * (2.0 * mean - 1.0))
    return {name: 1.0 - scale * (1.0 + tau * (2.0 * place - 1.0)) for name, place in places.items()}


def apportion(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Round shares to whole numbers that add up to `total`, those with the largest remainders up (Hamilton's method).

    Args:
        shares: Name to a number of at least 0; their sum is `total` but for rounding.
        total: What the result adds up to.
    """
    whole = {name: math.floor(share) for name, share in shares.items()}
    order = sorted(shares, key=lambda name: whole[name] - shares[name])
    for name in order[: max(0, total - sum(whole.values()))]:
        whole[name] += 1
    return whole


def schedule_budgets(shapes: Shapes, densities: Mapping[str, float], counts: Sequence[int]) -> list[dict[str, int]]:
    """Return how many weights each layer keeps after each round, on the geometric way to its final density.

    Args:
        shapes: The layers.
        densities: Final density of every layer.
        counts: Number of weights that the whole keeps after each round; the last number is met exactly.

    Returns:
        Parameter name to number of weights, for every round.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total, final = sum(sizes.values()), counts[-1]
    budgets = []
    for count in counts:
        share = math.log(count / total) / math.log(final / total) if count != final else 1.0
        shares = {name: sizes[name] * densities[name] ** share for name in shapes}
        budgets.append(apportion(shares, final if count == final else round(sum(shares.values()))))
    return budgets


def count_positions(encoder: nn.Module, shapes: Shapes, image_size: int, severed: str = "") -> dict[str, int]:
    """Return the number of output positions that each weight of a layer is multiplied at, of one image.

    Args:
        encoder: The image encoder.
        shapes: The layers, without rows that are never used.
        image_size: Side of the image in pixels.
        severed: Blocks that are severed, as in the recipe.

    Returns:
        Parameter name to positions: the MACs of the layer, as `costs.flops` counts them, over its weights.
    """
    from ovstrans.costs.estimate import copy_to_meta
    from ovstrans.costs.flops import count_flops

    counted = copy_to_meta(encoder)
    sever_encoders(severed, counted)
    layers = count_flops(counted, (image_size, image_size)).layers or ()
    macs = {weight_name(layer.name): layer.dense for layer in layers}
    return {name: macs.get(name, 0) // math.prod(shape) for name, shape in shapes.items()}


def scores_per_mac(scores: Tensor, sizes: Tensor | int, positions: int) -> Tensor:
    """Return what the groups of a layer are worth against their MACs.

    The worth of a group is its squared norm over that of all groups of the layer that score at least as much, itself
    included: the relative error that pruning it adds to what is left (Lee et al. 2021, LAMP, arXiv 2010.07611, eq. 3).
    It makes layers comparable whatever the scale of their weights, which a BatchNorm hides, and it is 1 for the last
    group, so that no layer is emptied: magnitudes over the root of the positions leave nothing of the first stage of a
    ResNet at 90 % zeros. A weight costs as many MACs as the layer has output positions.

    Args:
        scores: Root mean square of every group, [G].
        sizes: Number of weights of every group, [G], or one number.
        positions: Output positions of the layer.

    Returns:
        float32 [G], larger is better; the order within the layer is that of the scores.
    """
    order = scores.argsort(descending=True, stable=True)
    weights = sizes[order] if isinstance(sizes, Tensor) else sizes
    means = scores[order].double().square()
    held = (means * weights).cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    worth = torch.empty_like(scores)
    worth[order] = (means / held / max(1, positions)).float()
    return worth


def measure_alphas(encoder: nn.Module, names: Sequence[str]) -> dict[str, float | None]:
    """Fit alpha to the spectrum of layers, with the median eigenvalue as xmin, as AlphaPruning does for image models.

    Args:
        encoder: The image encoder.
        names: Parameters in scope.

    Returns:
        Parameter name to alpha, None where there is no fit. Fused queries, keys and values have the mean of theirs.
    """
    from ovstrans.spectrum import esd, powerlaw

    matrices = weight_matrices(encoder)
    rows = plan_layers({name: tuple(matrix.shape) for name, matrix in matrices.items()})
    parts = {weight_name(layer): own for layer, own in [*((row, (row,)) for row in matrices), *rows.items()]}
    needed = {row: matrices[row].cpu() for name in names for row in parts[name]}
    spectra = esd.eigenvalues(needed)
    found: dict[str, float | None] = {}
    for name in names:
        fits = [powerlaw.fit(esd.above_cut(spectra[row], esd.Cut()), xmin="mid").alpha for row in parts[name]]
        known = [alpha for alpha in fits if alpha is not None]
        found[name] = sum(known) / len(known) if len(known) == len(fits) else None
    return found
