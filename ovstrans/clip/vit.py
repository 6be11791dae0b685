"""ViT image encoders: tokens of every block, at any image size, and embeddings of every patch.

An encoder is open_clip's VisionTransformer, or its TimmModel around a ViT of timm (EVA, SigLIP, MobileCLIP's ViTs). At
another image size than the encoder's own, its position embeddings are resized bicubically, which is usual for CLIP at
other resolutions. Sides must hold at least one patch; what is left over right and below is cut off, as a strided
convolution does.

Shapes: `B` batch, `H W` image, `h w` patches, `P` tokens before them (the class token), `N` tokens, `D` width, `E`
embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def vit_blocks(encoder: nn.Module) -> Sequence[nn.Module]:
    """Return the blocks, in order."""
    inner = cast(Any, encoder)
    blocks = inner.trunk.blocks if _is_timm(encoder) else inner.transformer.resblocks
    return cast(Sequence[nn.Module], blocks)


def vit_width(encoder: nn.Module) -> int:
    """Return the width D of the tokens."""
    inner = cast(Any, encoder)
    return int(inner.trunk.embed_dim if _is_timm(encoder) else inner.transformer.width)


def patch_size(encoder: nn.Module) -> int:
    """Return the side of a patch in pixels, the stride of the last feature map."""
    inner = cast(Any, encoder)
    # MobileCLIP-B embeds patches by several convolutions; their strides multiply.
    return int(inner.trunk.patch_embed.feat_ratio() if _is_timm(encoder) else inner.patch_size[0])


def prefix_tokens(encoder: nn.Module) -> int:
    """Return the number P of tokens before those of the patches: 1, or 0 without a class token."""
    return int(cast(Any, encoder).trunk.num_prefix_tokens) if _is_timm(encoder) else 1


def patch_grid(encoder: nn.Module, images: Tensor) -> tuple[int, int]:
    """Return the number of patches (h, w) of images [B, 3, H, W], down and across."""
    side = patch_size(encoder)
    return int(images.shape[-2]) // side, int(images.shape[-1]) // side


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize the position embeddings of the patches to another grid, bicubically; those of other tokens stay.

    Args:
        positions: Position embeddings [P + h w, D], the P tokens before the patches first.
        old: The grid (h, w) that they were trained on.
        new: The grid that is needed.
    """
    if old == new:
        return positions
    patches = old[0] * old[1]
    before, grid = positions[: len(positions) - patches], positions[len(positions) - patches :]
    grid = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False).to(positions.dtype)
    return torch.cat([before, grid.flatten(2)[0].T])


def place_patches(encoder: nn.Module, images: Tensor) -> Tensor:
    """Turn images into tokens before the first norm: patch embedding, class token, positions.

    Args:
        encoder: open_clip's VisionTransformer.
        images: Normalised images [B, 3, H, W] of any size.

    Returns:
        Tokens [B, P + h w, D], the class token first.
    """
    inner = cast(Any, encoder)
    patches = inner.conv1(images)
    size = (int(patches.shape[-2]), int(patches.shape[-1]))
    patches = patches.flatten(2).transpose(1, 2)
    first = inner.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    positions = resize_positions(inner.positional_embedding, tuple(inner.grid_size), size)
    return torch.cat([first, patches], dim=1) + positions.to(patches.dtype)


def embed_patches(encoder: nn.Module, images: Tensor) -> Tensor:
    """Turn images into the tokens that enter the first block: those of `place_patches` after the first norm."""
    inner = cast(Any, encoder)
    return cast(Tensor, inner.ln_pre(inner.patch_dropout(place_patches(encoder, images))))


