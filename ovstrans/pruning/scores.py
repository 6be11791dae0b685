"""Which weights stay: by magnitude, or at random, always an exact count.

Weights are a mapping from parameter name to tensor, in layer order. One ranking runs over all of
them: position means the place in that order, each tensor flattened in C order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ovstrans.errors import InputError, MismatchError

Masks = dict[str, Tensor]
"""Parameter name to bool tensor of the parameter's shape; True = kept."""


def magnitude(weights: Mapping[str, Tensor], keep: int, current: Mapping[str, Tensor] | None = None) -> Masks:
    """Keep exactly the `keep` largest |w| over all tensors together (OpenTrans sec. 3.1, one threshold).

    Weights that `current` has pruned stay pruned. Of equal magnitudes at the threshold those at the
    earlier positions stay, so the result does not depend on device or thread count. Raises InputError
    for NaN or infinite weights, naming the layer, and for a `keep` that more than exhausts what is left.
    """
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            layer = name.removesuffix(".weight")
            raise InputError(f"layer {layer}: its weights hold NaN or infinity, so they cannot be ranked")
    # Float32 holds every float16 and bfloat16 exactly; ranking on the CPU makes it the same everywhere.
    parts = []
    for name, weight in weights.items():
        score = weight.detach().cpu().float().abs()
        parts.append(score if current is None else score.masked_fill(~current[name].cpu(), -1.0))
    scores = torch.cat([part.reshape(-1) for part in parts])
    _require_count(keep, int((scores >= 0).sum()))
    return _split(_largest(scores, keep), weights)


def uniform(weights: Mapping[str, Tensor], keep: int, seed: int) -> Masks:
    """Keep exactly `keep` weights, drawn from `seed`, every weight of every layer alike."""
    total = sum(weight.numel() for weight in weights.values())
    _require_count(keep, total)
    kept = torch.zeros(total, dtype=torch.bool)
    kept[torch.randperm(total, generator=_generator(seed))[:keep]] = True
    return _split(kept, weights)


def like(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], seed: int) -> Masks:
    """Keep as many weights in each layer as `masks` does, drawn from `seed`: its densities, not its choice.

    The result has the tensors of `masks`. Raises MismatchError naming the first that `weights` lack,
    or have in another shape.
    """
    generator = _generator(seed)
    drawn: Masks = {}
    for name, mask in masks.items():
        if name not in weights:
            raise MismatchError(f"--like: the mask prunes {name}, which the model does not have")
        if weights[name].shape != mask.shape:
            raise MismatchError(
                f"--like: the mask has shape {list(mask.shape)} at {name}, the model {list(weights[name].shape)}"
            )
        kept = torch.zeros(mask.numel(), dtype=torch.bool)
        kept[torch.randperm(mask.numel(), generator=generator)[: int(mask.sum())]] = True
        drawn[name] = kept.reshape(mask.shape)
    return drawn


def _largest(scores: Tensor, keep: int) -> Tensor:
    """Bool tensor with exactly `keep` of the largest `scores`, ties by position."""
    if keep == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(scores.numel() - keep + 1).values
    kept = scores > threshold
    ties = (scores == threshold).nonzero().squeeze(1)
    kept[ties[: keep - int(kept.sum())]] = True
    return kept


def _split(flat: Tensor, weights: Mapping[str, Tensor]) -> Masks:
    pieces = flat.split([weight.numel() for weight in weights.values()])
    return {
        name: piece.reshape(weight.shape).clone() for (name, weight), piece in zip(weights.items(), pieces, strict=True)
    }


def _require_count(keep: int, available: int) -> None:
    if not 0 <= keep <= available:
        raise InputError(f"cannot keep {keep} weights: {available} are there to choose from")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
