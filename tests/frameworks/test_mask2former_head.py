"""The shared mask head: its start, its shapes, and the pooling of features under masks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ovstrans.errors import InputError
from ovstrans.frameworks.mask2former_head import FEATURES, MaskHead, mask_pool

CHANNELS = (8, 12, 16, 24)
SMALL: dict[str, Any] = {
    "queries": 5,
    "width": 32,
    "heads": 4,
    "encoder_layers": 2,
    "encoder_ffn": 48,
    "decoder_layers": 3,
    "decoder_ffn": 40,
}
PUBLISHED: dict[str, Any] = {
    **SMALL,
    "width": 256,
    "heads": 8,
    "encoder_ffn": 1024,
    "decoder_ffn": 2048,
    "decoder_layers": 1,
    "encoder_layers": 1,
}


def pyramid(height: int, width: int, batch: int = 2) -> dict[str, Tensor]:
    """Random features of an image of that size."""
    strides = (4, 8, 16, 32)
    return {
        name: torch.randn(batch, channels, -(-height // stride), -(-width // stride))
        for name, channels, stride in zip(FEATURES, CHANNELS, strides, strict=True)
    }


@pytest.fixture(scope="module")
def head() -> MaskHead:
    """One layer each, at the published widths."""
    torch.manual_seed(0)
    return MaskHead((256, 512, 1024, 2048), **PUBLISHED)


def xavier(rows: int, columns: int) -> float:
    """Standard deviation of xavier_uniform."""
    return math.sqrt(2 / (rows + columns))


def uniform_within(weight: Tensor, deviation: float) -> bool:
    """Of that deviation to 3 %, mean 0, and bounded as a uniform distribution is."""
    weight, bound = weight.detach(), deviation * math.sqrt(3)
    near = abs(float(weight.std()) / deviation - 1) < 0.03 and abs(float(weight.mean())) < 0.05 * deviation
    return near and 0.95 * bound < float(weight.abs().max()) <= bound * (1 + 1e-6)


def test_deformable_attention_is_initialised_to_rays(head: MaskHead) -> None:
    """Head k looks along angle 2 pi k / 8, point p of 4 at p steps, the same on all levels; no weight moves it."""
    attention = head.pixel_decoder.encoder.layers[0].self_attn
    bias = attention.sampling_offsets.bias.detach().view(8, 3, 4, 2)
    assert not attention.sampling_offsets.weight.any()
    assert float(bias.abs().max()) == 4.0
    assert torch.equal(bias[:, 0], bias[:, 1]) and torch.equal(bias[:, 0], bias[:, 2])
    torch.testing.assert_close(bias[1, 0], torch.tensor([[p, p] for p in (1.0, 2.0, 3.0, 4.0)]))
    torch.testing.assert_close(bias[6, 0, 2], torch.tensor([0.0, -3.0]), atol=1e-5, rtol=0)
    assert not attention.attention_weights.weight.any() and not attention.attention_weights.bias.any()
    for linear in (attention.value_proj, attention.output_proj):
        assert uniform_within(linear.weight, xavier(256, 256)) and not linear.bias.any()


def test_pixel_decoder_starts_as_published(head: MaskHead) -> None:
    decoder = head.pixel_decoder
    layer = decoder.encoder.layers[0]
    assert uniform_within(layer.fc1.weight, xavier(1024, 256)) and uniform_within(layer.fc2.weight, xavier(256, 1024))
    assert float(layer.fc1.weight.detach().std()) == pytest.approx(0.0395, rel=0.02)
    for projection, channels in zip(decoder.input_projections, (2048, 1024, 512), strict=True):
        assert uniform_within(projection[0].weight, xavier(256, channels)) and not projection[0].bias.any()
    # kaiming_uniform with a = 1: variance 1 / fan-in.
    lateral, output = decoder.lateral_convolutions[0][0], decoder.output_convolutions[0][0]
    assert lateral.bias is None and output.bias is None
    assert uniform_within(lateral.weight, 1 / 16) and uniform_within(output.weight, 1 / math.sqrt(256 * 9))
    assert uniform_within(decoder.mask_projection.weight, 1 / 16) and not decoder.mask_projection.bias.any()
    assert float(decoder.level_embed.detach().std()) == pytest.approx(1.0, rel=0.15)


def test_decoder_starts_as_published(head: MaskHead) -> None:
    """Attention as torch's own starts: the three projections as one matrix, and no biases."""
    layer = head.transformer.decoder.layers[0]
    fused = xavier(3 * 256, 256)
    for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
        assert uniform_within(linear.weight, fused) and not linear.bias.any()
    assert uniform_within(layer.cross_attn.in_proj_weight, fused) and not layer.cross_attn.in_proj_bias.any()
    for linear in (layer.self_attn.out_proj, layer.cross_attn.out_proj):
        assert uniform_within(linear.weight, xavier(256, 256)) and not linear.bias.any()
    assert uniform_within(layer.fc1.weight, xavier(2048, 256)) and uniform_within(layer.fc2.weight, xavier(256, 2048))
    mask_mlp = [m for m in head.transformer.decoder.mask_predictor.modules() if isinstance(m, nn.Linear)]
    assert len(mask_mlp) == 3 and all(uniform_within(each.weight, 1 / math.sqrt(3 * 256)) for each in mask_mlp)


