"""Pruning methods: how many weights stay after each round, and which.

A mask is made in three steps, each apart from the others:

1. Scores of the weights (`magnitude_scores`), which become scores of groups of weights (`group_scores`,
   `masks.granularity`).
2. Budgets, of the whole or of each layer (`pruning.allocation`).
3. The choice of the best groups within the budgets (`keep_best`, `keep_best_by_layer`).

All methods run as many rounds as iterative magnitude pruning (`imp`), so that all get the same number of distillation
steps. The one-shot methods prune in the first round and distil in all.

Weights are a mapping from parameter name to tensor, in the order of the layers. One ranking runs over all of them: the
position of a weight is its place in this order, with every tensor flattened in C order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ovstrans.clip.layers import scope_layers, weight_name
from ovstrans.clip.weights import encoder_tensors
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.granularity import Groups, make_groups
from ovstrans.masks.mask import Mask, require_fit
from ovstrans.pruning import allocation
from ovstrans.pruning.severed import find_dead_rows, live_weights, prune_dead_rows
from ovstrans.recipes.schema import Prune
from ovstrans.training.loop import derive_seed

logger = logging.getLogger(__name__)

DEFAULT_IMAGE_SIZE = 224
"""Side of the image, in pixels, that MACs are counted for where nothing else is asked for."""

Masks = dict[str, Tensor]
"""Parameter name to bool tensor of the shape of the parameter; True = kept."""
Choice = Callable[[int, Mapping[str, Tensor], Masks | None], Masks]
"""Maps the number of a round (from 0), the weights in scope and the masks so far to the masks of the round."""


@dataclass(frozen=True)
class Plan:
    """The rounds of a method on one encoder.

    Attributes:
        names: Parameters in scope, in the order of the layers.
        counts: Budget of each round: number of weights to keep, or number of MACs if the recipe has a budget of them.
        choose: Chooses the masks of a round.
        positions: Output positions of the layers by parameter name, where the method asks for them; else empty.
        dense_macs: MACs of the layers in scope, where the method asks for them; else 0.
    """

    names: list[str]
    counts: list[int]
    choose: Choice
    positions: Mapping[str, int] = field(default_factory=dict)
    dense_macs: int = 0


def make_plan(
    encoder: nn.Module, prune: Prune, seed: int, like: Mask | None = None, *, image_size: int = DEFAULT_IMAGE_SIZE
) -> Plan:
    """Plan the rounds of a method.

    Args:
        encoder: Image encoder to prune.
        prune: Section of the recipe. `imp` keeps the largest magnitudes that are left after the distillation of the
            round before; `magnitude` keeps the largest magnitudes at once; `random` keeps random weights.
        seed: Seed of `random`.
        like: Mask whose layers and densities `random` takes, instead of the sparsity and scope of the recipe.
        image_size: Side of the image that MACs are counted for, in pixels.

    Raises:
        InputError: The settings do not go together or would leave no weight.
        MismatchError: `like` is of another architecture.
    """
    if like is not None:
        return _plan_like(encoder, prune, seed, like)
    names = [weight_name(layer) for layer in scope_layers(encoder, prune.scope)]
    dead = find_dead_rows(encoder, prune.severed, names) if prune.severed else {}
    weights = weights_of(encoder, names)
    live = live_weights(weights, dead) if dead else weights
    groups = make_groups(live, prune.granularity)
    counts, costs, budgets = _allocate(encoder, prune, live, groups, image_size)
    macs = sum(costs[name] * each.weights for name, each in groups.items()) if costs else 0

    def choose(number: int, weights: Mapping[str, Tensor], masks: Masks | None) -> Masks:
        if prune.method == "random":
            scores = random_scores(groups, derive_seed(seed, "mask"))
        else:
            scores = group_scores(magnitude_scores(weights), groups)
            if costs:
                scores = {
                    name: allocation.scores_per_mac(scores[name], each.sizes(), costs[name])
                    for name, each in groups.items()
                }
        if budgets:
            return keep_best_by_layer(scores, groups, budgets[number], masks)
        return keep_best(scores, groups, counts[number], masks, costs=costs if prune.macs else None)

    plan = Plan(names, counts, choose, costs, macs)
    if prune.method != "imp":
        final = _one_shot(lambda weights: choose(len(counts) - 1, weights, None))
        plan = Plan(names, [counts[-1]] * len(counts), final, costs, macs)
    return prune_dead_rows(plan, dead) if dead else plan


def _allocate(
    encoder: nn.Module, prune: Prune, live: Mapping[str, Tensor], groups: Mapping[str, Groups], image_size: int
) -> tuple[list[int], dict[str, int], list[dict[str, int]]]:
    """Return what is kept after each round.

    Returns:
        Budget of the whole after each round, in weights, or in MACs with a budget of MACs; MACs of a weight by
        parameter name, empty where they do not matter; number of weights that each layer keeps after each round, empty
        where all layers compete.
    """
    total = sum(weight.numel() for weight in live.values())
    if prune.granularity == "2:4":
        return kept_counts(total, _half(groups), prune.rate), {}, []
    if prune.allocation == "global":
        return kept_counts(total, target_count(total, prune.sparsity), prune.rate), {}, []
    shapes = {name: tuple(weight.shape) for name, weight in live.items()}
    if prune.allocation == "macs":
        costs = allocation.count_positions(encoder, shapes, image_size, prune.severed)
        if prune.macs:
            macs = sum(costs[name] * weight.numel() for name, weight in live.items())
            return kept_counts(macs, target_macs(macs, prune.macs, groups, costs), prune.rate), costs, []
        return kept_counts(total, target_count(total, prune.sparsity), prune.rate), costs, []
    keep = target_count(total, prune.sparsity)
    if prune.allocation == "alpha":
        alphas = allocation.measure_alphas(encoder, list(shapes))
        densities = allocation.alpha_densities(shapes, keep, alphas, prune.tau)
    else:
        spread = allocation.erk_densities if prune.allocation == "erk" else allocation.uniform_densities
        densities = spread(shapes, keep)
    counts = kept_counts(total, keep, prune.rate)
    return counts, {}, allocation.schedule_budgets(shapes, densities, counts)


def _half(groups: Mapping[str, Groups]) -> int:
    """Return the number of weights that 2:4 keeps, and name the layers that stay dense because they cannot hold it.

    Raises:
        InputError: If no layer can.
    """
    dense = [name.removesuffix(".weight") for name, each in groups.items() if not each.holds_two_of_four]
    if len(dense) == len(groups):
        raise InputError("`granularity=2:4`: no layer in scope has input channels that are a multiple of 4")
    if dense:
        logger.warning("2:4: dense, as their input channels are no multiple of 4: %s", ", ".join(dense))
    return sum(each.least for each in groups.values())


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


def target_macs(total: int, fraction: float, groups: Mapping[str, Groups], costs: Mapping[str, int]) -> int:
    """Return the number of MACs that stay, fraction * total rounded.

    Raises:
        InputError: It does not suffice for one group of weights.
    """
    target = round(fraction * total)
    cheapest = min(each.size * costs[name] for name, each in groups.items())
    if target < cheapest:
        raise InputError(f"`macs={fraction}`: leaves none of the {total:,} MACs of the layers in scope; allow more")
    return target


def magnitude_scores(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the magnitude of every weight, float32 on the CPU, where ranking is the same on every machine.

    Raises:
        InputError: A weight is NaN or infinite.
    """
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            layer = name.removesuffix(".weight")
            raise InputError(f"layer {layer}: its weights hold NaN or infinity, so they cannot be ranked")
    # Float32 holds every float16 and bfloat16 exactly.
    return {name: weight.detach().cpu().float().abs() for name, weight in weights.items()}


