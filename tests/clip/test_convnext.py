"""ConvNeXt encoders: loading, counts, stages, names of layers."""

from __future__ import annotations

import functools
import itertools

import open_clip
import pytest
import timm.models._builder
import torch
from safetensors.torch import save_file

from ovstrans.clip import load
from ovstrans.clip.backbone import (
    drop_head,
    encode_dense,
    encode_stages,
    encoder_kind,
    find_image_encoder,
    head_parts,
    set_output_stride,
    stage_channels,
)
from ovstrans.clip.layers import backbone_layers, scope_layers, weight_matrices
from ovstrans.clip.load import create_image_encoder, load_clip, model_info, random_clip
from ovstrans.clip.models import model_names
from ovstrans.errors import InputError, MismatchError
from tests.clip.encoders import small_convnext, small_resnet

LARGE_DEPTHS, LARGE_WIDTHS = (3, 3, 27, 3), (192, 384, 768, 1536)

MINI = {
    "embed_dim": 24,
    "vision_cfg": {
        "timm_model_name": "convnext_atto",
        "timm_model_pretrained": True,  # no model of open_clip says so; if one did, it must not matter
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture()
def mini(monkeypatch):
    """Name of a small model that open_clip then knows; asking timm for weights fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("timm was asked for pretrained weights")

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "convnext_mini", MINI)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", refuse)
    return "convnext_mini"


@functools.cache
def on_meta(name):
    """An encoder of full size, without its memory; tests share it and leave it as it is."""
    with torch.device("meta"):
        return create_image_encoder(name).eval()


@pytest.fixture()
def large():
    return on_meta("convnext_large_d_320")


def test_names_are_those_that_can_be_built(mini):
    names = model_names()
    assert names[0] == "RN-mini"
    assert {"RN50", "convnext_base", "convnext_base_w", "convnext_large_d_320", "convnext_xxlarge", mini} <= set(names)
    assert not {"coca_ViT-B-32", "ViTamin-B", "MobileCLIP-S1"} & set(names)
    with pytest.raises(
        InputError,
        match="cannot be pruned, its image encoder is fastvit_mci1, a hybrid .*; `ovstrans models list`",
    ):
        create_image_encoder("MobileCLIP-S1")


def test_info_says_what_the_model_is(mini):
    dim, size, mean, std = model_info(mini)
    clip = random_clip(mini)
    assert (dim, size, mean, std) == (clip.embed_dim, clip.image_size, clip.mean, clip.std)
    assert clip.embed_dim == clip.visual.output_dim == create_image_encoder(mini).output_dim == 24
    with torch.no_grad():
        assert clip.model.encode_image(torch.rand(1, 3, 64, 64)).shape == (1, 24)
        assert clip.model.encode_text(clip.tokenizer(["a star"])).shape == (1, 24)


def test_encoder_on_meta_matches_the_model(mini):
    with torch.device("meta"):
        encoder = create_image_encoder(mini)
    assert all(value.is_meta for value in encoder.state_dict().values())
    clip = random_clip(mini, seed=1)
    assert {key: value.shape for key, value in encoder.state_dict().items()} == {
        key: value.shape for key, value in clip.visual.state_dict().items()
    }
    assert random_clip(mini, seed=1).weights_sha256 == clip.weights_sha256 != random_clip(mini, 2).weights_sha256


def test_weights_from_files_and_tags(mini, tmp_path, monkeypatch):
    clip = random_clip(mini, seed=3)
    whole, alone = tmp_path / "clip.safetensors", tmp_path / "encoder.pt"
    save_file({key: value.contiguous() for key, value in clip.model.state_dict().items()}, whole)
    torch.save(clip.visual.state_dict(), alone)
    loaded = load_clip(mini, str(whole))
    assert loaded.has_text and not loaded.model.training
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded.model.encode_image(images), clip.model.encode_image(images))
    encoder = load_clip(mini, str(alone))
    assert encoder.weights_sha256 == loaded.weights_sha256 == clip.weights_sha256
    assert not encoder.has_text

    tag = {"hf_hub": "nobody/nothing", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    monkeypatch.setattr(load.open_clip, "list_pretrained_tags_by_model", lambda name: ["a_tag"])
    monkeypatch.setattr(load.open_clip, "get_pretrained_cfg", lambda name, tag_name: tag)
    monkeypatch.setattr(load.open_clip, "download_pretrained", lambda settings: str(whole))
    tagged = load_clip(mini)
    assert (tagged.pretrained, tagged.mean, tagged.std) == ("a_tag", tag["mean"], tag["std"])
    assert tagged.weights_sha256 == clip.weights_sha256


def test_weights_of_the_other_kind_are_refused(mini, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(random_clip().visual.state_dict(), path)
    with pytest.raises(MismatchError, match=r"no image encoder of a CLIP ConvNeXt.*visual\.trunk\.stem\.0\.weight"):
        load_clip(mini, str(path))
    save_file(random_clip(mini).visual.state_dict(), path)
    with pytest.raises(MismatchError, match=r"no image encoder of a CLIP ResNet.*visual\.conv1\.weight nor conv1\."):
        load_clip("RN-mini", str(path))


def test_large_has_fcclips_counts(large):
    """FC-CLIP's frozen CLIP without its text encoder is this and one logit scale: 199,770,817."""
    assert sum(parameter.numel() for parameter in large.parameters()) == 199_770_816
    assert sum(parameter.numel() for parameter in on_meta("RN50").parameters()) == 38_316_896


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("RN50", (256, 512, 1024, 2048)),
        ("RN101", (256, 512, 1024, 2048)),
        ("RN50x4", (320, 640, 1280, 2560)),
        ("RN50x16", (384, 768, 1536, 3072)),
        ("convnext_large_d_320", LARGE_WIDTHS),
    ],
)
def test_channels_and_strides(name, widths):
    """The taps of FC-CLIP, at 512x512, without running the encoder and by running it."""
    encoder = on_meta(name)
    features = encode_stages(encoder, torch.empty(1, 3, 512, 512, device="meta"))
    assert tuple(stage_channels(encoder)) == ("res2", "res3", "res4", "res5")
    assert tuple(stage_channels(encoder).values()) == widths
    sizes = (128, 64, 32, 16)
    assert [tuple(features[stage].shape) for stage in stage_channels(encoder)] == [
        (1, width, size, size) for width, size in zip(widths, sizes, strict=True)
    ]
    assert features["stem"].shape[-2:] == (128, 128)


