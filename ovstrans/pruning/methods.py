"""Pruning methods: how many weights stay after each round, and which.

All methods run as many rounds as iterative magnitude pruning (`imp`), so that all get the same number of distillation
steps. The one-shot methods prune in the first round and distil in all.

Weights are a mapping from parameter name to tensor, in the order of the layers. One ranking runs over all of them: the
position of a weight is its place in this order, with every tensor flattened in C order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ovstrans.clip.layers import scope_layers, weight_name
from ovstrans.clip.weights import encoder_tensors
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.mask import Mask, require_fit
from ovstrans.pruning.severed import find_dead_rows, live_weights, prune_dead_rows
from ovstrans.recipes.schema import Prune
from ovstrans.training.state import derive_seed

Masks = dict[str, Tensor]
"""Parameter name to bool tensor of the shape of the parameter; True = kept."""
Choice = Callable[[int, Mapping[str, Tensor], Masks | None], Masks]
"""Maps the number of a round (from 0), the weights in scope and the masks so far to the masks of the round."""


@dataclass(frozen=True)
class Plan:
    """The rounds of a method on one encoder.

    Attributes:
        names: Parameters in scope, in the order of the layers.
        counts: Number of weights kept after each round.
        choose: Chooses the masks of a round.
    """

    names: list[str]
    counts: list[int]
    choose: Choice


def make_plan(encoder: nn.Module, prune: Prune, seed: int, like: Mask | None = None) -> Plan:
    """Plan the rounds of a method.

    Args:
        encoder: Image encoder to prune.
        prune: Section of the recipe. `imp` keeps the largest magnitudes that are left after the distillation of the
            round before; `magnitude` keeps the largest magnitudes at once; `random` keeps random weights.
        seed: Seed of `random`.
        like: Mask whose layers and densities `random` takes, instead of the sparsity and scope of the recipe.

    Raises:
        InputError: The settings do not go together or would leave no weight.
        MismatchError: `like` is of another architecture.
    """
    if like is not None:
        return _plan_like(encoder, prune, seed, like)
    names = [weight_name(layer) for layer in scope_layers(encoder, prune.scope)]
    dead = find_dead_rows(encoder, prune.severed, names)
    total = sum(weight.numel() for weight in live_weights(weights_of(encoder, names), dead).values())
    target = target_count(total, prune.sparsity)
    counts = kept_counts(total, target, prune.rate)
    if prune.method == "imp":
        plan = Plan(names, counts, lambda number, weights, masks: keep_largest(weights, counts[number], masks))
        return prune_dead_rows(plan, dead)

    def choose(weights: Mapping[str, Tensor]) -> Masks:
        if prune.method == "magnitude":
            return keep_largest(weights, target)
        return keep_random(weights, target, derive_seed(seed, "mask"))

    return prune_dead_rows(Plan(names, [target] * len(counts), _one_shot(choose)), dead)


def weights_of(encoder: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Return the parameters of these names, detached, in their order."""
    parameters = dict(encoder.named_parameters())
    return {name: parameters[name].detach() for name in names}


def target_count(total: int, sparsity: float) -> int:
    """Return the number of weights that stay, (1 - sparsity) * total rounded.

    Raises:
        InputError: The sparsity is outside [0, 1) or would leave no weight.
    """
    if not 0.0 <= sparsity < 1.0:
        raise InputError(f"`sparsity={sparsity}`: must be at least 0 and below 1 (0.9 prunes 90 % of the weights)")
    target = round((1.0 - sparsity) * total)
    if target == 0:
        raise InputError(f"`sparsity={sparsity}`: leaves none of the {total} weights in scope; choose a smaller one")
    return target