def test_every_parameter_is_initialised(head: MaskHead) -> None:
    """Twice the same seed gives the same parameters, all of them finite."""
    torch.manual_seed(0)
    again = dict(MaskHead((256, 512, 1024, 2048), **PUBLISHED).named_parameters())
    for name, parameter in head.named_parameters():
        assert torch.isfinite(parameter).all() and torch.equal(parameter, again[name]), name


@pytest.mark.parametrize("size", [(64, 96), (90, 60)])
def test_shapes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = MaskHead(CHANNELS, **SMALL)
    features = pyramid(*size)
    found = head(features)
    low = tuple(features["res2"].shape[-2:])
    assert len(found.queries) == len(found.masks) == 4
    assert all(each.shape == (2, 5, 32) for each in found.queries)
    assert all(each.shape == (2, 5, *low) for each in found.masks)
    assert found.mask_features.shape == (2, 32, *low)


def test_pixel_decoder_is_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    head, features = MaskHead(CHANNELS, **SMALL), pyramid(64, 64)
    plain = head(features).mask_features
    with torch.autocast("cpu", torch.bfloat16):
        found = head({name: value.bfloat16().float() for name, value in features.items()})
        same = head(features)
    assert found.mask_features.dtype == torch.float32
    assert torch.equal(same.mask_features, plain)
    assert found.masks[-1].dtype == torch.bfloat16


def test_training_does_not_inspect_values() -> None:
    """Meta tensors have none: the head runs on them in train mode too, and in eval mode to the same shapes."""
    with torch.device("meta"):
        head, features = MaskHead(CHANNELS, **SMALL), pyramid(64, 64)
        for mode in (True, False):
            assert head.train(mode)(features).masks[-1].shape == (2, 5, 16, 16)
            assert head.transformer.training == mode


def test_sizes_that_do_not_fit_are_refused() -> None:
    for wrong, message in (
        ({"width": 48}, "multiple of 32"),
        ({"heads": 5}, "of the heads"),
        ({"queries": 0}, "queries = 0; at least 1"),
        ({"decoder_layers": 0}, "decoder_layers = 0"),
        ({"encoder_ffn": 0}, "encoder_ffn = 0"),
        ({"decoder_ffn": -1}, "decoder_ffn = -1"),
    ):
        with pytest.raises(InputError, match=message):
            MaskHead(CHANNELS, **{**SMALL, **wrong})


def test_mask_pool_is_a_mean_inside() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[10.0, 0.0], [0.0, 2.0]]]])
    masks = torch.tensor([[[[1.0, -1.0], [0.5, 0.0]], [[-1.0, -1.0], [-1.0, -2.0]], [[9.0, 9.0], [9.0, 9.0]]]])
    expected = torch.tensor([[[2.0, 5.0], [0.0, 0.0], [2.5, 3.0]]])  # a logit of 0 is outside
    torch.testing.assert_close(mask_pool(features, masks), expected)


def test_mask_pool_passes_gradients_to_features_only() -> None:
    features, masks = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(1, 4, 3, 3, requires_grad=True)
    mask_pool(features, masks).sum().backward()
    assert masks.grad is None and features.grad is not None and torch.isfinite(features.grad).all()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_mask_pool_survives_half_precision(kind: torch.dtype) -> None:
    """The sum over a large map would overflow float16 and lose whole numbers in bfloat16."""
    features = torch.full((1, 1, 300, 300), 3.0, dtype=kind)
    with torch.autocast("cpu", kind):
        pooled = mask_pool(features, torch.ones(1, 1, 300, 300, dtype=kind))
    assert float(pooled) == pytest.approx(3.0, rel=1e-6)
