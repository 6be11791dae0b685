"""Bilinear resizing a band of rows at a time, equal to resizing whole maps up to rounding.

A large map times many channels need never exist: its rows are made when they are looked at. Pixel
centres are half integers, as in `torch.nn.functional.interpolate` with align_corners=False.

Shapes: `C` channels, `h w` map, `n` rows of it, `H W` map at its new size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rows_needed(first: int, last: int, source: int, target: int) -> tuple[int, int]:
    """The rows of a map `source` high that rows [first, last) of it at height `target` are made of: from, to."""
    if source == target:
        return first, last
    low, high, _ = _taps(first, last, source, target, torch.device("cpu"))
    return int(low[0]), int(high[-1]) + 1


def resize_rows(maps: Tensor, first: int, last: int, source: int, target: int, *, start: int = 0) -> Tensor:
    """Rows [first, last) of maps at another height: [C, n, w] to [C, last - first, w].

    source, target: height of the whole map, before and after.  start: which of its rows `maps` begins with;
    `rows_needed` says which it must hold.
    """
    if source == target:
        return maps[:, first - start : last - start]
    low, high, weight = _taps(first, last, source, target, maps.device)
    return torch.lerp(maps.index_select(1, low - start), maps.index_select(1, high - start), weight[:, None])


def resize_columns(maps: Tensor, width: int) -> Tensor:
    """Maps [C, n, w] at another width, [C, n, width]; keeps the memory format of [1, C, n, w]."""
    if maps.shape[-1] == width:
        return maps
    return F.interpolate(maps[None], size=(maps.shape[1], width), mode="bilinear", align_corners=False)[0]


def _taps(first: int, last: int, source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each new row the two old ones it lies between, and the weight of the second; float32, as torch has it."""
    place = (torch.arange(first, last, device=device, dtype=torch.float32) + 0.5) * (source / target) - 0.5
    place = place.clamp_(min=0)
    low = place.long().clamp_(max=source - 1)
    return low, (low + 1).clamp_(max=source - 1), (place - low).clamp_(max=1)