def kept_counts(total: int, target: int, rate: float) -> list[int]:
    """Return the number of weights kept after each round.

    Each round prunes `rate` of what remains (OpenTrans sec. 3.1: 10 %). The last one is cut short to hit the target
    exactly: 22 rounds for 90 %, where the published mask stops after 21 rounds at 10.94 %. Without anything to prune
    there is still one round.

    Raises:
        InputError: The rate is outside (0, 1).
    """
    if not 0.0 < rate < 1.0:
        raise InputError(
            f"`rate={rate}`: must be above 0 and below 1 (0.1 prunes 10 % of the remaining weights in each round)"
        )
    counts: list[int] = []
    kept = total
    while kept > target:
        # Every round prunes at least one weight, however few are left.
        kept = max(target, min(kept - 1, round(kept * (1.0 - rate))))
        counts.append(kept)
    return counts or [target]


def keep_largest(weights: Mapping[str, Tensor], keep: int, current: Mapping[str, Tensor] | None = None) -> Masks:
    """Keep exactly `keep` weights of the largest magnitude over all tensors together (OpenTrans sec. 3.1).

    Of equal magnitudes at the threshold those at the first positions stay, so the result does not depend on the device
    or the number of threads.

    Args:
        weights: Weights to rank.
        keep: Number of weights to keep.
        current: Masks whose pruned weights stay pruned.

    Raises:
        InputError: A weight is NaN or infinite, or fewer than `keep` weights are left.
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


def keep_random(weights: Mapping[str, Tensor], keep: int, seed: int) -> Masks:
    """Keep exactly `keep` weights at random, every weight of every layer with the same chance."""
    total = sum(weight.numel() for weight in weights.values())
    _require_count(keep, total)
    kept = torch.zeros(total, dtype=torch.bool)
    kept[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:keep]] = True
    return _split(kept, weights)


def keep_random_like(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], seed: int) -> Masks:
    """Keep random weights, as many in each layer as `masks` keeps: its densities, not its choice.

    Raises:
        MismatchError: A tensor of `masks` is missing in `weights` or has another shape.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: Masks = {}
    for name, mask in masks.items():
        if name not in weights:
            raise MismatchError(f"`like`: the mask prunes {name}, which the model does not have")
        if weights[name].shape != mask.shape:
            raise MismatchError(
                f"`like`: the mask has shape {list(mask.shape)} at {name}, the model {list(weights[name].shape)}"
            )
        kept = torch.zeros(mask.numel(), dtype=torch.bool)
        kept[torch.randperm(mask.numel(), generator=generator)[: int(mask.sum())]] = True
        drawn[name] = kept.reshape(mask.shape)
    return drawn


def _plan_like(encoder: nn.Module, prune: Prune, seed: int, like: Mask) -> Plan:
    if prune.severed:
        raise InputError("`severed`: `like` takes the layers and densities of its mask; leave one of them out")
    if prune.method != "random":
        raise InputError(f"`like`: only `method=random` takes the densities of a mask, not {prune.method}")
    require_fit(like.shapes, encoder_tensors(encoder), model=like.model, where=f"`like` {like.title}")
    rounds = len(kept_counts(like.total, like.kept, prune.rate))
    choose = _one_shot(lambda weights: keep_random_like(weights, like.tensors, derive_seed(seed, "mask")))
    return Plan(list(like.tensors), [like.kept] * rounds, choose)


def _one_shot(choose: Callable[[Mapping[str, Tensor]], Masks]) -> Choice:
    """Choose in the first round and keep that choice."""
    return lambda number, weights, masks: choose(weights) if masks is None else masks


def _largest(scores: Tensor, keep: int) -> Tensor:
    """Return a bool tensor with exactly `keep` of the largest scores, ties by position."""
    if keep == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(scores.numel() - keep + 1).values
    kept = scores > threshold
    ties = (scores == threshold).nonzero().squeeze(1)
    kept[ties[: keep - int(kept.sum())]] = True
    return kept


def _split(flat: Tensor, weights: Mapping[str, Tensor]) -> Masks:
    """Return the parts of a flat tensor in the shapes of the weights."""
    masks: Masks = {}
    start = 0
    for name, weight in weights.items():
        masks[name] = flat[start : start + weight.numel()].reshape(weight.shape).clone()
        start += weight.numel()
    return masks


def _require_count(keep: int, available: int) -> None:
    if not 0 <= keep <= available:
        raise InputError(f"cannot keep {keep} weights: {available} are there to choose from")