def test_stages_are_the_encoders_own():
    encoder, images = small_convnext(seed=1), torch.rand(2, 3, 64, 96)
    assert encoder_kind(encoder) == "convnext" and encoder_kind(small_resnet(seed=1)) == "resnet"
    with torch.no_grad():
        res5 = encode_stages(encoder, images)["res5"]
        assert torch.equal(res5, encoder.trunk.forward_features(images))
        assert torch.equal(encoder.head(encoder.trunk.forward_head(res5)), encoder(images))


def test_stages_and_channels_outlive_the_heads(mini):
    """Frameworks take off what they do not use."""
    resnet, convnext = small_resnet(seed=1), create_image_encoder(mini)
    resnet.attnpool = convnext.head = convnext.trunk.head = None
    for encoder in (resnet, convnext):
        found = {name: feature.shape[1] for name, feature in encode_stages(encoder, torch.rand(1, 3, 64, 64)).items()}
        assert {name: found[name] for name in stage_channels(encoder)} == stage_channels(encoder)


def test_head_is_what_turns_features_into_embeddings():
    convnext, resnet = small_convnext(seed=1), small_resnet(seed=1)
    assert head_parts(convnext) == [convnext.trunk.head, convnext.head] and head_parts(resnet) == [resnet.attnpool]
    backbone = sum(p.numel() for p in [*convnext.trunk.stem.parameters(), *convnext.trunk.stages.parameters()])
    for encoder in (convnext, resnet):
        drop_head(encoder)
    assert resnet.attnpool is None and convnext.trunk.norm_pre is None
    assert sum(parameter.numel() for parameter in convnext.parameters()) == backbone


def test_encode_dense_is_the_head_at_every_position():
    encoder = small_convnext(seed=2)
    res5 = torch.rand(2, 64, 3, 4)
    with torch.no_grad():
        dense = encode_dense(encoder, res5)
        assert dense.shape == (2, 32, 3, 4)
        for row, column in itertools.product(range(3), range(4)):
            spot = res5[:, :, row : row + 1, column : column + 1]
            alone = encoder.head(encoder.trunk.forward_head(spot))
            torch.testing.assert_close(dense[:, :, row, column], alone, rtol=1e-5, atol=1e-5)


