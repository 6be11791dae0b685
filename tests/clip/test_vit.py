"""ViT image encoders: names of layers, tokens at any size, embeddings of patches."""

import pytest
import torch
from torch.nn import functional as F

from ovstrans.clip import vit
from ovstrans.clip.backbone import drop_head, encode_last, encoder_kind, head_parts
from ovstrans.clip.layers import (
    backbone_layers,
    layer_parameters,
    plan_layers,
    scope_layers,
    stage_name,
    uncalled_layers,
    weight_matrices,
    weight_name,
)
from ovstrans.clip.load import create_image_encoder, random_clip
from ovstrans.errors import InputError
from tests.clip.vits import KINDS, small_vit

BLOCK = "transformer.resblocks.0."
NAMES = ["attn.in_proj_weight", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"]


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):
        return create_image_encoder("ViT-B-16")


def test_vit_b16_has_48_matrices_in_its_body(base):
    """48 matrices, 84.9 M of the 86.2 M parameters of the image encoder; patch embedding and projection stay dense."""
    body = scope_layers(base)
    assert list(body)[:4] == [BLOCK + name for name in NAMES]
    assert len(body) == 48 and sum(weight.numel() for weight in body.values()) == 12 * 12 * 768**2
    assert list(scope_layers(base, "backbone")) == list(body)
    assert list(backbone_layers(base)) == ["conv1", *body]
    parameters = dict(base.named_parameters())
    assert all(parameters[weight_name(name)] is weight for name, weight in body.items())
    assert layer_parameters(BLOCK + NAMES[0]) == (f"{BLOCK}attn.in_proj_weight", f"{BLOCK}attn.in_proj_bias")


def test_patterns_choose_layers(base):
    assert len(scope_layers(base, "*.attn.*")) == 24 and len(scope_layers(base, "*.in_proj_weight,*.out_proj")) == 24
    assert list(scope_layers(base, "conv1")) == ["conv1"]
    with pytest.raises(InputError, match=r"'\*\.ln_1' matches no layer that can be pruned"):
        scope_layers(base, "*.ln_1")


def test_q_k_and_v_have_spectra_of_their_own(base):
    matrices = weight_matrices(base)
    assert len(matrices) == 72 + 1  # and the patch embedding
    assert matrices[f"{BLOCK}attn.q"].shape == (768, 768)
    groups = plan_layers({name: weight.shape for name, weight in matrices.items()})
    assert list(groups) == list(scope_layers(base))
    assert groups[BLOCK + NAMES[0]] == (f"{BLOCK}attn.q", f"{BLOCK}attn.k", f"{BLOCK}attn.v")
    heads = weight_matrices(base, heads=True)
    assert heads[f"{BLOCK}attn.v.11"].shape == (64, 768) and len(heads) == 12 * (3 * 12 + 3) + 1
    assert list(plan_layers({name: weight.shape for name, weight in heads.items()})) == list(groups)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_rows_of_the_fused_weight(kind):
    encoder = small_vit(kind)
    matrices, layers = weight_matrices(encoder), backbone_layers(encoder)
    fused = [name for name in layers if name.endswith(("in_proj_weight", "qkv"))]
    for name in fused:
        attention = name.rpartition(".")[0]
        parts = [matrices[f"{attention}.{part}"] for part in "qkv"]
        assert torch.equal(torch.cat(parts), layers[name])
    groups = plan_layers({name: weight.shape for name, weight in matrices.items()})
    assert list(groups) == list(scope_layers(encoder)) and fused
    assert not any("pool" in name or "patch_embed" in name for name in groups)


def test_convolutions_are_planned_where_there_are_any():
    shapes = {"conv1": (8, 3, 3, 3), "layer1.0.conv1": (8, 8, 1, 1), "attnpool.q_proj": (8, 8)}
    assert list(plan_layers(shapes)) == ["conv1", "layer1.0.conv1"]
    assert list(plan_layers({"0": (4, 4), "2": (4, 4)})) == ["0", "2"]  # any other module: all its layers


