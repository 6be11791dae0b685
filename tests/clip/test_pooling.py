"""Embeddings of masks: against FC-CLIP's own code, against plain attention, at the borders."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.modified_resnet import AttentionPool2d
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from ovstrans.clip.backbone import encode_dense, encode_stages
from ovstrans.clip.pooling import encode_masks, valid_masks
from tests.clip.encoders import SIZES, filled, pooling_inputs, small_convnext, small_resnet

GOLDEN = Path(__file__).parent / "golden" / "fcclip_pooling.safetensors"
MAKE = {"resnet": small_resnet, "convnext": small_convnext}


@pytest.fixture(scope="module")
def resnet():
    return small_resnet(seed=11)


@pytest.fixture(scope="module")
def convnext():
    return small_convnext(seed=11)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("size", SIZES)
def test_as_published(kind, size):
    """Values made by FC-CLIP's code; see tests/benchmarks/golden_fcclip_pooling.py."""
    with safe_open(GOLDEN, framework="pt") as file:
        seed = int(file.metadata()["seed"])
        names = [key for key in file.keys() if key.startswith(f"{kind}.{size[0]}x{size[1]}.")]  # noqa: SIM118
        golden = {name.rpartition(".")[2]: file.get_tensor(name) for name in names}
    assert len(golden) == 6
    encoder = MAKE[kind](seed)
    images, masks = pooling_inputs(seed + 1, size)
    with torch.no_grad():
        features = encode_stages(encoder, images)
        found = encode_masks(encoder, features["res5"], masks)
    for name in ("res2", "res3", "res4", "res5"):
        probe = features[name][:, : golden[name].shape[1], 0, 0]
        torch.testing.assert_close(probe, golden[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, golden["embeddings"], rtol=1e-4, atol=1e-4)
    valid = valid_masks(masks, (size[0] // 32, size[1] // 32))
    assert torch.equal(valid, golden["valid"].bool())
    assert valid.tolist() == [[True, False, True, False], [True, True, True, True]]


def attention_per_mask(pool, res5, inside):
    """[Q, E] of one image: torch's attention, one mask at a time, over the keys inside it alone."""
    tokens = res5.flatten(1).t()
    grid = pool.positional_embedding[1:].reshape(3, 3, -1).permute(2, 0, 1)[None]
    positions = F.interpolate(grid, res5.shape[-2:], mode="bilinear", align_corners=False)[0].flatten(1).t()
    query = tokens.mean(0) + pool.positional_embedding[0]
    rows = []
    for mask in inside:
        keys = (tokens + positions)[mask.flatten()]
        out, _ = F.multi_head_attention_forward(
            query[None],
            keys,
            keys,
            embed_dim_to_check=tokens.shape[1],
            num_heads=pool.num_heads,
            in_proj_weight=None,
            in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=pool.c_proj.weight,
            out_proj_bias=pool.c_proj.bias,
            training=False,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=pool.q_proj.weight,
            k_proj_weight=pool.k_proj.weight,
            v_proj_weight=pool.v_proj.weight,
        )
        rows.append(out[0])
    return torch.stack(rows)


# Large features make softmaxes so peaked that shares outside a mask dwarf those inside.
@pytest.mark.parametrize("scale", [1.0, 100.0])
@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 5), width=st.integers(1, 5), share=st.floats(0.05, 1.0))
def test_attention_pool_is_plain_attention_inside_the_mask(scale, seed, height, width, share):
    encoder = nn.Module()
    encoder.attnpool = filled(AttentionPool2d(3, 64, 4, 16), seed=5)
    generator = torch.Generator().manual_seed(seed)
    res5 = scale * torch.rand(1, 64, height, width, generator=generator)
    inside = torch.rand(3, height, width, generator=generator) < share
    inside[:, 0, 0] = True
    masks = torch.where(inside, 1.0, -1.0)[None]
    with torch.no_grad():
        found = encode_masks(encoder, res5, masks)[0]
        wanted = attention_per_mask(encoder.attnpool, res5[0], inside)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * scale)


def test_the_mean_is_not_among_the_keys(resnet):
    """Published so; it is what sets the pooling of an all-ones mask apart from the attention pool."""
    res5 = torch.rand(1, 768, 3, 3)
    with torch.no_grad():
        found = encode_masks(resnet, res5, torch.ones(1, 1, 3, 3))[:, 0]
        whole = resnet.attnpool(res5)
    assert not torch.allclose(found, whole, rtol=1e-3)
    assert F.cosine_similarity(found, whole).item() > 0.9


