"""Classification anchor learning: where CLIP's features of a proposal are looked at, to tell what the proposal is.

Han et al. 2023 (DeOP, arXiv 2304.01198), as released. Queries attend to the dense map of CLIP embeddings. Their last
attention map, cut to a proposal's mask, is the heat map of that proposal's classification anchors: its embedding is
the sum of CLIP's own features, weighted by the heat map. Because no projection follows, the embedding stays in the
space of the text embeddings, and carries over to classes that were not trained.

Shapes: `B` batch, `N` proposals, `h w` grid of patches, `L` patches (h w), `E` embedding, `A` attention heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.backbone import full_precision
from ovstrans.clip.text import TextClassifier, cosine_scores

TEMPERATURE = 10_000.0
"""Ratio of the longest to the shortest wave of the position encoding (Carion et al. 2020)."""


class AnchorClassifier(nn.Module):
    """Embeds proposals by anchors on a dense map of CLIP embeddings.

    Args:
        dim: E, the dimension of CLIP's embeddings; a multiple of 4 and of `heads`.
        queries: Number of learned queries. Query n belongs to proposal n by its index alone.
        layers: Decoder layers before the last attention.
        heads: A, the heads of every attention.
        ffn: Hidden width of the feed-forward networks.
        dropout: Dropout in attention, feed-forward networks and residuals.
    """

    def __init__(self, dim: int, *, queries: int, layers: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(queries, dim))
        self.layers = nn.ModuleList(_DecoderLayer(dim, heads, ffn, dropout) for _ in range(layers))
        self.self_attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, masks: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Embed proposals.

        Args:
            features: CLIP's embedding of every patch, unit length, [B, E, h, w].
            masks: Mask probabilities [B, N, h, w].
            chosen: Index [B, N] of the query that each proposal takes; None for query n for proposal n.

        Returns:
            Unit embeddings [B, N, E]; zeros for an empty mask.
        """
        with full_precision(features):
            features, masks = features.float(), masks.float()
            maps = self.heat_maps(features, masks, chosen)
            batch, dim, height, width = features.shape
            values = features.reshape(batch, self.heads, dim // self.heads, height * width)
            pooled = maps.flatten(3) @ values.transpose(2, 3)
            return F.normalize(pooled.transpose(1, 2).flatten(2), dim=-1)

    def heat_maps(self, features: Tensor, masks: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Compute the heat maps [B, A, N, h, w] of the classification anchors; see `forward`.

        The attention is a softmax over all patches, and is cut to the mask after that, without renormalising.
        """
        memory = features.flatten(2).transpose(1, 2)
        height, width = (int(side) for side in features.shape[-2:])
        located = memory + sine_positions(height, width, memory.shape[-1], memory.device)
        queries = self.queries if chosen is not None else self.queries[: masks.shape[1]]
        places = queries.expand(len(memory), -1, -1)
        state = torch.zeros_like(places)
        for layer in self.layers:
            state = layer(state, places, memory, located)
        located_queries = state + places
        mixed = self.self_attention(located_queries, located_queries, state, need_weights=False)[0]
        state = self.norm(state + self.dropout(mixed))
        query, key = self.query(state + places), self.key(located)
        query, key = (rows.unflatten(2, (self.heads, -1)).transpose(1, 2) for rows in (query, key))
        weights = self.dropout((query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1))
        if chosen is not None:
            index = chosen[:, None, :, None].expand(-1, self.heads, -1, weights.shape[-1])
            weights = weights.gather(2, index)
        return cast(Tensor, weights.unflatten(3, (height, width)) * masks[:, None])


class _DecoderLayer(nn.Module):
    """A decoder layer as in DETR, with the norm after each part."""

    def __init__(self, dim: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, ffn), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn, dim), nn.Dropout(dropout)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: Tensor, places: Tensor, memory: Tensor, located: Tensor) -> Tensor:
        """Update the state [B, N, E] of queries at `places` from a memory [B, L, E], `located` with its positions."""
        rows = state + places
        state = self.norms[0](state + self.dropout(self.self_attention(rows, rows, state, need_weights=False)[0]))
        mixed = self.cross_attention(state + places, located, memory, need_weights=False)[0]
        state = self.norms[1](state + self.dropout(mixed))
        return cast(Tensor, self.norms[2](state + self.feed_forward(state)))


class LearnedPositions(nn.Module):
    """Position embeddings that are added to CLIP's tokens, zero at first.

    Args:
        layers: Blocks whose input they are added to; 0 is before the first norm.
        grid: Side of the grid of patches that they are made for; they are resized to others.
        width: Width of the tokens.
    """

    def __init__(self, layers: Sequence[int], grid: int, width: int) -> None:
        super().__init__()
        self.by_layer = nn.ParameterDict({str(layer): torch.zeros(1 + grid * grid, width) for layer in layers})

    def forward(self) -> dict[int, Tensor]:
        """Return the embeddings [1 + G * G, D] by block."""
        return {int(layer): positions for layer, positions in self.by_layer.items()}


class ProposalClassifier(nn.Module):
    """Compares embeddings of proposals with class names, and with a learned embedding of what is no object.

    Args:
        dim: E, the dimension of the embeddings.
        scale: Inverse temperature.
        non_object: Whether there is such an embedding. Without it, as for anchors that are not trained, there is no
            class beside the K.
    """

    def __init__(self, dim: int, scale: float, *, non_object: bool) -> None:
        super().__init__()
        self.scale = scale
        self.non_object = nn.Parameter(torch.randn(dim) * dim**-0.5) if non_object else None

    def forward(self, embedding: Tensor, text: TextClassifier) -> Tensor:
        """Compute class logits [B, N, K + 1] of embeddings [B, N, E], the non-object last (if there is none, -inf)."""
        scores = cosine_scores(embedding.transpose(1, 2), text, self.scale, extra=self.non_object).transpose(1, 2)
        return scores if self.non_object is not None else F.pad(scores, (0, 1), value=-torch.inf)


def pool_masks(features: Tensor, masks: Tensor) -> Tensor:
    """Embed proposals without anchors: the sum of the features, weighted by the mask.

    Args:
        features: CLIP's embedding of every patch, [B, E, h, w].
        masks: Mask probabilities [B, N, h, w].

    Returns:
        Unit embeddings [B, N, E]; zeros for an empty mask.
    """
    with full_precision(features):
        return F.normalize(torch.einsum("bnhw,behw->bne", masks.float(), features.float()), dim=-1)


def sine_positions(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Encode the positions of a map by sines (Carion et al. 2020, appendix A.4): half the channels y, half x.

    Positions count from 1 and are scaled so that the last one is a full circle.

    Args:
        height: h.
        width: w.
        dim: E, a multiple of 4.
        device: Where to make them.

    Returns:
        [h * w, E], row by row.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=device)
    waves = TEMPERATURE ** (2 * torch.div(steps, 2, rounding_mode="floor") / half)

    def encode(length: int) -> Tensor:
        """Return [length, half]."""
        angle = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * 2 * math.pi
        phases = angle[:, None] / waves
        return torch.stack([phases[:, 0::2].sin(), phases[:, 1::2].cos()], dim=2).flatten(1)

    rows, columns = encode(height), encode(width)
    both = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=2)
    return both.flatten(0, 1)
