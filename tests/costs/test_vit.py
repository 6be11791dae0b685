"""Costs of ViTs and ConvNeXts: closed forms, masks, and severed attention."""

import pytest
import torch

from ovstrans.clip.layers import scope_layers, weight_name
from ovstrans.clip.load import create_image_encoder
from ovstrans.clip.severance import encode_patches, sever
from ovstrans.costs.counter import count_macs
from ovstrans.costs.flops import count_flops
from ovstrans.costs.params import count_params, uncalled_by_encoder
from ovstrans.costs.target import load_target
from ovstrans.costs.training_step import count_step
from ovstrans.masks.mask import Mask

D, DEPTH = 768, 12
IN_PROJ = "transformer.resblocks.3.attn.in_proj_weight"


@pytest.fixture(scope="module")
def base():
    return load_target("ViT-B-16")


def _mask(encoder, model):
    generator = torch.Generator().manual_seed(0)
    shapes = {weight_name(name): weight.shape for name, weight in scope_layers(encoder).items()}
    return Mask({key: torch.rand(shape, generator=generator) > 0.8 for key, shape in shapes.items()}, model=model)


@pytest.mark.parametrize(("side", "gmacs"), [(224, 17.563), (512, 107.027)])
def test_vit_b16_has_the_macs_of_its_formula(base, side, gmacs):
    patches = (side // 16) ** 2
    tokens = patches + 1
    flops = count_flops(base.module, (side, side), components=base.components)
    embedding, matrices, scores = patches * D * D, tokens * 12 * D * D * DEPTH, 2 * tokens**2 * D * DEPTH
    assert flops.dense == embedding + matrices + scores and round(flops.dense / 1e9, 3) == gmacs
    assert {name: part.dense for name, part in flops.components.items()} == {
        "embedding": embedding,
        "attention": tokens * 4 * D * D * DEPTH + scores,
        "mlp": tokens * 8 * D * D * DEPTH,
    }
    layers = {layer.name: layer.dense for layer in flops.layers}
    assert layers[IN_PROJ] == tokens * 3 * D * D
    assert layers["transformer.resblocks.3.attn.out_proj"] == tokens * D * D
    assert layers["transformer.resblocks.3.attn"] == 2 * tokens**2 * D


def test_a_mask_leaves_the_products_of_tokens(base):
    """Every matrix costs the weights kept, those without a module too; scores and embedding stay dense."""
    mask = _mask(base.module.backbone, "ViT-B-16")
    flops = count_flops(base.module, (224, 224), components=base.components, mask=mask)
    tokens, patches = 197, 196
    assert flops.effective == patches * D * D + tokens * mask.kept + 2 * tokens**2 * D * DEPTH
    params = count_params(base.module, base.components, mask=mask, frozen=[IN_PROJ])
    assert params.total == 85_797_888
    assert params.total - params.nonzero == mask.total - mask.kept
    assert params.nonzero - params.trainable == mask.counts[IN_PROJ][0] + 3 * D


def test_a_training_step_counts_fused_attention_as_its_layer(base):
    tokens, patches = 197, 196
    steps = count_step(base.module, (224, 224), components=base.components)
    assert steps.executed.weight_gradient == patches * D * D + tokens * 12 * D * D * DEPTH
    assert steps.executed.input_gradient == tokens * 12 * D * D * DEPTH + 4 * tokens**2 * D * DEPTH
    frozen = count_step(base.module, (224, 224), components=base.components, frozen=[IN_PROJ])
    assert steps.executed.weight_gradient - frozen.executed.weight_gradient == tokens * 3 * D * D
    assert steps.executed.input_gradient == frozen.executed.input_gradient
    assert steps.published.weight_gradient - frozen.published.weight_gradient == tokens * 3 * D * D
    mask = _mask(base.module.backbone, "ViT-B-16")
    sparse = count_step(base.module, (224, 224), components=base.components, mask=mask).sparse
    assert sparse.weight_gradient == patches * D * D + tokens * mask.kept


def test_severed_attention_is_counted_without_its_dead_parts():
    """No scores, and of the fused weight the values alone, under a mask those of the values that are kept."""
    with torch.device("meta"):
        encoder = create_image_encoder("ViT-B-16")
    sever(encoder, [-1])
    tokens, dead, last = 197, 2 * D * D, "transformer.resblocks.11.attn"

    def forward(images):
        return encode_patches(encoder, images)

    counted = count_macs(encoder, (1, 3, 224, 224), forward, uncalled=uncalled_by_encoder(encoder))
    whole = count_flops(encoder, (224, 224)).dense - D * 512
    assert whole - (counted.total - 196 * D * 512) == tokens * dead + 2 * tokens**2 * D
    assert counted.products[f"{last}.in_proj_weight"] == tokens * D * D
    assert counted.products[f"{last}.out_proj"] == tokens * D * D and not counted.products.get(last)


def test_convnext_counts_its_parts_by_their_formulas():
    target = load_target("convnext_base")
    flops = count_flops(target.module, (224, 224), components=target.components)
    depths, widths, sides = (3, 3, 27, 3), (128, 256, 512, 1024), (56, 28, 14, 7)
    stages = list(zip(depths, widths, sides, strict=True))
    assert {name: part.dense for name, part in flops.components.items()} == {
        "stem": 56**2 * 48 * 128,
        "depthwise": sum(depth * side**2 * 49 * width for depth, width, side in stages),
        "pointwise": sum(depth * side**2 * 8 * width**2 for depth, width, side in stages),
        "downsampling": sum(side**2 * 4 * width * width // 2 for _, width, side in stages[1:]),
    }
    mask = _mask(target.module.backbone, "convnext_base")
    masked = count_flops(target.module, (224, 224), components=target.components, mask=mask)
    assert masked.components["depthwise"].effective == masked.components["depthwise"].dense
    assert masked.components["pointwise"].effective < 0.3 * masked.components["pointwise"].dense


def test_timms_fused_attention_is_counted_as_its_layer():
    target = load_target("ViT-B-16-SigLIP")
    layers = {layer.name: layer.dense for layer in count_flops(target.module, (224, 224)).layers}
    assert layers["trunk.blocks.0.attn.qkv"] == 196 * 3 * D * D
    assert layers["trunk.blocks.0.attn"] == 2 * 196**2 * D
    eva = load_target("EVA01-g-14")
    mask = _mask(eva.module.backbone, "EVA01-g-14")
    flops = count_flops(eva.module, (224, 224), mask=mask)
    counts = {layer.name: (layer.dense, layer.effective) for layer in flops.layers}
    assert counts["trunk.blocks.0.attn.qkv"] == (
        257 * 3 * 1408**2,
        257 * mask.counts["trunk.blocks.0.attn.qkv.weight"][0],
    )
