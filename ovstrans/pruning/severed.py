"""Pruning for DeOP, which severs the last blocks of a ViT: their queries and keys go whole, and count for nothing.

Nothing in DeOP reads these rows (see `clip.severance`), so a ranking of all weights would spend its budget on weights
that do not matter. With the option `severed` they are pruned before the ranking, which then is of the other weights
alone, and so is the sparsity. Distillation compares severed encoders. The mask serves DeOP alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ovstrans.clip.severance import dead_rows, parse_blocks, resolve_blocks, sever, severable_blocks
from ovstrans.errors import InputError

if TYPE_CHECKING:
    from ovstrans.pruning.methods import Masks, Plan


def find_dead_rows(encoder: nn.Module, severed: str, names: list[str]) -> dict[str, slice]:
    """Return the rows that severance leaves unused, of the parameters in scope.

    Args:
        encoder: The image encoder.
        severed: Numbers of the severed blocks, as in the recipe; "" for none.
        names: Parameters in scope.

    Raises:
        InputError: The image encoder is no ViT that can be severed, or the blocks are not its last ones.
    """
    blocks = parse_blocks(severed)
    if not blocks:
        return {}
    try:
        return {name: rows for name, rows in dead_rows(encoder, blocks).items() if name in names}
    except InputError as error:
        raise InputError(f"`severed={severed}`: {error}") from error


def live_weights(weights: Mapping[str, Tensor], dead: Mapping[str, slice]) -> dict[str, Tensor]:
    """Return weights, or masks of them, without their dead first rows."""
    return {name: weight[dead[name].stop :] if name in dead else weight for name, weight in weights.items()}


def prune_dead_rows(plan: Plan, dead: Mapping[str, slice]) -> Plan:
    """Let a plan choose among the live weights only, and prune the dead ones in every round.

    Args:
        plan: A plan whose numbers are those of live weights.
        dead: The dead rows.
    """
    if not dead:
        return plan

    def choose(number: int, weights: Mapping[str, Tensor], masks: Masks | None) -> Masks:
        chosen = plan.choose(number, live_weights(weights, dead), None if masks is None else live_weights(masks, dead))
        return {name: _with_dead(kept, dead.get(name)) for name, kept in chosen.items()}

    return replace(plan, choose=choose)


def describe_blocks(encoder: nn.Module, severed: str) -> str:
    """Return the severed blocks as a mask records them: numbers from 0, ascending."""
    return ",".join(map(str, resolve_blocks(parse_blocks(severed), len(severable_blocks(encoder)))))


def sever_encoders(severed: str, *encoders: nn.Module) -> None:
    """Sever image encoders in place, in every forward pass."""
    blocks = parse_blocks(severed)
    for encoder in encoders if blocks else ():
        sever(encoder, blocks, always=True)


def _with_dead(kept: Tensor, dead: slice | None) -> Tensor:
    if dead is None:
        return kept
    return torch.cat([kept.new_zeros(dead.stop, *kept.shape[1:]), kept])
