"""The pruning methods: what each keeps in which round.

Every method goes through as many rounds as `imp` would, so that all get the same number of
distillation steps; the one-shot methods prune in the first and distil in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ovstrans.clip.backbone import scope_convs
from ovstrans.clip.weights import encoder_tensors
from ovstrans.errors import InputError
from ovstrans.masks.mask import Mask, require_fit
from ovstrans.pruning import scores
from ovstrans.pruning.schedule import kept_counts, target_count
from ovstrans.pruning.scores import Masks
from ovstrans.recipes.schema import Prune
from ovstrans.training.state import derive_seed


@dataclass(frozen=True)
class Plan:
    """names: the parameters in scope, in layer order.  counts: weights kept after each round.
    choose: (round from 0, weights in scope, masks so far or None) to the masks of the round."""

    names: list[str]
    counts: list[int]
    choose: Callable[[int, Mapping[str, Tensor], Masks | None], Masks]


def make_plan(encoder: nn.Module, prune: Prune, seed: int, like: Mask | None = None) -> Plan:
    """The plan of a method for a tower.

    imp: a round's count of the largest magnitudes left, after the distillation of the round before.
    magnitude: the final count of the largest magnitudes, at once.  random: the final count at random,
    over the whole scope, or with the layers and densities of the mask `like` (sparsity and scope are
    then its own). Raises InputError for settings that do not go together, MismatchError where `like`
    is of another architecture.
    """
    if like is not None:
        return _plan_like(encoder, prune, seed, like)
    names = [f"{name}.weight" for name in scope_convs(encoder, prune.scope)]
    weights = weights_of(encoder, names)
    total = sum(weight.numel() for weight in weights.values())
    target = target_count(total, prune.sparsity)
    counts = kept_counts(total, target, prune.rate)
    if prune.method == "imp":
        return Plan(names, counts, lambda number, now, masks: scores.magnitude(now, counts[number], masks))
    if prune.method == "magnitude":
        once = lambda now: scores.magnitude(now, target)  # noqa: E731
    else:
        once = lambda now: scores.uniform(now, target, derive_seed(seed, "mask"))  # noqa: E731
    return Plan(names, [target] * len(counts), _one_shot(once))


def weights_of(encoder: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The tower's parameters of these names, in their order."""
    parameters = dict(encoder.named_parameters())
    return {name: parameters[name].detach() for name in names}


def _plan_like(encoder: nn.Module, prune: Prune, seed: int, like: Mask) -> Plan:
    if prune.method != "random":
        raise InputError(f"--like: only --method random takes a mask's densities, not {prune.method}")
    require_fit(like.shapes, encoder_tensors(encoder), model=like.model, where=f"--like {like.title}")
    rounds = len(kept_counts(like.total, like.kept, prune.rate))
    once = lambda now: scores.like(now, like.tensors, derive_seed(seed, "mask"))  # noqa: E731
    return Plan(list(like.tensors), [like.kept] * rounds, _one_shot(once))


def _one_shot(
    once: Callable[[Mapping[str, Tensor]], Masks],
) -> Callable[[int, Mapping[str, Tensor], Masks | None], Masks]:
    return lambda number, now, masks: once(now) if masks is None else masks
