"""Patch severance: a ViT image encoder whose last blocks keep their tokens apart, for a dense map of CLIP embeddings.

In a CLIP ViT every token ends up describing the whole image, because attention mixes them. Han et al. 2023 (DeOP,
arXiv 2304.01198) cut the attention of the last block or blocks, so that each patch keeps its own content. Three ways
to cut, for a block whose values are v_l = W_v ln(x_l) + b_v, with W_o the output projection:

plain           attention is the identity: token l gets W_o v_l.
mask-guided     A = row-wise softmax of M^T M: token l gets W_o sum_k A[l, k] v_k. Patches of the same proposals mix.
with-mask       attention is the identity, and each value is scaled by how much of it lies in proposals: token l gets
                W_o (g_l v_l) with g_l = sum over proposals of M[n, l]. The released model runs this one.

M holds the probability that patch l is inside proposal n; the class token is inside all of them. Queries and keys of a
severed block are never used: see `dead_rows`.

Shapes: `B` batch, `N` proposals, `H W` image, `h w` grid of patches, `L` tokens (1 + h w), `D` width, `E` embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip import vit
from ovstrans.errors import InputError

MODES = ("plain", "mask-guided", "with-mask")
"""The ways to sever a block."""

GATES = ("mean", "sum")
"""Scale of the gate of "with-mask": divided by its mean over the patches, or the plain sum as released."""


class SeverableAttention(nn.MultiheadAttention):
    """Multi-head attention that can be replaced by its value path.

    `sever` gives this class to the attention modules of severed blocks. Parameters and their names stay.

    Attributes:
        always: Take the value path however the module is called.
    """

    always: bool = False

    def mix_values(self, tokens: Tensor, *, attention: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        """Compute the output for attention weights that are given instead of computed from queries and keys.

        Args:
            tokens: [B, L, D].
            attention: Weights [B, L, L] of all heads, rows summing to 1; None for the identity.
            gate: Factor [B, L] on the values.

        Returns:
            [B, L, D].
        """
        return cast(Tensor, self(tokens, tokens, tokens, severed=True, attention=attention, gate=gate))

    def forward(self, *args: Any, severed: bool = False, **kwargs: Any) -> Any:
        """Compute attention as torch does, or with `severed` the value path of `mix_values`."""
        if not severed and self.always:
            return self.forward(args[0], severed=True, attention=None, gate=None), None
        if not severed:
            return super().forward(*args, **kwargs)
        width, attention, gate = self.embed_dim, kwargs["attention"], kwargs["gate"]
        values = F.linear(args[0], self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        if gate is not None:
            values = values * gate[..., None]
        return self.out_proj(values if attention is None else attention @ values)


class SeverableTransformer(VisionTransformer):  # type: ignore[misc]  # open_clip has no types
    """open_clip's ViT image encoder with an additional way to run: a dense map from severed blocks.

    `sever` gives this class to an image encoder. Called with images alone, it is CLIP's image encoder as before.
    """

    severed: tuple[int, ...]

    def forward(self, images: Tensor, *, dense: bool = False, **options: Any) -> Any:
        """Compute CLIP's embedding [B, E] of normalised images, or with `dense` the map of `encode_patches`."""
        return self._encode_patches(images, **options) if dense else super().forward(images)

    def _encode_patches(
        self, images: Tensor, *, mode: str, masks: Tensor | None, gate: str, positions: Mapping[int, Tensor]
    ) -> Tensor:
        tokens, grid = self._embed_patches(images, positions.get(0))
        attention = scale = None
        if mode != "plain":
            if masks is None:
                raise InputError(f"severance {mode!r}: needs the masks of proposals")
            inside = token_masks(masks, grid)
            if mode == "mask-guided":
                attention = membership_attention(inside)
            else:
                scale = membership_gate(inside, normalise=gate == "mean")
        for number, block in enumerate(cast(Any, self.transformer).resblocks):
            if number and number in positions:
                tokens = tokens + resize_positions(positions[number], grid).to(tokens.dtype)
            if number in self.severed:
                mixed = block.attn.mix_values(block.ln_1(tokens), attention=attention, gate=scale)
                tokens = tokens + block.ls_1(mixed)
                tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
            else:
                tokens = block(tokens)
        rows = self.ln_post(tokens[:, 1:]) @ self.proj
        return cast(Tensor, rows.transpose(1, 2).unflatten(2, grid))

    def _embed_patches(self, images: Tensor, learned: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        """Embed patches with their positions: tokens [B, L, D] and the grid (h, w)."""
        tokens, grid = vit.place_patches(self, images), vit.patch_grid(self, images)
        if learned is not None:
            tokens = tokens + resize_positions(learned, grid).to(tokens.dtype)
        return self.ln_pre(tokens), grid


def sever(encoder: nn.Module, blocks: Sequence[int], *, always: bool = False) -> tuple[int, ...]:
    """Make an image encoder severable, in place; weights and their names stay as they are.

    The classes of encoder and attention modules are replaced by the severable ones above. So the work of each layer
    still happens inside that layer's own module, where cost counters look for it.

    Args:
        encoder: A ViT image encoder of open_clip.
        blocks: Numbers of the blocks to sever, from 0; negative ones count from the end.
        always: Sever them in the plain way in every forward pass, not only in that of `encode_patches`.

    Returns:
        The numbers of the severed blocks, ascending.

    Raises:
        InputError: The encoder is not such a ViT, or the blocks are not its last ones.
    """
    layers = severable_blocks(encoder)
    severed = resolve_blocks(blocks, len(layers))
    for number in severed:
        layers[number].attn.__class__ = SeverableAttention
        layers[number].attn.always = always
    cast(Any, encoder).__class__ = SeverableTransformer
    cast(Any, encoder).severed = severed
    return severed


def severable_blocks(encoder: nn.Module) -> Sequence[Any]:
    """Return the transformer blocks of an image encoder that can be severed.

    Raises:
        InputError: The encoder is not a ViT of open_clip with a class token and ordinary blocks.
    """
    if not isinstance(encoder, VisionTransformer):
        raise InputError(
            f"patch severance: needs one of open_clip's own ViT image encoders, such as ViT-B-16, not a "
            f"{type(encoder).__name__}"
        )
    blocks = list(cast(Any, encoder.transformer).resblocks)
    ordinary = all(isinstance(block, ResidualAttentionBlock) for block in blocks)
    if not ordinary or encoder.attn_pool is not None or encoder.final_ln_after_pool or encoder.proj is None:
        raise InputError(
            "patch severance: this ViT pools or attends in a way of its own; one like ViT-B-16 of OpenAI is needed"
        )
    return blocks


def resolve_blocks(blocks: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the numbers of blocks to sever, ascending and from 0.

    Args:
        blocks: Numbers; negative ones count from the end.
        count: How many blocks there are.

    Raises:
        InputError: A number is out of range, or the blocks are not the last ones without a gap.
    """
    for number in blocks:
        if not -count <= number < count:
            raise InputError(f"severed block {number}: this image encoder has {count} blocks, 0 to {count - 1}")
    numbers = sorted({number % count for number in blocks})
    if numbers != list(range(count - len(numbers), count)):
        raise InputError(
            f"severed blocks {', '.join(map(str, numbers))}: only the last blocks can be severed, such as "
            f"{', '.join(str(number) for number in range(count - max(1, len(numbers)), count))}"
        )
    return tuple(numbers)


def dead_rows(encoder: nn.Module, blocks: Sequence[int]) -> dict[str, slice]:
    """Return the rows of weights that severance leaves unused: those that make queries and keys.

    Args:
        encoder: A ViT image encoder.
        blocks: Numbers of the severed blocks; negative ones count from the end.

    Returns:
        Name of each fused weight [3D, D], without prefix, to the rows of queries and keys.

    Raises:
        InputError: As `sever`.
    """
    layers = severable_blocks(encoder)
    return {
        f"transformer.resblocks.{number}.attn.in_proj_weight": slice(0, 2 * layers[number].attn.embed_dim)
        for number in resolve_blocks(blocks, len(layers))
    }


def parse_blocks(text: str) -> tuple[int, ...]:
    """Return the numbers of blocks in "11" or "10, 11"; none for "".

    Raises:
        InputError: They are something else.
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise InputError(f"`severed={text}`: numbers of blocks are needed, such as 11 or 10,11") from None


def encode_patches(
    encoder: nn.Module,
    images: Tensor,
    *,
    mode: str = "plain",
    masks: Tensor | None = None,
    gate: str = "mean",
    positions: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Compute CLIP's embedding of every patch, with severed last blocks.

    Args:
        encoder: An image encoder after `sever`.
        images: Normalised images [B, 3, H, W] of any size.
        mode: One of `MODES`.
        masks: Mask logits [B, N, *, *] of proposals, of any size over the same area; "plain" needs none. They are
            resized bilinearly to h x w before the sigmoid.
        gate: One of `GATES`.
        positions: Learned position embeddings [1 + G * G, D] by block: 0 is added before the first norm, any other
            to the input of that block.

    Returns:
        Embeddings [B, E, h, w], not normalised.

    Raises:
        InputError: The mode needs masks and there are none.
    """
    return cast(Tensor, encoder(images, dense=True, mode=mode, masks=masks, gate=gate, positions=dict(positions or {})))


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize position embeddings of a square grid of patches to another grid, see `vit.resize_positions`.

    Args:
        positions: [1 + G * G, D].
        grid: (h, w).

    Returns:
        [1 + h * w, D]; the same tensor if that is its grid.
    """
    side = math.isqrt(positions.shape[0] - 1)
    return vit.resize_positions(positions, (side, side), grid)


def token_masks(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn mask logits [B, N, *, *] into probabilities [B, N, L] that tokens are inside; the class token's are 1."""
    inside = F.interpolate(masks.float(), size=grid, mode="bilinear", align_corners=False).sigmoid().flatten(2)
    return torch.cat([inside.new_ones(*inside.shape[:2], 1), inside], dim=2)


def membership_attention(inside: Tensor) -> Tensor:
    """Compute attention weights from shared membership: the row-wise softmax of M^T M, [B, N, L] to [B, L, L]."""
    return (inside.transpose(1, 2) @ inside).softmax(dim=-1)


def membership_gate(inside: Tensor, *, normalise: bool) -> Tensor:
    """Compute the gate of each token: how many proposals it is in.

    Args:
        inside: Probabilities [B, N, L], the class token first.
        normalise: Divide by the mean over the patches of an image, and set the class token's gate to 1. The sum
            depends on the number of proposals, so a model trained with 100 could not take 20.

    Returns:
        [B, L].
    """
    gate = inside.sum(dim=1)
    if not normalise:
        return gate
    patches = gate[:, 1:]
    mean = patches.mean(dim=1, keepdim=True).clamp_min(torch.finfo(gate.dtype).tiny)
    return torch.cat([torch.ones_like(gate[:, :1]), patches / mean], dim=1)
