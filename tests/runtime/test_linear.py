"""Linear layers of ViTs and ConvNeXts by the kernels: equal to torch, wherever a block or a layer is called."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ovstrans.clip import vit
from ovstrans.clip.backbone import encode_stages, encoder_kind
from ovstrans.clip.layers import backbone_layers
from ovstrans.clip.load import random_clip
from ovstrans.runtime.choose import attach_runtime, choose_runtime, describe_runtime
from ovstrans.runtime.library import Kernels, find_kernels
from ovstrans.runtime.linear import PackedLinear, SparseLinears, detach_linears, pack_linears
from ovstrans.runtime.packing import pack_conv
from tests.runtime.networks import relative_error


def make_vit(model: str = "ViT-mini", density: float = 0.1) -> nn.Module:
    """An image encoder with biases and sparse layers."""
    torch.manual_seed(0)
    encoder = random_clip(model).visual.eval()
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    for weight in backbone_layers(encoder).values():
        if weight.shape[-1] < 4 or weight.dim() == 2:
            weight.data *= (torch.rand_like(weight) < density) / density**0.5
    return encoder


def run(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    """Every tap of the frameworks: tokens or stages, and for a ViT the severed blocks and embeddings of patches."""
    with torch.inference_mode():
        if encoder_kind(encoder) == "convnext":
            return list(encode_stages(encoder, images).values())
        tokens = vit.encode_tokens(encoder, images)
        severed = [vit.sever_block(block, tokens[-2]) for block in vit.vit_blocks(encoder)]
        return [
            *tokens,
            *severed,
            vit.embed_patch_map(encoder, tokens[-2], images),
            vit.pool_tokens(encoder, tokens[-1]),
        ]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 200),
    inputs=st.integers(1, 130),
    outputs=st.integers(1, 70),
    density=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    threads=st.sampled_from([1, 3]),
)
def test_any_shape(rows: int, inputs: int, outputs: int, density: float, threads: int) -> None:
    kernels = find_kernels()
    assert kernels is not None
    weight = torch.randn(outputs, inputs) * (torch.rand(outputs, inputs) < density)
    bias, x = torch.randn(outputs), torch.randn(rows, inputs)
    layer = PackedLinear(pack_conv(weight.numpy()[:, :, None, None], bias.numpy()), kernels)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = layer(x)
        middle = layer.from_rows(x, lowered=False)
    finally:
        torch.set_num_threads(before)
    expected = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(middle.transpose(1, 2).reshape(-1, outputs)[:rows], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("size", [(64, 64), (80, 112)])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_tap_of_a_vit_is_that_of_torch(kernels: Kernels, size: tuple[int, int], batch: int) -> None:
    encoder, images = make_vit(), torch.randn(batch, 3, *size)
    expected = run(encoder, images)
    linears = pack_linears(encoder, kernels)
    assert len(linears.layers) == 4 * len(vit.vit_blocks(encoder)) and not linears.dense
    linears.attach(encoder)
    names = {type(module).__name__ for module in encoder.modules()}
    assert {"SparseMultiheadAttention", "SparseLinear", "SparseSequential"} <= names
    found = run(encoder, images)
    assert all(relative_error(one, other) < 1e-5 for one, other in zip(found, expected, strict=True))
    detach_linears(encoder)
    assert all(torch.equal(one, other) for one, other in zip(run(encoder, images), expected, strict=True))


@pytest.mark.parametrize("model", ["ViT-B-16-SigLIP", "EVA02-B-16", "convnext_base", "ViT-B-16"])
def test_encoders_of_open_clip_and_timm(model: str) -> None:
    encoder, images = make_vit(model), torch.randn(1, 3, 224, 224)
    expected = run(encoder, images)
    choice = choose_runtime(encoder)
    assert choice.runtime == "sparse" and isinstance(choice.backbone, SparseLinears), choice
    assert len(choice.backbone.layers) >= 24
    attach_runtime(encoder, choice)
    assert all(relative_error(one, other) < 1e-5 for one, other in zip(run(encoder, images), expected, strict=True))


def test_layers_that_are_not_sparse_stay_dense_and_it_says_which() -> None:
    encoder, images = make_vit(), torch.randn(1, 3, 64, 64)
    dense = "transformer.resblocks.1.mlp.c_proj"
    nn.init.normal_(encoder.get_submodule(dense).weight)
    expected = run(encoder, images)
    choice = choose_runtime(encoder)
    assert isinstance(choice.backbone, SparseLinears) and choice.backbone.dense == [dense]
    assert "the rest by torch, " + dense in choice.reason and "linear layers by" in choice.reason
    attach_runtime(encoder, choice)
    assert type(encoder.get_submodule(dense)) is nn.Linear
    assert type(encoder.transformer.resblocks[1].mlp) is nn.Sequential
    assert all(relative_error(one, other) < 1e-5 for one, other in zip(run(encoder, images), expected, strict=True))
    assert choose_runtime(make_vit(density=0.9)).runtime == "dense"
    choice = choose_runtime(make_vit(density=0.9), "sparse")
    assert choice.notable and "no linear layer has at most 50% of its weights" in choice.reason
    assert describe_runtime(make_vit().state_dict()).endswith(" for linear layers")


def test_gradients_training_and_other_types_go_to_torch() -> None:
    encoder, images = make_vit(), torch.randn(1, 3, 64, 64)
    attach_runtime(encoder, choose_runtime(encoder))
    tokens = vit.encode_tokens(encoder, images)[-1]
    tokens.sum().backward()
    assert encoder.transformer.resblocks[0].mlp.c_fc.weight.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert bool(vit.encode_tokens(encoder, images)[-1].isfinite().all())
    with torch.inference_mode():
        assert vit.encode_tokens(encoder.double(), images.double())[-1].dtype == torch.float64


def test_copies_run_and_pickles_are_refused() -> None:
    encoder, images = make_vit(), torch.randn(1, 3, 64, 64)
    attach_runtime(encoder, choose_runtime(encoder))
    expected = run(encoder, images)
    twin = copy.deepcopy(encoder)
    assert all(torch.equal(one, other) for one, other in zip(run(twin, images), expected, strict=True))
    assert twin.state_dict().keys() == make_vit().state_dict().keys()
    with pytest.raises((TypeError, pickle.PicklingError, AttributeError)):
        pickle.dumps(encoder)
