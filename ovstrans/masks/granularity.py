"""Granularity: which weights of a layer are kept or pruned together.

element   Every weight by itself.
4x1       Blocks of four consecutive output channels at one input channel and kernel position: what the 4x1 kernel of
          the sparse runtime reads (`runtime.packing`). Where the output channels are no multiple of four, the one to
          three that are left form smaller blocks; the runtime runs such a layer weight by weight.
2:4       Of four consecutive input channels, at one output channel and kernel position, two are kept: what NVIDIA's
          sparse tensor cores run (Mishra et al. 2021, arXiv 2104.08378). A layer whose input channels are no multiple
          of four cannot hold the pattern and stays dense.
filter    Whole output channels.

Shapes: `O` output channels, `I` input channels, `N` weights of an output channel, `G` groups of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 4
"""Output channels of a 4x1 block, and input channels of which 2:4 keeps two."""


@dataclass(frozen=True)
class Groups:
    """The groups of a layer's weights that are kept or pruned together, in the order of their first weight.

    Blocks of 4x1 are in the order of their channels, then of the weights of a channel; smaller ones come last.

    Attributes:
        shape: Shape of the weight, output channels first.
        granularity: One of `recipes.schema.GRANULARITIES`.
    """

    shape: tuple[int, ...]
    granularity: str = "element"

    @property
    def weights(self) -> int:
        """Number of weights of the layer."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Number of weights of a group, of the largest if they differ."""
        if self.granularity == "4x1":
            return min(BLOCK, self.shape[0])
        return self.weights // self.shape[0] if self.granularity == "filter" else 1

    @property
    def count(self) -> int:
        """Number of groups, G."""
        if self.granularity == "4x1":
            return -(-self.shape[0] // BLOCK) * (self.weights // self.shape[0])
        return self.weights // self.size

    @property
    def fixed(self) -> bool:
        """Whether the granularity fixes how many weights stay, whatever the budget: 2:4 does."""
        return self.granularity == "2:4"

    @property
    def holds_two_of_four(self) -> bool:
        """Whether the layer can hold the 2:4 pattern."""
        return len(self.shape) > 1 and self.shape[1] % BLOCK == 0

    @property
    def least(self) -> int:
        """Fewest weights that stay: a half under 2:4, or all if the layer cannot hold it; else none."""
        return self.weights // (2 if self.holds_two_of_four else 1) if self.fixed else 0

    def sizes(self) -> Tensor | int:
        """Return the number of weights of every group, int64 [G], or one number if all are equal."""
        tail = self.shape[0] % BLOCK
        if self.granularity != "4x1" or not tail or self.shape[0] < BLOCK:
            return self.size
        sizes = torch.full((self.count,), BLOCK)
        sizes[-(self.weights // self.shape[0]) :] = tail
        return sizes

    def reduce(self, scores: Tensor) -> Tensor:
        """Return the scores of the groups: the root mean square of the scores of their weights.

        It is the norm over the root of the size, so that a group competes by what it holds per weight with weights by
        themselves, smaller blocks and filters of other layers.

        Args:
            scores: Scores of the weights, of the layer's shape, at least 0.

        Returns:
            float32 [G] on the CPU; the sums are in float64, which makes them the same on every machine.
        """
        scores = scores.detach().cpu()
        if self.size == 1:
            return scores.float().reshape(-1)
        parts = [part.double().square().mean(dim=1).sqrt().float().reshape(-1) for part in self._parts(scores)]
        return torch.cat(parts)

    def alive(self, kept: Tensor) -> Tensor:
        """Return which groups have a weight that a mask of the layer keeps, bool [G]."""
        return torch.cat([part.any(dim=1).reshape(-1) for part in self._parts(kept.cpu())])

    def expand(self, kept: Tensor) -> Tensor:
        """Return the mask of the layer that keeps some groups.

        Args:
            kept: Groups to keep, bool [G].
        """
        if self.size == 1:
            return kept.reshape(self.shape).clone()
        parts, start = [], 0
        for part in self._parts(torch.empty(self.shape, device="meta")):
            count = part.shape[0] * part.shape[2]
            groups = kept[start : start + count].reshape(part.shape[0], 1, part.shape[2])
            parts.append(groups.expand(part.shape).reshape(-1))
            start += count
        return torch.cat(parts).reshape(self.shape)

    def protected(self, keys: Tensor) -> Tensor:
        """Return which groups must stay so that the granularity holds, bool [G].

        Under 2:4 these are the two largest of every four, of equal ones the first, or all if the layer stays dense.

        Args:
            keys: What the groups are ranked by, [G].
        """
        if not self.fixed or not self.holds_two_of_four:
            return torch.full_like(keys, self.fixed, dtype=torch.bool)
        fours = keys.reshape(self.shape[0], self.shape[1] // BLOCK, BLOCK, -1)
        beaten = torch.zeros(fours.shape, dtype=torch.int8)
        for later in range(BLOCK):
            for earlier in range(later):
                first = fours[:, :, earlier] >= fours[:, :, later]
                beaten[:, :, later] += first
                beaten[:, :, earlier] += ~first
        return (beaten < BLOCK // 2).reshape(-1)

    def fits(self, kept: Tensor) -> bool:
        """Return whether a mask of the layer has the granularity: whole groups, and at most two of every four."""
        if self.fixed:
            if not self.holds_two_of_four:
                return bool(kept.all())
            fours = kept.reshape(self.shape[0], self.shape[1] // BLOCK, BLOCK, -1)
            return bool((fours.sum(dim=2) <= BLOCK // 2).all())
        return all(torch.equal(part.any(dim=1), part.all(dim=1)) for part in self._parts(kept))

    def _parts(self, tensor: Tensor) -> Sequence[Tensor]:
        """Return views [*, size, *] of a tensor of the layer's shape whose dimension 1 runs over a group's weights."""
        rows = self.shape[0]
        if self.granularity == "filter":
            return [tensor.reshape(rows, -1, 1)]
        if self.granularity != "4x1":
            return [tensor.reshape(-1, 1, 1)]
        whole = rows - rows % BLOCK
        flat = tensor.reshape(rows, -1)
        parts = [flat[:whole].reshape(rows // BLOCK, BLOCK, -1)] if whole else []
        return [*parts, flat[whole:].unsqueeze(0)] if rows > whole else parts


def make_groups(tensors: Mapping[str, Tensor], granularity: str) -> dict[str, Groups]:
    """Return the groups of every weight or mask, by parameter name.

    Args:
        tensors: Parameter name to weight or mask.
        granularity: One of `recipes.schema.GRANULARITIES`.
    """
    return {name: Groups(tuple(tensor.shape), granularity) for name, tensor in tensors.items()}