def test_only_resnets_change_their_stride():
    encoder = small_convnext(seed=2)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    set_output_stride(encoder, 32)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    for stride in (16, 8):
        with pytest.raises(InputError, match=f"output stride {stride}: only CLIP ResNets offer it"):
            set_output_stride(encoder, stride)


def test_body_is_every_pointwise_and_downsampling_convolution_of_the_stages(large):
    """Two pointwise layers a block and 2x2 between stages; depthwise 7x7 and the 4x4 before them stay dense."""
    convs = backbone_layers(large)
    blocks = sum(depth * 8 * width**2 for depth, width in zip(LARGE_DEPTHS, LARGE_WIDTHS, strict=True))
    between = sum(4 * narrow * wide for narrow, wide in itertools.pairwise(LARGE_WIDTHS))
    body = scope_layers(large, "body")
    assert len(convs) == 1 + 3 * sum(LARGE_DEPTHS) + 3
    assert sum(layer.numel() for layer in body.values()) == blocks + between
    assert list(scope_layers(large, "backbone")) == list(convs)[1:]
    assert list(body) == [name for name in list(convs)[1:] if not name.endswith("conv_dw")]
    assert len(scope_layers(large, "*.conv_dw")) == sum(LARGE_DEPTHS)
    assert list(convs)[:4] == [
        "trunk.stem.0",
        "trunk.stages.0.blocks.0.conv_dw",
        "trunk.stages.0.blocks.0.mlp.fc1",
        "trunk.stages.0.blocks.0.mlp.fc2",
    ]


def test_either_spelling_of_pointwise_convolutions(mini):
    """timm writes them as linear layers or, in its small models, as 1x1 convolutions."""
    for encoder, dimensions in ((create_image_encoder(mini), 4), (small_convnext(), 2)):
        names = [name for name in scope_layers(encoder) if name.endswith(("fc1", "fc2"))]
        assert len(names) == 2 * sum(len(stage.blocks) for stage in encoder.trunk.stages)
        assert {layer.dim() for name, layer in scope_layers(encoder).items() if name in names} == {dimensions}


def test_names_are_open_clips_keys(mini):
    keys = {key.removeprefix("visual.") for key in open_clip.create_model(mini).state_dict()}
    assert {
        f"{name}.weight"
        for name in [*backbone_layers(create_image_encoder(mini)), *weight_matrices(create_image_encoder(mini))]
    } <= keys


def test_patterns(large):
    found = scope_layers(large, "trunk.stages.3.blocks.*.mlp.fc1, trunk.stem.0")
    assert list(found) == ["trunk.stem.0", *(f"trunk.stages.3.blocks.{number}.mlp.fc1" for number in range(3))]
    with pytest.raises(InputError, match=r"'layer4\.\*' matches no layer"):
        scope_layers(large, "layer4.*")


def test_matrices_are_the_layers_and_the_head(large):
    matrices, convs = weight_matrices(large), backbone_layers(large)
    assert list(matrices) == [*convs, "head.mlp.fc1", "head.mlp.fc2"]
    assert all(matrices[name].numel() == layer.numel() for name, layer in convs.items())
    assert matrices["trunk.stages.0.blocks.0.conv_dw"].shape == (192, 49)
    assert matrices["trunk.stages.1.downsample.1"].shape == (384, 192, 2, 2)
    assert matrices["trunk.stages.3.blocks.2.mlp.fc1"].shape == (6144, 1536)


def test_depthwise_rows_are_the_filters():
    encoder = small_convnext(seed=4)
    layer = encoder.trunk.stages[0].blocks[0].conv_dw
    matrix = weight_matrices(encoder)["trunk.stages.0.blocks.0.conv_dw"]
    assert torch.equal(matrix[5], layer.weight[5, 0].flatten())


def test_encoder_is_found_inside_wrappers(mini):
    clip = random_clip(mini)
    wrapped = torch.nn.Module()
    wrapped.module = clip.model
    assert (
        find_image_encoder(clip.visual) is find_image_encoder(clip.model) is find_image_encoder(wrapped) is clip.visual
    )