def encode_tokens(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    """Compute the tokens after every block.

    Args:
        encoder: The image encoder, with or without its head.
        images: Normalised images [B, 3, H, W] of any size.

    Returns:
        Tokens [B, P + h w, D] after each block, in order. No norm is applied.
    """
    if _is_timm(encoder):
        return _encode_timm_tokens(encoder, images)
    tokens = embed_patches(encoder, images)
    after = []
    for block in vit_blocks(encoder):
        tokens = block(tokens)
        after.append(tokens)
    return after


def token_map(encoder: nn.Module, tokens: Tensor, images: Tensor) -> Tensor:
    """Return the tokens of the patches [B, P + h w, D] as a map [B, D, h, w], for the images that they are of."""
    patches = tokens[:, prefix_tokens(encoder) :]
    return patches.transpose(1, 2).reshape(len(patches), -1, *patch_grid(encoder, images))


def encode_image(encoder: nn.Module, images: Tensor) -> Tensor:
    """Compute image embeddings [B, E] at any image size, not normalised.

    At the encoder's own size, the result is that of its forward pass.

    Args:
        encoder: The image encoder.
        images: Normalised images [B, 3, H, W].
    """
    return pool_tokens(encoder, encode_tokens(encoder, images)[-1])


def pool_tokens(encoder: nn.Module, tokens: Tensor) -> Tensor:
    """Turn the tokens after the last block [B, P + h w, D] into image embeddings [B, E] by the encoder's head."""
    inner = cast(Any, encoder)
    if _is_timm(encoder):
        return cast(Tensor, inner.head(inner.trunk.forward_head(inner.trunk.norm(tokens))))
    pooled, _ = inner._pool(tokens)
    return cast(Tensor, pooled if inner.proj is None else pooled @ inner.proj)


def sever_block(block: nn.Module, tokens: Tensor) -> Tensor:
    """Run a block with each token attending to itself alone: attention is the value and output projections.

    Args:
        block: A block of a ViT.
        tokens: Tokens [B, N, D] before it.
    """
    inner = cast(Any, block)
    if hasattr(inner, "ln_1"):
        tokens = tokens + inner.ls_1(_own_values(inner.attn, inner.ln_1(tokens)))
        return cast(Tensor, tokens + inner.ls_2(inner.mlp(inner.ln_2(tokens))))
    if "PostNorm" in type(block).__name__:  # EVA02-E normalises what attention and MLP return
        tokens = tokens + inner.norm1(_own_values(inner.attn, tokens))
        return cast(Tensor, tokens + inner.norm2(inner.mlp(tokens)))
    tokens = tokens + _scale(inner, 1, _own_values(inner.attn, inner.norm1(tokens)))
    return tokens + _scale(inner, 2, inner.mlp(inner.norm2(tokens)))


def embed_tokens(encoder: nn.Module, tokens: Tensor) -> Tensor:
    """Project tokens [B, N, D] one by one into the space of the text embeddings, as the head does with the pooled one.

    An attention pool (SigLIP's) takes its value path: each token attends to itself alone.

    Returns:
        [B, N, E], not normalised.
    """
    inner = cast(Any, encoder)
    if not _is_timm(encoder):
        rows = inner.ln_post(tokens)
        return cast(Tensor, rows if inner.proj is None else rows @ inner.proj)
    trunk = inner.trunk
    rows = trunk.norm(tokens)
    if getattr(trunk, "attn_pool", None) is not None:
        pool = trunk.attn_pool
        rows = pool.proj(pool.kv(rows).chunk(2, dim=-1)[1])
        rows = rows if pool.mlp is None else rows + pool.mlp(pool.norm(rows))
    return cast(Tensor, inner.head(trunk.head(trunk.fc_norm(rows))))


def embed_patch_map(encoder: nn.Module, before_last: Tensor, images: Tensor) -> Tensor:
    """Compute CLIP embeddings of every patch: the last block severed, then the head without its pooling.

    A token's own values leave it in the space that the head projects (Zhou et al., ECCV 2022, sec. 3.2; DeOP's patch
    severance of the last block).

    Args:
        encoder: The image encoder.
        before_last: Tokens [B, P + h w, D] before the last block.
        images: The images [B, 3, H, W] that they are of.

    Returns:
        Embeddings [B, E, h, w], not normalised.
    """
    patches = before_last[:, prefix_tokens(encoder) :]
    rows = embed_tokens(encoder, sever_block(vit_blocks(encoder)[-1], patches))
    return rows.transpose(1, 2).reshape(len(rows), -1, *patch_grid(encoder, images))


def head_parts(encoder: nn.Module) -> list[nn.Module | nn.Parameter]:
    """Return modules and parameters of the head: last norm, pooling and projection."""
    inner = cast(Any, encoder)
    names = ("norm", "attn_pool", "fc_norm", "head")
    parts = [getattr(inner.trunk, name, None) for name in names] if _is_timm(encoder) else [inner.ln_post, inner.proj]
    parts += [inner.head] if _is_timm(encoder) else [inner.attn_pool]
    return [part for part in parts if part is not None]


def drop_head(encoder: nn.Module) -> None:
    """Remove the head in place, so that only the blocks and what precedes them are left."""
    inner = cast(Any, encoder)
    if _is_timm(encoder):
        inner.trunk.norm = inner.trunk.attn_pool = inner.trunk.fc_norm = inner.trunk.head = inner.head = None
    else:
        inner.ln_post = inner.proj = inner.attn_pool = None


def allow_any_size(encoder: nn.Module) -> None:
    """Let a ViT of timm take images of any size, in place: it then resizes its position embeddings where needed."""
    trunk = cast(Any, encoder).trunk
    embed = trunk.patch_embed
    if not trunk.dynamic_img_size and hasattr(embed, "strict_img_size"):
        from timm.layers.format import Format

        embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
        trunk.dynamic_img_size = True


def _is_timm(encoder: nn.Module) -> bool:
    return isinstance(getattr(encoder, "trunk", None), nn.Module)


def _encode_timm_tokens(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    trunk = cast(Any, encoder).trunk
    rope: Any = getattr(trunk, "rope", None)
    grid = patch_grid(encoder, images)
    native = getattr(rope, "feat_shape", None)  # EVA keeps its rotary positions for one grid
    try:
        if native is not None and tuple(native) != grid:
            rope.update_feat_shape(list(grid))
        side = patch_size(encoder)
        whole = images[..., : grid[0] * side, : grid[1] * side]  # timm refuses what is left over
        found = trunk.forward_intermediates(
            whole, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True, norm=False
        )
    finally:
        if native is not None and tuple(native) != grid:
            rope.update_feat_shape(list(native))
    return [torch.cat([each[1], each[0]], dim=1) if isinstance(each, tuple) else each for each in found]


def _own_values(attention: nn.Module, tokens: Tensor) -> Tensor:
    """Return what attention gives to tokens [B, N, D] that each attend to themselves alone."""
    inner = cast(Any, attention)
    if isinstance(attention, nn.MultiheadAttention):
        width = attention.embed_dim
        bias = None if inner.in_proj_bias is None else inner.in_proj_bias[2 * width :]
        return cast(Tensor, inner.out_proj(F.linear(tokens, inner.in_proj_weight[2 * width :], bias)))
    gate = getattr(inner, "gate", None)
    if inner.qkv is None:
        values = inner.v_proj(tokens)
    else:
        rows = inner.qkv.weight.chunk(3)[2]
        bias = inner.qkv.bias.chunk(3)[2] if inner.qkv.bias is not None else getattr(inner, "v_bias", None)
        values = F.linear(tokens, rows, bias)
    values = inner.norm(values)
    return cast(Tensor, inner.proj(values if gate is None else values * gate(tokens).sigmoid()))


def _scale(block: Any, number: int, branch: Tensor) -> Tensor:
    """Apply the learned scale of a residual branch: a module, a parameter, or none."""
    module, factor = getattr(block, f"ls{number}", None), getattr(block, f"gamma_{number}", None)
    if module is not None:
        return cast(Tensor, module(branch))
    return branch if factor is None else branch * factor
