"""CLIP's embeddings of masks: the out-of-vocabulary classifier of FC-CLIP (Yu et al., NeurIPS 2023), and averages.

CLIP pools its own features inside each mask, and the result is compared with text embeddings. A ResNet's attention
pool attends inside the mask only; a ConvNeXt's features are averaged over it. `pool_segments` averages the dense
embeddings of any encoder. Everything here computes in float32, whatever autocast says, and runs on meta tensors too.

Shapes: `B` batch, `Q` queries (masks), `C` channels, `H W` image, `h w` feature map at stride 32 (of a ViT: the side of
a patch), `N` segments of an image, `E` embedding, `A` attention heads, `D` channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip import vit
from ovstrans.clip.backbone import encoder_kind, full_precision, project_pooled

STRIDE = 32
"""Stride of the last feature map of a ResNet or ConvNeXt, in pixels."""


def encode_masks(encoder: nn.Module, res5: Tensor, masks: Tensor) -> Tensor:
    """Compute CLIP's embedding of the image inside each mask.

    With a ResNet, the weights of the attention pool are used with one query per image: the mean of all positions plus
    the first positional embedding. Keys and values are the positions inside the mask, with their positional embeddings
    resized bilinearly. As published, and unlike in the attention pool itself, the mean is not among the keys. With a
    ConvNeXt or ViT, the mean over the positions inside goes through norm and projection.

    Args:
        encoder: The image encoder.
        res5: Features [B, C, h, w] of the last stage, or the map of a ViT's last tokens.
        masks: Mask logits [B, Q, *, *] of any size over the same area. They are resized bilinearly to h x w; a position
            is inside if its logit is above 0. No gradient flows into them.

    Returns:
        Embeddings [B, Q, E], not normalised. A mask with nothing inside gets a constant: what the head makes of zeros.
    """
    with full_precision(res5):
        res5 = res5.float()
        inside = _inside(masks, (int(res5.shape[-2]), int(res5.shape[-1])))
        if encoder_kind(encoder) == "convnext":
            dense = cast(Any, encoder).trunk.norm_pre(res5)
            means = _mask_means(dense, inside)
            return project_pooled(encoder, means.flatten(0, 1)).reshape(*means.shape[:2], -1)
        if encoder_kind(encoder) == "vit":
            return vit.embed_tokens(encoder, _mask_means(res5, inside))
        return _masked_attention_pool(cast(nn.Module, encoder.attnpool), res5, inside)


def pool_segments(encoder: nn.Module, dense: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
    """Average the dense embeddings of an image encoder over segments.

    Each position counts as much as its cell of the image is covered by the segment, so a segment smaller than a cell
    has an embedding too.

    Args:
        encoder: The image encoder, which tells the side of a cell.
        dense: Embeddings [B, E, h, w], see `backbone.encode_positions`.
        masks: Segments of each image, bool [N, H, W] at the size of the images. What lies right of or below the last
            cell is left out, as strided convolutions do.

    Returns:
        Of each image rows [N, E], not normalised; zeros for a segment with nothing inside.
    """
    height, width = (int(side) for side in dense.shape[-2:])
    cell = vit.patch_size(encoder) if encoder_kind(encoder) == "vit" else STRIDE
    rows = []
    with full_precision(dense):
        for positions, inside in zip(dense.float().flatten(2), masks, strict=True):
            if not len(inside):
                rows.append(positions.t()[:0])  # part of the graph, as every loss must be
                continue
            seen = inside[:, : height * cell, : width * cell].float()
            covered = F.interpolate(seen[None], size=(height, width), mode="area")[0].flatten(1)
            area = covered.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            rows.append(covered @ positions.t() / area)
    return rows


def valid_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which masks have a position inside, as bool [B, Q].

    Args:
        masks: Mask logits [B, Q, *, *].
        size: Height and width (h, w) that the masks are resized to first.
    """
    with full_precision(masks):
        return _inside(masks, size).flatten(2).any(dim=2)


def _inside(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize mask logits and return the positions inside, as bool [B, Q, h, w]."""
    return F.interpolate(masks.detach().float(), size=size, mode="bilinear", align_corners=False) > 0


def _mask_means(dense: Tensor, inside: Tensor) -> Tensor:
    """Average features [B, C, h, w] inside each mask to [B, Q, C]; zeros for an empty mask."""
    members = inside.flatten(2).float()
    # Areas are whole numbers, so this is FC-CLIP's division by area + 1e-8 to the last bit.
    return members @ dense.flatten(2).transpose(1, 2) / members.sum(dim=2, keepdim=True).clamp_min(1)


def _masked_attention_pool(attnpool: nn.Module, res5: Tensor, inside: Tensor) -> Tensor:
    """Pool features [B, C, h, w] inside each mask to [B, Q, E] by the weights of the attention pool.

    The query is the same for every mask, so the scores [B, A, 1, h*w] are computed once and only the softmax is taken
    per mask.
    """
    pool = cast(Any, attnpool)
    tokens = res5.flatten(2).transpose(1, 2)
    first, positions = _positions(pool.positional_embedding.float(), (int(res5.shape[-2]), int(res5.shape[-1])))
    located = tokens + positions
    query = _split_heads(pool.q_proj(tokens.mean(dim=1, keepdim=True) + first), pool.num_heads)
    key, value = (_split_heads(layer(located), pool.num_heads) for layer in (pool.k_proj, pool.v_proj))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    weights = _masked_softmax(scores, inside.flatten(2).unsqueeze(1))
    return cast(Tensor, pool.c_proj((weights @ value).transpose(1, 2).flatten(2)))


def _positions(embedding: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Split positional embeddings [1 + n*n, C] into the query's [1, C] and the map's, resized to `size`, [h*w, C]."""
    side = math.isqrt(embedding.shape[0] - 1)
    grid = embedding[1:].t().reshape(1, -1, side, side)
    resized = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    return embedding[:1], resized.flatten(2)[0].t()


def _split_heads(rows: Tensor, heads: int) -> Tensor:
    """Reshape [B, n, C] to [B, A, n, D]."""
    return rows.reshape(*rows.shape[:2], heads, -1).transpose(1, 2)


def _masked_softmax(scores: Tensor, inside: Tensor) -> Tensor:
    """Take the softmax of scores [B, A, 1, n] over the members of each mask [B, 1, Q, n]; zeros for an empty mask.

    Neither result nor gradients are ever infinite or NaN: a mask with members sums to at least exp(0).
    """
    peak = scores.detach().masked_fill(~inside, torch.finfo(scores.dtype).min).amax(dim=3, keepdim=True)
    weights = (scores - peak).masked_fill(~inside, -torch.inf).exp()
    return weights / weights.sum(dim=3, keepdim=True).clamp_min(1)
