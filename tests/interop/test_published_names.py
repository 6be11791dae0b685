"""FC-CLIP's names for our tensors, against the names its released code gives them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ovstrans.clip.load import random_clip
from ovstrans.clip.weights import VISUAL
from ovstrans.errors import MismatchError
from ovstrans.frameworks.registry import build_on_meta
from ovstrans.interop.published_names import from_fcclip, to_fcclip

SMALL: dict[str, Any] = {
    "queries": 3,
    "width": 32,
    "heads": 4,
    "encoder_layers": 2,
    "encoder_ffn": 8,
    "decoder_layers": 11,
    "decoder_ffn": 8,
}

# Of the pixel decoder and of the predictor, as the state dict of the released model lists them.
THEIRS = [
    "pixel_decoder.input_proj.0.0.weight",
    "pixel_decoder.input_proj.2.1.bias",
    "pixel_decoder.transformer.level_embed",
    "pixel_decoder.transformer.encoder.layers.1.self_attn.sampling_offsets.bias",
    "pixel_decoder.transformer.encoder.layers.1.self_attn.attention_weights.weight",
    "pixel_decoder.transformer.encoder.layers.0.self_attn.value_proj.weight",
    "pixel_decoder.transformer.encoder.layers.0.self_attn.output_proj.bias",
    "pixel_decoder.transformer.encoder.layers.0.norm1.weight",
    "pixel_decoder.transformer.encoder.layers.0.linear1.weight",
    "pixel_decoder.transformer.encoder.layers.0.linear2.bias",
    "pixel_decoder.transformer.encoder.layers.0.norm2.bias",
    "pixel_decoder.mask_features.weight",
    "pixel_decoder.mask_features.bias",
    "pixel_decoder.adapter_1.weight",
    "pixel_decoder.adapter_1.norm.bias",
    "pixel_decoder.layer_1.weight",
    "pixel_decoder.layer_1.norm.weight",
    "predictor.transformer_self_attention_layers.10.self_attn.in_proj_weight",
    "predictor.transformer_self_attention_layers.10.self_attn.in_proj_bias",
    "predictor.transformer_self_attention_layers.0.self_attn.out_proj.weight",
    "predictor.transformer_self_attention_layers.0.norm.weight",
    "predictor.transformer_cross_attention_layers.10.multihead_attn.in_proj_weight",
    "predictor.transformer_cross_attention_layers.0.multihead_attn.out_proj.bias",
    "predictor.transformer_cross_attention_layers.0.norm.bias",
    "predictor.transformer_ffn_layers.10.linear1.weight",
    "predictor.transformer_ffn_layers.0.linear2.bias",
    "predictor.transformer_ffn_layers.0.norm.weight",
    "predictor.decoder_norm.weight",
    "predictor.query_feat.weight",
    "predictor.query_embed.weight",
    "predictor.level_embed.weight",
    "predictor.mask_embed.layers.0.weight",
    "predictor.mask_embed.layers.2.bias",
    "predictor._mask_pooling_proj.0.weight",
    "predictor._mask_pooling_proj.1.bias",
    "predictor.class_embed.layers.0.weight",
    "predictor.class_embed.layers.2.bias",
    "predictor.logit_scale",
]


@pytest.fixture(scope="module")
def ours() -> dict[str, Tensor]:
    """The state of an fcclip on RN-mini, the text encoder beside it, every number a different one."""
    torch.manual_seed(0)
    state = build_on_meta("fcclip", "RN-mini", options=SMALL, device="cpu").state_dict()
    text = {f"text_tower.{k}": v for k, v in random_clip().model.state_dict().items() if not k.startswith(VISUAL)}
    every = state | text
    return {key: torch.randn(value.shape) if value.is_floating_point() else value for key, value in every.items()}


def test_there_and_back_to_the_last_bit(ours: dict[str, Tensor]) -> None:
    theirs = to_fcclip(ours)
    back = from_fcclip(theirs)
    assert set(back) == set(ours)
    assert all(torch.equal(back[key], value) and back[key].dtype == value.dtype for key, value in ours.items())
    again = to_fcclip(back)
    assert set(again) == set(theirs) and all(torch.equal(again[key], value) for key, value in theirs.items())
    pieces = [value.data_ptr() for key, value in back.items() if ".self_attn." in key and value.numel()]
    assert len(pieces) == len(set(pieces))  # no two share memory


def test_the_names_are_theirs(ours: dict[str, Tensor]) -> None:
    theirs = to_fcclip(ours)
    assert {f"sem_seg_head.{name}" for name in THEIRS} <= set(theirs)
    assert {key.split(".")[0] for key in theirs} == {"backbone", "sem_seg_head", "void_embedding"}
    encoder = {key for key in theirs if key.startswith("backbone.clip_model.visual.")}
    assert {"conv1.weight", "layer4.1.bn3.running_var", "attnpool.positional_embedding", "attnpool.c_proj.bias"} <= {
        key.removeprefix("backbone.clip_model.visual.") for key in encoder
    }
    assert {"token_embedding.weight", "text_projection", "logit_scale"} <= {
        key.removeprefix("backbone.clip_model.") for key in theirs
    }


def test_a_convnexts_head_finds_its_place() -> None:
    state = build_on_meta("fcclip", "convnext_base_w").state_dict()
    theirs = to_fcclip(state)
    visual = "backbone.clip_model.visual."
    assert theirs[f"{visual}trunk.head.norm.weight"] is state["clip_head.trunk.head.norm.weight"]
    assert (
        theirs[f"{visual}trunk.stages.0.blocks.0.conv_dw.weight"]
        is state["backbone.trunk.stages.0.blocks.0.conv_dw.weight"]
    )
    assert {key for key in from_fcclip(theirs) if key.startswith("clip_head.")} == {
        key for key in state if key.startswith("clip_head.")
    }


def test_projections_are_fused_in_order(ours: dict[str, Tensor]) -> None:
    fused = to_fcclip(ours)["sem_seg_head.predictor.transformer_self_attention_layers.3.self_attn.in_proj_weight"]
    layer = "head.transformer.decoder.layers.3.self_attn."
    assert torch.equal(fused, torch.cat([ours[f"{layer}{part}_proj.weight"] for part in "qkv"]))
    assert to_fcclip(ours)["void_embedding.weight"].shape == (1, *ours["class_head.scores.non_object"].shape)


def test_a_setting_of_their_loss_is_left_out(ours: dict[str, Tensor]) -> None:
    theirs = {**to_fcclip(ours), "criterion.empty_weight": torch.ones(134)}
    assert set(from_fcclip(theirs)) == set(ours)


def test_strangers_are_named(ours: dict[str, Tensor]) -> None:
    with pytest.raises(MismatchError, match=r"aspp\.convs\.0: not a tensor of our fcclip"):
        to_fcclip({**ours, "aspp.convs.0": torch.zeros(1)})
    with pytest.raises(MismatchError, match=r"sem_seg_head\.predictor\.query_feature: not a tensor of FC-CLIP"):
        from_fcclip({"sem_seg_head.predictor.query_feature": torch.zeros(1)})
    lacking = {key: value for key, value in ours.items() if not key.endswith("layers.2.self_attn.k_proj.bias")}
    with pytest.raises(MismatchError, match=r"layers\.2\.self_attn\.k_proj\.bias: missing"):
        to_fcclip(lacking)
