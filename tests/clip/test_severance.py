"""Severed attention against its definitions written out, and what a token can reach."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.severance import (
    dead_rows,
    encode_patches,
    membership_attention,
    membership_gate,
    resize_positions,
    resolve_blocks,
    sever,
    token_masks,
)
from ovstrans.errors import InputError

WIDTH, HEADS, LAYERS, GRID = 48, 3, 4, (4, 3)
LAST = LAYERS - 1


def vit(**options: Any) -> VisionTransformer:
    """A small ViT with random weights, biases included."""
    torch.manual_seed(0)
    encoder = VisionTransformer(64, 16, WIDTH, LAYERS, HEADS, 4.0, output_dim=20, act_layer=QuickGELU, **options)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder.eval()


def pixels(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 16 * GRID[0], 16 * GRID[1], generator=torch.Generator().manual_seed(1))


def mask_logits(proposals: int = 5, batch: int = 2) -> Tensor:
    return 3 * torch.randn(batch, proposals, 16, 12, generator=torch.Generator().manual_seed(2))


def by_hand(encoder: VisionTransformer, images: Tensor, severed: tuple[int, ...], attend: Any) -> Tensor:
    """The encoder written out head by head; `attend(values [B, A, L, d])` is what a severed block does with values."""
    patches = encoder.conv1(images)
    grid = (patches.shape[-2], patches.shape[-1])
    square = encoder.positional_embedding[1:].t().reshape(1, WIDTH, 4, 4)
    places = F.interpolate(square, size=grid, mode="bicubic").flatten(2)[0].t()
    tokens = torch.cat(
        [
            (encoder.class_embedding + encoder.positional_embedding[0]).expand(len(images), 1, -1),
            patches.flatten(2).transpose(1, 2) + places,
        ],
        1,
    )
    tokens = encoder.ln_pre(tokens)
    for number, block in enumerate(encoder.transformer.resblocks):
        normed = block.ln_1(tokens)
        weight, bias = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        query, key, value = (
            (normed @ w.t() + b).unflatten(-1, (HEADS, -1)).transpose(1, 2) for w, b in zip(weight, bias, strict=True)
        )
        if number in severed:
            mixed = attend(value)
        else:
            mixed = (query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1) @ value
        tokens = tokens + mixed.transpose(1, 2).flatten(2) @ block.attn.out_proj.weight.t() + block.attn.out_proj.bias
        tokens = tokens + block.mlp(block.ln_2(tokens))
    rows = encoder.ln_post(tokens)[:, 1:] @ encoder.proj
    return rows.transpose(1, 2).unflatten(2, grid)


def members(masks: Tensor) -> Tensor:
    """M with its class column, [B, N, L]."""
    inside = F.interpolate(masks, size=GRID, mode="bilinear").sigmoid().flatten(2)
    return torch.cat([torch.ones(*inside.shape[:2], 1), inside], 2)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max()) < tolerance


@pytest.mark.parametrize("severed", [(LAST,), (LAST - 1, LAST), tuple(range(LAYERS))])
def test_plain_equals_attention_to_oneself_alone(severed: tuple[int, ...]) -> None:
    encoder = vit()
    only_self = torch.eye(1 + GRID[0] * GRID[1])
    expected = by_hand(encoder, pixels(), severed, lambda value: only_self @ value)
    sever(encoder, severed)
    assert close(encode_patches(encoder, pixels()), expected)


def test_plain_equals_torch_attention_with_everything_else_masked_out() -> None:
    encoder = vit()
    attention = copy.deepcopy(encoder.transformer.resblocks[LAST].attn)
    tokens = torch.randn(2, 9, WIDTH)
    barred = torch.full((9, 9), -torch.inf).fill_diagonal_(0)
    expected = attention(tokens, tokens, tokens, attn_mask=barred, need_weights=False)[0]
    sever(encoder, [LAST])
    found = encoder.transformer.resblocks[LAST].attn.mix_values(tokens)
    assert close(found, expected)


def test_mask_guided_equals_the_softmax_of_shared_membership() -> None:
    encoder, masks = vit(), mask_logits()
    inside = members(masks)
    weights = torch.einsum("bnl,bnk->blk", inside, inside).softmax(-1)
    expected = by_hand(encoder, pixels(), (LAST,), lambda value: torch.einsum("blk,bakd->bald", weights, value))
    sever(encoder, [LAST])
    assert close(encode_patches(encoder, pixels(), mode="mask-guided", masks=masks), expected)


@pytest.mark.parametrize("proposals", [1, 5, 40])
def test_with_mask_equals_the_sum_over_proposals_of_masked_values(proposals: int) -> None:
    encoder, masks = vit(), mask_logits(proposals)
    inside = members(masks)
    expected = by_hand(encoder, pixels(), (LAST,), lambda value: torch.einsum("bnl,bald->banld", inside, value).sum(2))
    sever(encoder, [LAST])
    found = encode_patches(encoder, pixels(), mode="with-mask", masks=masks, gate="sum")
    assert close(found, expected)


def test_a_normalised_gate_has_mean_one_and_leaves_the_class_token_alone() -> None:
    inside = members(mask_logits())
    gate = membership_gate(inside, normalise=True)
    assert torch.allclose(gate[:, 1:].mean(1), torch.ones(2), atol=1e-6)
    assert torch.equal(gate[:, 0], torch.ones(2))
    doubled = membership_gate(torch.cat([inside, inside], 1), normalise=True)
    assert torch.allclose(gate, doubled, atol=1e-6)
    assert torch.isfinite(membership_gate(torch.zeros(1, 2, 5), normalise=True)).all()


def test_a_gate_of_one_reduces_with_mask_to_plain() -> None:
    encoder = vit()
    sever(encoder, [LAST])
    everywhere = torch.full((2, 1, 8, 6), 50.0)
    for gate in ("sum", "mean"):
        found = encode_patches(encoder, pixels(), mode="with-mask", masks=everywhere, gate=gate)
        assert close(found, encode_patches(encoder, pixels()))


@pytest.mark.parametrize("mode", ["plain", "with-mask"])
@pytest.mark.parametrize("first", [LAST, LAST - 2])
def test_a_token_changed_before_severed_blocks_changes_its_own_patch_only(mode: str, first: int) -> None:
    encoder, place = vit(), 7
    sever(encoder, range(first, LAYERS))
    options: dict[str, Any] = {"mode": mode, "masks": mask_logits()}
    before = encode_patches(encoder, pixels(), **options)

    def disturb(_module: Any, inputs: Any) -> Any:
        tokens = inputs[0].clone()
        tokens[:, 1 + place] += torch.arange(WIDTH) / WIDTH
        return (tokens, *inputs[1:])

    encoder.transformer.resblocks[first].ln_1.register_forward_pre_hook(disturb)
    moved = (encode_patches(encoder, pixels(), **options) - before).detach().abs().amax((0, 1)).flatten()
    assert moved[place] > 1e-3
    moved[place] = 0
    assert float(moved.max()) == 0


def test_mask_guided_attention_stays_within_proposals_of_certain_masks() -> None:
    certain = torch.zeros(1, 40, 5)
    certain[:, :, 0] = 1
    certain[:, :20, 1:3] = 1
    certain[:, 20:, 3:] = 1
    weights = membership_attention(certain)[0]
    assert torch.allclose(weights.sum(1), torch.ones(5))
    assert weights[1, 2] == weights[1, 1] > 1e-2
    assert float(weights[1, 3:].max()) < 1e-8
    assert weights[0, 0] > 0.99, "the class token is in all proposals"


def test_the_class_token_takes_part_before_the_severed_blocks_only() -> None:
    encoder = vit()
    sever(encoder, [LAST])
    before = encode_patches(encoder, pixels())
    with torch.no_grad():
        encoder.class_embedding += 1
    assert not torch.allclose(encode_patches(encoder, pixels()), before)
    everything = vit()
    sever(everything, range(LAYERS))
    before = encode_patches(everything, pixels())
    with torch.no_grad():
        everything.class_embedding += 1
    assert torch.equal(encode_patches(everything, pixels()), before)


def test_queries_and_keys_of_severed_blocks_are_dead() -> None:
    encoder = vit()
    rows = dead_rows(encoder, [-2, -1])
    names = [f"transformer.resblocks.{number}.attn.in_proj_weight" for number in (LAST - 1, LAST)]
    assert list(rows) == names and all(each == slice(0, 2 * WIDTH) for each in rows.values())
    sever(encoder, [-2, -1])
    before = encode_patches(encoder, pixels())
    state = dict(encoder.named_parameters())
    with torch.no_grad():
        for name, dead in rows.items():
            state[name][dead] = 0
    assert torch.equal(encode_patches(encoder, pixels()), before)
    with torch.no_grad():
        state[names[0]][2 * WIDTH] += 1
    assert not torch.equal(encode_patches(encoder, pixels()), before)


def test_a_severable_encoder_is_the_same_encoder() -> None:
    encoder, images = vit(), torch.randn(2, 3, 64, 64)
    expected, keys = encoder(images), list(encoder.state_dict())
    assert sever(encoder, [-1]) == (LAST,)
    assert torch.equal(encoder(images), expected)
    assert list(encoder.state_dict()) == keys
    other = copy.deepcopy(encoder)
    assert torch.equal(encode_patches(other, images), encode_patches(encoder, images))


def test_without_severed_blocks_the_map_is_that_of_clip() -> None:
    encoder, images = vit(), torch.randn(2, 3, 64, 64)
    tokens = encoder.ln_post(encoder.transformer(encoder._embeds(images)))[:, 1:] @ encoder.proj
    sever(encoder, [])
    assert close(encode_patches(encoder, images).flatten(2).transpose(1, 2), tokens)


def test_learned_positions_are_added_before_the_norm_and_to_block_inputs() -> None:
    encoder = vit()
    extra = torch.randn(1 + GRID[0] * GRID[1], WIDTH)
    expected = by_hand(encoder, pixels(), (LAST,), lambda value: value)
    sever(encoder, [LAST])
    zeros = {number: torch.zeros(1 + 9, WIDTH) for number in range(LAYERS)}
    assert close(encode_patches(encoder, pixels(), positions=zeros), expected)
    square = torch.randn(1 + 16, WIDTH)
    on_input = encode_patches(encoder, pixels(), positions={0: square})
    with torch.no_grad():
        encoder.positional_embedding += square
    assert close(on_input, encode_patches(encoder, pixels()))
    with torch.no_grad():
        encoder.positional_embedding -= square
    seen: list[Tensor] = []
    encoder.transformer.resblocks[1].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    encode_patches(encoder, pixels())
    encode_patches(encoder, pixels(), positions={1: torch.cat([extra[:1], square[1:]])})
    places = resize_positions(torch.cat([extra[:1], square[1:]]), GRID)
    assert torch.allclose(seen[1] - seen[0], places.expand(2, -1, -1), atol=1e-5)


def test_positions_on_their_own_grid_are_the_same_tensor() -> None:
    places = torch.randn(1 + 16, 8)
    assert resize_positions(places, (4, 4)) is places
    resized = resize_positions(places, (5, 7))
    assert resized.shape == (36, 8) and torch.equal(resized[0], places[0])
    constant = resize_positions(torch.ones(17, 2), (9, 3))
    assert torch.allclose(constant, torch.ones(28, 2))


def test_token_masks_resize_logits_and_then_take_the_sigmoid() -> None:
    masks = torch.tensor([[[[-4.0, 4.0], [-4.0, 4.0]]]])
    assert torch.allclose(token_masks(masks, (1, 1)), torch.tensor([[[1.0, 0.5]]]))


def test_blocks_that_cannot_be_severed() -> None:
    assert resolve_blocks([-1, 3, 2], 4) == (2, 3)
    assert resolve_blocks([], 4) == ()
    with pytest.raises(InputError, match="only the last blocks can be severed, such as 3"):
        resolve_blocks([1], 4)
    with pytest.raises(InputError, match="only the last blocks can be severed, such as 2, 3"):
        resolve_blocks([1, 3], 4)
    with pytest.raises(InputError, match="severed block 4: this image encoder has 4 blocks, 0 to 3"):
        resolve_blocks([4], 4)
    with pytest.raises(InputError, match=r"needs one of open_clip's own ViT.* not a Linear"):
        sever(torch.nn.Linear(2, 2), [0])
    with pytest.raises(InputError, match="pools or attends in a way of its own"):
        sever(vit(attentional_pool=True, attn_pooler_heads=2), [-1])
    encoder = vit()
    sever(encoder, [-1])
    with pytest.raises(InputError, match="'with-mask': needs the masks of proposals"):
        encode_patches(encoder, pixels(), mode="with-mask")