def group_scores(scores: Mapping[str, Tensor], groups: Mapping[str, Groups]) -> dict[str, Tensor]:
    """Return the score of every group from those of its weights: their root mean square, float32 [G]."""
    return {name: each.reduce(scores[name]) for name, each in groups.items()}


def random_scores(groups: Mapping[str, Groups], seed: int) -> dict[str, Tensor]:
    """Return a random ranking of the groups of all layers, int64 [G]: every group has the same chance."""
    total = sum(each.count for each in groups.values())
    ranks = torch.empty(total, dtype=torch.int64)
    ranks[torch.randperm(total, generator=torch.Generator().manual_seed(seed))] = torch.arange(total - 1, -1, -1)
    return dict(zip(groups, torch.split(ranks, [each.count for each in groups.values()]), strict=True))


def keep_best(
    scores: Mapping[str, Tensor],
    groups: Mapping[str, Groups],
    budget: int,
    current: Masks | None = None,
    *,
    costs: Mapping[str, int] | None = None,
) -> Masks:
    """Keep the groups of the highest scores over all layers together, as many as a budget allows.

    They are taken by falling score until the next one would exceed the budget, so what they cost is at most the budget
    and falls short of it by less than one group. Of equal scores those at the first positions come first, so the result
    does not depend on the device or the number of threads.

    Args:
        scores: Parameter name to the scores of its groups, [G], at least 0: floats, or whole numbers.
        groups: Parameter name to its groups.
        budget: What the kept groups may cost in all.
        current: Masks whose pruned groups stay pruned.
        costs: Cost of a weight by parameter name; by default every weight costs 1.

    Raises:
        InputError: The budget is more than all groups that are left cost.
    """
    keys = {
        name: _keys(scores[name], each, None if current is None else current[name]) for name, each in groups.items()
    }
    prices = {name: _price(each, costs[name] if costs else 1) for name, each in groups.items()}
    available = sum(_cost_above(keys[name], -1, prices[name]) for name in keys)
    if budget < 0 or budget - available >= max(each.size * (costs or {}).get(n, 1) for n, each in groups.items()):
        raise InputError(f"cannot keep {budget} weights: {available} are there to choose from")
    kept = _take(keys, prices, budget)
    return {name: groups[name].expand(kept[name]) for name in groups}