@pytest.mark.parametrize("kind", KINDS)
def test_kind_stage_and_head(kind):
    encoder = small_vit(kind)
    assert encoder_kind(encoder) == "vit" and vit.vit_width(encoder) in (128, 192)
    names = list(backbone_layers(encoder))
    assert stage_name(names[0]) == "stem"
    assert len({stage_name(name) for name in names[1:]}) == len(vit.vit_blocks(encoder))
    images = torch.randn(1, 3, 2 * vit.patch_size(encoder), 3 * vit.patch_size(encoder))
    with torch.no_grad():
        before = encode_last(encoder, images)
        for part in head_parts(encoder):
            part.requires_grad_(False)
        drop_head(encoder)
        assert torch.equal(encode_last(encoder, images), before)
    assert before.shape[-2:] == (2, 3) and encoder_kind(encoder) == "vit"
    assert not set(dict(encoder.named_parameters())) & {
        "proj",
        "ln_post.weight",
        "trunk.norm.weight",
        "head.proj.weight",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_at_its_own_size_it_is_the_forward_pass(kind):
    encoder = small_vit(kind)
    images = torch.randn(2, 3, *([96] * 2 if kind == "open_clip" else [224] * 2))
    with torch.no_grad():
        expected = encoder(images)
        torch.testing.assert_close(vit.encode_image(encoder, images), expected, rtol=1e-5, atol=1e-5)
        tokens = vit.encode_tokens(encoder, images)
        larger = vit.encode_image(encoder, F.pad(images, (0, 2 * vit.patch_size(encoder))))
        assert torch.equal(encoder(images), expected)  # another size leaves nothing behind
    assert len(tokens) == len(vit.vit_blocks(encoder)) and larger.shape == expected.shape
    rows = vit.prefix_tokens(encoder) + (images.shape[-1] // vit.patch_size(encoder)) ** 2
    assert tokens[-1].shape == (2, rows, vit.vit_width(encoder))


def test_positions_are_resized_bicubically_around_the_class_token():
    positions = torch.randn(1 + 12, 4)
    assert vit.resize_positions(positions, (3, 4), (3, 4)) is positions
    found = vit.resize_positions(positions, (3, 4), (6, 2))
    grid = positions[1:].reshape(3, 4, 4).permute(2, 0, 1)[None]
    expected = F.interpolate(grid, (6, 2), mode="bicubic", align_corners=False)[0].flatten(1).T
    assert torch.equal(found[0], positions[0]) and torch.equal(found[1:], expected)
    assert vit.resize_positions(positions[1:], (3, 4), (6, 2)).shape == (12, 4)  # no class token


@pytest.mark.parametrize("kind", KINDS)
def test_a_severed_block_is_attention_to_oneself_alone(kind):
    """The closed form against the block with every other token masked out."""
    encoder = small_vit(kind)
    block = vit.vit_blocks(encoder)[-1]
    tokens = torch.randn(2, 5, vit.vit_width(encoder))
    alone = torch.full((5, 5), float("-inf")).fill_diagonal_(0)
    with torch.no_grad():
        expected = block(tokens, attn_mask=alone)
        torch.testing.assert_close(vit.sever_block(block, tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_moves_only_its_own_embedding(kind):
    encoder = small_vit(kind)
    images = torch.randn(1, 3, 2 * vit.patch_size(encoder), 3 * vit.patch_size(encoder))
    with torch.no_grad():
        tokens = vit.encode_tokens(encoder, images)[-2]
        moved = tokens.clone()
        moved[:, vit.prefix_tokens(encoder) + 4] += 1
        maps = [vit.embed_patch_map(encoder, each, images) for each in (tokens, moved)]
    assert maps[0].shape == (1, encoder(torch.zeros(1, 3, *_native(kind))).shape[-1], 2, 3)
    changed = (maps[0] != maps[1]).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[1, 1]]


def _native(kind):
    return (96, 96) if kind == "open_clip" else (224, 224)


def test_the_quickgelu_of_a_tag_is_kept():
    assert (
        type(random_clip("ViT-B-32", pretrained="openai").visual.transformer.resblocks[0].mlp.gelu).__name__
        == "QuickGELU"
    )
    assert type(random_clip("ViT-mini").visual.transformer.resblocks[0].mlp.gelu).__name__ == "GELU"


def test_layers_without_a_call_of_their_own():
    assert uncalled_layers(small_vit("open_clip"))["transformer.resblocks.5.attn"] == (
        "transformer.resblocks.5.attn.in_proj_weight",
        "transformer.resblocks.5.attn.out_proj",
    )
    assert uncalled_layers(small_vit("plain")) == {}
    with torch.device("meta"):
        giant = create_image_encoder("EVA01-g-14")
    assert uncalled_layers(giant)["trunk.blocks.0.attn"] == ("trunk.blocks.0.attn.qkv",)
