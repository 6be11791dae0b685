"""FC-CLIP's names for the tensors of our `fcclip`, both ways.

Ours are the keys of a checkpoint: `backbone.*`, `head.*`, `class_head.*`, `clip_head.*`, and
`text_tower.*` where it was kept. Theirs are the state dict of FC-CLIP's released code (the names of
Mask2Former's, with `backbone.clip_model.*` and `void_embedding.weight`), as detectron2 saves and loads it.

Two things differ beyond names: their self-attention holds queries, keys and values in one matrix, and
their void embedding is a table of one row. Values are carried over to the last bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ovstrans.errors import MismatchError

_DECODER = "head.pixel_decoder."
_THEIR_DECODER = "sem_seg_head.pixel_decoder."
_PREDICTOR = "sem_seg_head.predictor."
_LAYER = "head.transformer.decoder.layers.#."
_VISUAL = "backbone.clip_model.visual."

_NAMES = (
    # `#` is a number; a name that ends in a dot stands for all that begin with it; the first that fits counts.
    (_DECODER + "input_projections.", _THEIR_DECODER + "input_proj."),
    (_DECODER + "encoder.layers.#.self_attn.", _THEIR_DECODER + "transformer.encoder.layers.#.self_attn."),
    (_DECODER + "encoder.layers.#.self_attn_layer_norm.", _THEIR_DECODER + "transformer.encoder.layers.#.norm1."),
    (_DECODER + "encoder.layers.#.fc1.", _THEIR_DECODER + "transformer.encoder.layers.#.linear1."),
    (_DECODER + "encoder.layers.#.fc2.", _THEIR_DECODER + "transformer.encoder.layers.#.linear2."),
    (_DECODER + "encoder.layers.#.final_layer_norm.", _THEIR_DECODER + "transformer.encoder.layers.#.norm2."),
    (_DECODER + "level_embed", _THEIR_DECODER + "transformer.level_embed"),
    (_DECODER + "adapter_1.1.", _THEIR_DECODER + "adapter_1.norm."),
    (_DECODER + "adapter_1.0.", _THEIR_DECODER + "adapter_1."),
    (_DECODER + "layer_1.1.", _THEIR_DECODER + "layer_1.norm."),
    (_DECODER + "layer_1.0.", _THEIR_DECODER + "layer_1."),
    (_DECODER + "mask_projection.", _THEIR_DECODER + "mask_features."),
    (_LAYER + "self_attn.out_proj.", _PREDICTOR + "transformer_self_attention_layers.#.self_attn.out_proj."),
    (_LAYER + "self_attn_layer_norm.", _PREDICTOR + "transformer_self_attention_layers.#.norm."),
    (_LAYER + "cross_attn.", _PREDICTOR + "transformer_cross_attention_layers.#.multihead_attn."),
    (_LAYER + "cross_attn_layer_norm.", _PREDICTOR + "transformer_cross_attention_layers.#.norm."),
    (_LAYER + "fc1.", _PREDICTOR + "transformer_ffn_layers.#.linear1."),
    (_LAYER + "fc2.", _PREDICTOR + "transformer_ffn_layers.#.linear2."),
    (_LAYER + "final_layer_norm.", _PREDICTOR + "transformer_ffn_layers.#.norm."),
    ("head.transformer.decoder.layernorm.", _PREDICTOR + "decoder_norm."),
    ("head.transformer.decoder.mask_predictor.mask_embedder.#.0.", _PREDICTOR + "mask_embed.layers.#."),
    ("head.transformer.queries_features.", _PREDICTOR + "query_feat."),
    ("head.transformer.queries_embedder.", _PREDICTOR + "query_embed."),
    ("head.transformer.level_embed.", _PREDICTOR + "level_embed."),
    ("class_head.pool_projection.", _PREDICTOR + "_mask_pooling_proj."),
    ("class_head.embed.0.", _PREDICTOR + "class_embed.layers.0."),
    ("class_head.embed.2.", _PREDICTOR + "class_embed.layers.1."),
    ("class_head.embed.4.", _PREDICTOR + "class_embed.layers.2."),
    ("class_head.scores.logit_scale", _PREDICTOR + "logit_scale"),
    ("clip_head.attnpool.", _VISUAL + "attnpool."),
    ("clip_head.trunk.norm_pre.", _VISUAL + "trunk.norm_pre."),
    ("clip_head.trunk.head.", _VISUAL + "trunk.head."),
    ("clip_head.head.", _VISUAL + "head."),
    ("backbone.", _VISUAL),
    ("text_tower.", "backbone.clip_model."),
)

_SPLIT = re.compile(r"head\.transformer\.decoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(weight|bias)")
_FUSED = re.compile(
    r"sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.in_proj_(weight|bias)"
)
_VOID, _THEIR_VOID = "class_head.scores.non_object", "void_embedding.weight"
_LEFT_OUT = ("criterion.empty_weight",)
"""Of theirs: the weights of classes in the loss, a setting."""


def to_fcclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under FC-CLIP's names; MismatchError where one is not a tensor of ours."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == _VOID:
            result[_THEIR_VOID] = value[None]
        elif found := _SPLIT.fullmatch(key):
            fused = f"{_PREDICTOR}transformer_self_attention_layers.{found[1]}.self_attn.in_proj_{found[2]}"
            if fused not in result:
                result[fused] = torch.cat([_entry(state, part) for part in _parts(found[1], found[2])])
        else:
            result[_renamed(key, 0, "not a tensor of our fcclip")] = value
    return result


def from_fcclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """FC-CLIP's tensors under our names, what is a setting of its loss left out.

    Raises MismatchError where one is not a tensor of FC-CLIP.
    """
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == _THEIR_VOID:
            result[_VOID] = value[0].clone()
        elif found := _FUSED.fullmatch(key):
            for part, rows in zip(_parts(found[1], found[2]), value.chunk(3), strict=True):
                result[part] = rows.clone()
        elif key not in _LEFT_OUT:
            result[_renamed(key, 1, "not a tensor of FC-CLIP")] = value
    return result


def _renamed(key: str, side: int, problem: str) -> str:
    """The other side's name of a key; side: 0 where the key is ours, 1 where it is theirs."""
    for pair in _NAMES:
        pattern = re.escape(pair[side]).replace(r"\#", r"(\d+)") + ("" if pair[side].endswith(".") else "$")
        if found := re.match(pattern, key):
            number = found[1] if found.groups() else ""
            return pair[1 - side].replace("#", number) + key[found.end() :]
    raise MismatchError(f"{key}: {problem}; is this the state of another framework?")


def _parts(layer: str, kind: str) -> list[str]:
    """Our three projections of a layer's self-attention, weights or biases."""
    return [f"head.transformer.decoder.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]


def _entry(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise MismatchError(f"{key}: missing beside the other projections of its self-attention")
    return state[key]