def keep_best_by_layer(
    scores: Mapping[str, Tensor],
    groups: Mapping[str, Groups],
    budgets: Mapping[str, int],
    current: Masks | None = None,
) -> Masks:
    """Keep the groups of the highest scores within each layer, as many as its own budget allows.

    What a layer leaves of its budget, less than a group, goes to the layers after it. So every layer is within one
    group of its budget, and the whole within one group of the sum. A layer with a budget keeps at least one group, even
    where that costs more.

    Args:
        scores: As in `keep_best`.
        groups: As in `keep_best`.
        budgets: Number of weights to keep, by parameter name.
        current: As in `keep_best`.
    """
    masks: Masks = {}
    carry = 0
    for name, each in groups.items():
        keys, price = _keys(scores[name], each, None if current is None else current[name]), _price(each, 1)
        share = budgets[name] + max(0, min(each.size - 1, carry))
        kept = _take({name: keys}, {name: price}, share)[name]
        if budgets[name] and not bool(kept.any()):
            kept[int(keys.argmax())] = int(keys.max()) >= 0
        masks[name] = each.expand(kept)
        carry += budgets[name] - int(masks[name].sum())
    return masks


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
    for name, plain in (("granularity", "element"), ("macs", 0.0), ("allocation", "global")):
        if getattr(prune, name) != plain:
            raise InputError(f"`{name}`: `like` takes the layers and densities of its mask; leave one of them out")
    if prune.method != "random":
        raise InputError(f"`like`: only `method=random` takes the densities of a mask, not {prune.method}")
    require_fit(like.shapes, encoder_tensors(encoder), model=like.model, where=f"`like` {like.title}")
    rounds = len(kept_counts(like.total, like.kept, prune.rate))
    choose = _one_shot(lambda weights: keep_random_like(weights, like.tensors, derive_seed(seed, "mask")))
    return Plan(list(like.tensors), [like.kept] * rounds, choose)


def _one_shot(choose: Callable[[Mapping[str, Tensor]], Masks]) -> Choice:
    """Choose in the first round and keep that choice."""
    return lambda number, weights, masks: choose(weights) if masks is None else masks


def _keys(scores: Tensor, groups: Groups, current: Tensor | None) -> Tensor:
    """Return whole numbers [G] in the order of the scores: -1 for groups that are gone, the most for those that stay.

    The bits of floats that are not negative are in the order of their values.
    """
    keys = scores.contiguous().view(torch.int32) if scores.dtype == torch.float32 else scores
    if current is not None:
        keys = keys.masked_fill(~groups.alive(current), -1)
    if groups.fixed:
        keys = keys.masked_fill(groups.protected(keys) & (keys >= 0), torch.iinfo(keys.dtype).max)
    return keys


def _price(groups: Groups, cost: int) -> Tensor | int:
    """Return what every group costs, [G], or one number if all cost the same."""
    return groups.sizes() * cost


def _cost_above(keys: Tensor, threshold: int, price: Tensor | int) -> int:
    """Return what the groups with keys above a threshold cost."""
    above = keys > threshold
    return int(price[above].sum()) if isinstance(price, Tensor) else price * int(torch.count_nonzero(above))


def _take(keys: Mapping[str, Tensor], prices: Mapping[str, Tensor | int], budget: int) -> dict[str, Tensor]:
    """Return which groups are taken by falling key until the next one would exceed the budget, bool [G] by name."""

    def above(threshold: int) -> int:
        return sum(_cost_above(keys[name], threshold, prices[name]) for name in keys)

    # The least threshold above which the groups do not exceed the budget, by bisection over whole numbers.
    low, high = -1, max(int(each.max()) for each in keys.values())
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if above(middle) <= budget else (middle + 1, high)
    kept = {name: each > low for name, each in keys.items()}
    left = budget - above(low)
    for name, each in keys.items() if low >= 0 else ():
        ties = (each == low).nonzero().squeeze(1)
        price = prices[name]
        spent = price[ties].cumsum(0) if isinstance(price, Tensor) else price * torch.arange(1, len(ties) + 1)
        taken = int((spent <= left).sum())
        kept[name][ties[:taken]] = True
        if taken < len(ties):
            break
        left -= int(spent[-1]) if len(ties) else 0
    return kept
