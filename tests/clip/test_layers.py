"""Names of layers and scopes."""

import pytest
import torch
from torch import nn

from ovstrans.clip.backbone import find_image_encoder
from ovstrans.clip.layers import backbone_layers, backbone_shapes, norm_name, scope_layers, stage_name, weight_matrices
from ovstrans.clip.load import create_image_encoder, model_shapes
from ovstrans.errors import InputError
from tests.clip.encoders import small_convnext


@pytest.fixture(scope="module")
def rn50():
    with torch.device("meta"):
        return create_image_encoder("RN50")


def test_rn50_has_the_papers_counts(rn50):
    """OpenTrans: 55 convolutions with 23,474,016 weights; 52 of them in the body with 23,445,504."""
    convs, body, backbone = backbone_layers(rn50), scope_layers(rn50, "body"), scope_layers(rn50, "backbone")
    assert len(convs) == 55
    assert sum(conv.numel() for conv in convs.values()) == 23_474_016
    assert len(body) == 52
    assert sum(conv.numel() for conv in body.values()) == 23_445_504
    assert len(backbone) == 54
    assert sum(conv.numel() for conv in backbone.values()) == 23_473_152
    assert list(convs)[:4] == ["conv1", "conv2", "conv3", "layer1.0.conv1"]
    assert "layer1.0.downsample.0" in body


def test_patterns(rn50):
    assert set(scope_layers(rn50, "layer4.*.conv2, conv3")) == {
        "conv3",
        "layer4.0.conv2",
        "layer4.1.conv2",
        "layer4.2.conv2",
    }
    with pytest.raises(InputError, match="'layer9.*' matches no layer"):
        scope_layers(rn50, "layer4.*,layer9.*")


def test_matrices_include_the_attention_pool(rn50):
    matrices = weight_matrices(rn50)
    assert len(matrices) == 59
    assert list(matrices)[-4:] == ["attnpool.k_proj", "attnpool.q_proj", "attnpool.v_proj", "attnpool.c_proj"]


def test_fused_attention_is_split():
    block = nn.Module()
    block.attn = nn.MultiheadAttention(8, 2)
    matrices = weight_matrices(block)
    assert set(matrices) == {"attn.q", "attn.k", "attn.v", "attn.out_proj"}
    assert torch.equal(matrices["attn.k"], block.attn.in_proj_weight[8:16])


def test_encoder_is_found_inside_wrappers(rn50):
    clip, framework, wrapped = nn.Module(), nn.Module(), nn.Module()
    clip.visual, framework.backbone = rn50, rn50
    wrapped.module = framework
    assert (
        find_image_encoder(rn50)
        is find_image_encoder(clip)
        is find_image_encoder(framework)
        is find_image_encoder(wrapped)
        is rn50
    )


@pytest.mark.parametrize(
    ("layer", "stage"),
    [
        ("conv1", "stem"),
        ("layer1.0.downsample.0", "layer1"),
        ("layer4.2.conv3", "layer4"),
        ("attnpool.q_proj", "attnpool"),
        ("trunk.stem.0", "trunk.stem"),
        ("trunk.stages.2.downsample.1", "trunk.stages.2"),
        ("trunk.stages.3.blocks.1.mlp.fc1", "trunk.stages.3"),
        ("trunk.head.proj", "trunk.head"),
    ],
)
def test_stages(layer, stage):
    assert stage_name(layer) == stage


def test_both_kinds_of_backbone_have_four_stages_and_a_stem(rn50):
    for encoder in (rn50, small_convnext()):
        assert len(dict.fromkeys(map(stage_name, backbone_layers(encoder)))) == 5
        assert len(dict.fromkeys(map(stage_name, scope_layers(encoder)))) == 4


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        ("conv1", "bn1"),
        ("conv3", "bn3"),
        ("layer1.0.conv2", "layer1.0.bn2"),
        ("layer3.0.downsample.0", "layer3.0.downsample.1"),
    ],
)
def test_norm_after_a_convolution(rn50, layer, norm):
    assert norm_name(layer) == norm
    assert isinstance(rn50.get_submodule(norm), nn.BatchNorm2d)


def test_encoder_is_found_inside_a_compiled_module(rn50):
    clip = nn.Module()
    clip.visual = rn50
    assert find_image_encoder(torch.compile(clip)) is find_image_encoder(torch.compile(rn50)) is rn50


def test_shapes_of_a_model_leave_the_pool_out(rn50):
    shapes = model_shapes("RN50")
    assert shapes == backbone_shapes(dict(rn50.named_parameters())) and model_shapes("none") is None
    assert shapes["layer1.0.conv1.weight"] == (64, 64, 1, 1) and len(shapes) == 55