@pytest.mark.parametrize("norm_first", [False, True])
def test_convnext_of_a_full_mask_is_the_image_embedding(convnext, norm_first):
    """Also where timm norms before it pools, which the published models do not."""
    encoder, images = copy.deepcopy(convnext), torch.rand(2, 3, 96, 64)
    if norm_first:
        encoder.trunk.norm_pre, encoder.trunk.head.norm = encoder.trunk.head.norm, nn.Identity()
    with torch.no_grad():
        res5 = encode_stages(encoder, images)["res5"]
        found = encode_masks(encoder, res5, torch.ones(2, 1, 24, 16))
        torch.testing.assert_close(found[:, 0], encoder(images), rtol=1e-4, atol=1e-5)
        if norm_first:  # and nothing is normed afterwards, so dense embeddings pass the pool as they are
            means = encoder.head(encoder.trunk.norm_pre(res5).flatten(2).transpose(1, 2))
            torch.testing.assert_close(encode_dense(encoder, res5).flatten(2).transpose(1, 2), means)


def test_convnext_pools_what_is_inside(convnext):
    res5 = torch.rand(1, 64, 2, 3)
    masks = torch.tensor([[[[1.0, -1.0, -1.0], [-1.0, 2.0, -1.0]]]])
    mean = (res5[:, :, 0, 0] + res5[:, :, 1, 1]) / 2
    with torch.no_grad():
        wanted = convnext.head(convnext.trunk.forward_head(mean[:, :, None, None]))
        torch.testing.assert_close(encode_masks(convnext, res5, masks)[:, 0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MAKE)
def test_empty_masks_are_constant_and_without_nan(kind, resnet, convnext):
    """Forward and backward, alone and beside masks that are not empty."""
    encoder = {"resnet": resnet, "convnext": convnext}[kind]
    width = 768 if kind == "resnet" else 64
    masks = torch.stack([torch.full((6, 4), -1.0), torch.rand(6, 4) - 0.5, torch.zeros(6, 4)])
    rows = []
    for scale in (1.0, 50.0):
        res5 = (scale * torch.rand(2, width, 3, 2)).requires_grad_()
        found = encode_masks(encoder, res5, masks.expand(2, -1, -1, -1))
        gradients = torch.autograd.grad(found.square().sum(), [res5, *encoder.parameters()], allow_unused=True)
        assert found.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
        rows += [*found[:, 0], *found[:, 2]]
    assert all(torch.equal(row, rows[0]) for row in rows)
    if kind == "resnet":
        assert torch.equal(rows[0], encoder.attnpool.c_proj.bias)


@pytest.mark.parametrize("kind", MAKE)
def test_float32_under_autocast(kind, resnet, convnext):
    encoder = {"resnet": resnet, "convnext": convnext}[kind]
    res5 = torch.rand(1, 768 if kind == "resnet" else 64, 3, 3)
    masks = torch.rand(1, 2, 12, 12) - 0.5
    with torch.no_grad():
        wanted = encode_masks(encoder, res5.bfloat16().float(), masks.bfloat16().float())
        with torch.autocast("cpu", torch.bfloat16):
            found = encode_masks(encoder, res5.bfloat16(), masks.bfloat16())
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_masks_take_no_gradient(resnet):
    masks = torch.rand(1, 2, 12, 12, requires_grad=True)
    res5 = torch.rand(1, 768, 3, 3, requires_grad=True)
    encode_masks(resnet, res5, masks).sum().backward()
    assert masks.grad is None and res5.grad is not None


@pytest.mark.parametrize(("kind", "dim"), [("resnet", 128), ("convnext", 32)])
def test_runs_on_meta(kind, dim, resnet, convnext):
    encoder = copy.deepcopy({"resnet": resnet, "convnext": convnext}[kind]).to("meta")
    with torch.device("meta"):
        res5 = encode_stages(encoder, torch.empty(2, 3, 64, 96))["res5"]
        masks = torch.empty(2, 5, 16, 24)
        assert encode_masks(encoder, res5, masks).shape == (2, 5, dim)
        assert valid_masks(masks, (2, 3)).shape == (2, 5)


def test_valid_is_decided_at_the_given_size():
    """A corner that bilinear resizing to stride 32 does not sample counts for nothing."""
    masks = torch.full((1, 2, 16, 16), -1.0)
    masks[0, 0, 0, 0] = 5.0
    masks[0, 1, 3:5, 3:5] = 5.0
    assert valid_masks(masks, (2, 2)).tolist() == [[False, True]]
    assert valid_masks(masks, (16, 16)).tolist() == [[True, True]]
