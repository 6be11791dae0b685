"""Bilinear resizing a part at a time, equal to resizing whole maps up to rounding.

A large map times many channels need never exist: its rows are made when they are looked at. Pixel
centres are half integers, as in `torch.nn.functional.interpolate` with align_corners=False.

Shapes: `C` channels, `h w` map, `n` rows of it, `T` taps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Axis:
    """Linear interpolation along one side: each new place is a weighted sum of a few old ones.

    index: int64 [N, T], the old places.  weight: float32 [N, T].
    """

    index: Tensor
    weight: Tensor

    @classmethod
    def resize(cls, source: int, target: int) -> Axis:
        """From a length to another. The arithmetic is float32, as torch's own."""
        if source == target:
            return cls(torch.arange(source)[:, None], torch.ones(source, 1))
        place = ((torch.arange(target, dtype=torch.float32) + 0.5) * (source / target) - 0.5).clamp_(min=0)
        low = place.long().clamp_(max=source - 1)
        part = (place - low).clamp_(max=1)
        return cls(torch.stack([low, (low + 1).clamp_(max=source - 1)], 1), torch.stack([1 - part, part], 1))

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def identity(self) -> bool:
        """Whether every new place is the old one of the same number."""
        return self.index.shape[1] == 1 and torch.equal(self.index[:, 0], torch.arange(len(self)))

    def crop(self, length: int) -> Axis:
        """The first so many places."""
        return replace(self, index=self.index[:length], weight=self.weight[:length])

    def then(self, other: Axis) -> Axis:
        """This, and what `other` makes of its result, in one step."""
        if other.identity:
            return self
        index = self.index[other.index].flatten(1)
        return Axis(index, (self.weight[other.index] * other.weight[..., None]).flatten(1))

    def needs(self, first: int, last: int) -> tuple[int, int]:
        """The old places that new ones [first, last) are made of: from, to."""
        low, high = self.index[first:last].aminmax()
        return int(low), int(high) + 1

    def matrix(self, first: int, last: int, device: torch.device) -> tuple[int, int, Tensor]:
        """The old places needed (from, to) and the matrix [last - first, to - from] that makes the new ones of them."""
        low, high = self.needs(first, last)
        matrix = torch.zeros(last - first, high - low)
        matrix.scatter_add_(1, self.index[first:last] - low, self.weight[first:last])
        return low, high, matrix.to(device)


def resize_rows(maps: Tensor, axis: Axis, first: int, last: int, *, start: int = 0) -> Tensor:
    """Rows [first, last) of maps [C, n, w] along an axis of one step: [C, last - first, w].

    start: which row of the whole map `maps` begins with; `Axis.needs` says which it must hold.
    """
    if axis.identity:
        return maps[:, first - start : last - start]
    index = (axis.index[first:last] - start).to(maps.device)
    weight = axis.weight[first:last, 1:].to(maps.device)
    return torch.lerp(maps.index_select(1, index[:, 0]), maps.index_select(1, index[:, 1]), weight)


def resize_columns(maps: Tensor, width: int) -> Tensor:
    """Maps [C, n, w] at another width, [C, n, width]."""
    if maps.shape[-1] == width:
        return maps
    return F.interpolate(maps[None], size=(maps.shape[1], width), mode="bilinear", align_corners=False)[0]
