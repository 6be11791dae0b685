"""CLIP's embeddings of masks: the out-of-vocabulary classifier of FC-CLIP (Yu et al., NeurIPS 2023).

Frozen CLIP looks at what each mask covers, and the result is compared with text embeddings. A
ResNet's attention pool attends inside the mask only; a ConvNeXt's features are averaged over it.
Everything here computes in float32, whatever autocast says, and runs on meta tensors too.

Shapes: `B` batch, `Q` queries (masks), `C` channels, `h w` feature map at stride 32, `E` embedding,
`A` attention heads, `D` channels of a head.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.backbone import kind, project
from ovstrans.clip.precision import full_precision


def mask_embeddings(encoder: nn.Module, res5: Tensor, masks: Tensor) -> Tensor:
    """CLIP's embedding of the image inside each mask, [B, Q, E], not normalised.

    res5: [B, C, h, w], as `stages` gives it.  masks: logits [B, Q, *, *] of any size over the same area;
    resized bilinearly to h x w, a position is inside where its logit is above 0. No gradient flows into
    the masks. A mask with nothing inside gets a constant: what the head makes of zeros.

    ResNet: the weights of the attention pool, with one query per image (mean of all positions plus the
    first positional embedding), and as keys and values the positions inside, with their positional
    embeddings resized bilinearly. As published, and unlike in the attention pool itself, the mean is
    not among the keys. ConvNeXt: the mean over the positions inside, through norm and projection.
    """
    with full_precision(res5):
        res5 = res5.float()
        inside = _inside(masks, (int(res5.shape[-2]), int(res5.shape[-1])))
        if kind(encoder) == "convnext":
            dense = cast(Any, encoder).trunk.norm_pre(res5)
            means = _mask_means(dense, inside)
            return project(encoder, means.flatten(0, 1)).unflatten(0, means.shape[:2])
        return _masked_attention_pool(cast(nn.Module, encoder.attnpool), res5, inside)


def valid_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Which masks hold anything, bool [B, Q], once logits [B, Q, *, *] are resized to `size` (h, w)."""
    with full_precision(masks):
        return _inside(masks, size).flatten(2).any(dim=2)


def _inside(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [B, Q, h, w]."""
    return F.interpolate(masks.detach().float(), size=size, mode="bilinear", align_corners=False) > 0


def _mask_means(dense: Tensor, inside: Tensor) -> Tensor:
    """Means [B, Q, C] of [B, C, h, w] over the positions inside each mask; zeros where there are none."""
    members = inside.flatten(2).float()
    # Areas are whole numbers, so this is FC-CLIP's division by area + 1e-8 to the last bit.
    return members @ dense.flatten(2).transpose(1, 2) / members.sum(dim=2, keepdim=True).clamp_min(1)


def _masked_attention_pool(attnpool: nn.Module, res5: Tensor, inside: Tensor) -> Tensor:
    """[B, Q, E] by the attention pool's weights; see `mask_embeddings`.

    The query is the same for every mask, so scores [B, A, 1, h*w] are computed once and only the
    softmax is taken per mask.
    """
    pool = cast(Any, attnpool)
    tokens = res5.flatten(2).transpose(1, 2)
    first, positions = _positions(pool.positional_embedding.float(), (int(res5.shape[-2]), int(res5.shape[-1])))
    located = tokens + positions
    query = _split_heads(pool.q_proj(tokens.mean(dim=1, keepdim=True) + first), pool.num_heads)
    key, value = (_split_heads(layer(located), pool.num_heads) for layer in (pool.k_proj, pool.v_proj))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    weights = _masked_softmax(scores, inside.flatten(2).unsqueeze(1))
    return pool.c_proj((weights @ value).transpose(1, 2).flatten(2))


def _positions(embedding: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The query's positional embedding [1, C] and those of the map resized, [h*w, C], from [1 + n*n, C]."""
    side = math.isqrt(embedding.shape[0] - 1)
    grid = embedding[1:].t().reshape(1, -1, side, side)
    resized = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    return embedding[:1], resized.flatten(2)[0].t()


def _split_heads(rows: Tensor, heads: int) -> Tensor:
    """[B, n, C] to [B, A, n, D]."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2)


def _masked_softmax(scores: Tensor, inside: Tensor) -> Tensor:
    """Softmax of scores [B, A, 1, n] over the members of each mask [B, 1, Q, n]; zeros for an empty one.

    Never infinite or NaN, nor are its gradients: a mask with members sums to at least exp(0).
    """
    peak = scores.detach().masked_fill(~inside, torch.finfo(scores.dtype).min).amax(dim=3, keepdim=True)
    weights = (scores - peak).masked_fill(~inside, -torch.inf).exp()
    return weights / weights.sum(dim=3, keepdim=True).clamp_min(1)
