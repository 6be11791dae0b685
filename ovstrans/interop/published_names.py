"""Names of published code for the tensors of our frameworks, both ways.

Ours are the keys of a checkpoint: `backbone.*`, the head's, and `text_tower.*` if the text encoder was kept. Theirs
are the state dicts of the released code, as detectron2 saves and loads them. Values are carried over to the last bit.

FC-CLIP's are the names of Mask2Former, with `backbone.clip_model.*` and `void_embedding.weight`. Two things differ
beyond names: self-attention holds queries, keys and values in one matrix, and the void embedding is a table of one
row. GKC's and OpenTrans' code shares FC-CLIP's names of the head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ovstrans.checkpoints.file import TEXT_ENCODER
from ovstrans.errors import InputError, MismatchError

Renamer = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Renames the tensors of a state dict; MismatchError for a name that it does not know."""

_Names = Sequence[tuple[str, str]]
"""Pairs (ours, theirs). `#` is a number; a name that ends in a dot stands for all that begin with it."""

_DECODER = "head.pixel_decoder."
_THEIR_DECODER = "sem_seg_head.pixel_decoder."
_PREDICTOR = "sem_seg_head.predictor."
_LAYER = "head.transformer.decoder.layers.#."
_VISUAL = "backbone.clip_model.visual."

_FCCLIP: _Names = (
    # The first that fits counts.
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
    (TEXT_ENCODER, "backbone.clip_model."),
)

_SPLIT = re.compile(r"head\.transformer\.decoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(weight|bias)")
_FUSED = re.compile(
    r"sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.in_proj_(weight|bias)"
)
_VOID, _THEIR_VOID = "class_head.scores.non_object", "void_embedding.weight"
_FCCLIP_IGNORED = ("criterion.empty_weight",)
"""Entries of theirs that are settings: the weights of classes in the loss."""

_HEAD, _THEIR_HEAD = "head.", "sem_seg_head."
_STUDENT, _THEIR_STUDENT, _THEIR_AUX_STUDENT = "training_only.students.", "kd_proj.", "aux_kd_porj_"
_THEIR_TEXT = "text_encoder."
_CLIP_PATH = "clip_path."
"""Prefix of CLIP's own pool, an option that theirs lacks."""

_GKC: _Names = (
    ("backbone.", "backbone."),
    ("classifier.query.", "sem_seg_head.predictor.class_embed."),
    ("classifier.project.", "embed_proj.1."),
    ("classifier.non_object", "non_object_embedding"),
    ("classifier.logit_scale", "logit_scale"),
    ("training_only.projections.#.", "aux_embed_porj_#.1."),
    (_STUDENT + "#.", _THEIR_AUX_STUDENT + "#."),
    ("training_only.text_scale", "text_kd_logit_scale"),
    (TEXT_ENCODER, _THEIR_TEXT),
)
_ROW = "classifier.non_object"
"""A vector in ours, a matrix of one row in theirs."""

_GKC_IGNORED = ("vision_clip.", "empty_weight", "criterion.empty_weight")
"""Entries of theirs that are not carried over: the teacher, which is CLIP as released, and the loss's settings."""


def published_frameworks() -> list[str]:
    """Return the frameworks whose published code has names for their weights."""
    return sorted(_RENAMERS)


def to_published(framework: str) -> Renamer:
    """Return the function from our names to those of a framework's published code; InputError if it has none."""
    return _renamers(framework)[0]


def from_published(framework: str) -> Renamer:
    """Return the function from the names of a framework's published code to ours; InputError if it has none."""
    return _renamers(framework)[1]


def rename_known(state: Mapping[str, Tensor], renamer: Renamer, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Rename what a renamer knows.

    Args:
        state: A file's tensors.
        renamer: See `Renamer`.
        where: The file, for messages.

    Returns:
        The renamed tensors, and the names that the renamer does not know.

    Raises:
        MismatchError: If a tensor cannot be what its name says.
    """
    try:
        known = {key: value for key, value in state.items() if _knows(renamer, key, value)}
        return renamer(known), [key for key in state if key not in known]
    except (ValueError, IndexError, RuntimeError) as error:
        raise MismatchError(f"{where}: its tensors do not fit their names ({error})") from error


def to_fcclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors to FC-CLIP's names; MismatchError if one is not a tensor of our fcclip."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == _VOID:
            result[_THEIR_VOID] = value[None]
        elif found := _SPLIT.fullmatch(key):
            fused = f"{_PREDICTOR}transformer_self_attention_layers.{found[1]}.self_attn.in_proj_{found[2]}"
            if fused not in result:
                result[fused] = torch.cat([_entry(state, part) for part in _projections(found[1], found[2])])
        else:
            result[_rename(key, _FCCLIP, 0, "not a tensor of our fcclip")] = value
    return result


def from_fcclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename FC-CLIP's tensors to ours, without settings of its loss; MismatchError if one is not FC-CLIP's."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == _THEIR_VOID:
            result[_VOID] = value[0].clone()
        elif found := _FUSED.fullmatch(key):
            for part, rows in zip(_projections(found[1], found[2]), value.chunk(3), strict=True):
                result[part] = rows.clone()
        elif key not in _FCCLIP_IGNORED:
            result[_rename(key, _FCCLIP, 1, "not a tensor of FC-CLIP")] = value
    return result


def to_gkc(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors to GKC's names; MismatchError if one is not a tensor of our gkc."""
    result = to_fcclip({key: value for key, value in state.items() if key.startswith(_HEAD)})
    last = _highest_number(state, _STUDENT)
    for key, value in state.items():
        if key.startswith(_CLIP_PATH):
            raise MismatchError(
                f"{key}: GKC's published code has no place for it; a run trained with `model.clip_path=none` fits "
                "there, this one can be written as dense or sparse"
            )
        if key.startswith(f"{_STUDENT}{last}."):
            result[_THEIR_STUDENT + key.rpartition(".")[2]] = value
        elif not key.startswith(_HEAD):
            result[_rename(key, _GKC, 0, "not a tensor of our gkc")] = value[None] if key == _ROW else value
    return result


def from_gkc(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename GKC's tensors to ours, without its teacher and settings of its loss.

    Their own files hold the text encoder without CLIP's temperature. It is left out then, because it is CLIP's as
    released.

    Raises:
        MismatchError: If one is not a tensor of GKC.
    """
    whole_text = _THEIR_TEXT + "logit_scale" in state
    last = _highest_number(state, _THEIR_AUX_STUDENT) + 1
    shared: dict[str, Tensor] = {}
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(_GKC_IGNORED) or (key.startswith(_THEIR_TEXT) and not whole_text):
            continue
        if key.startswith(_THEIR_STUDENT):
            result[f"{_STUDENT}{last}.{key.removeprefix(_THEIR_STUDENT)}"] = value
        elif key.startswith(_THEIR_HEAD) and not key.startswith(_THEIR_HEAD + "predictor.class_embed."):
            shared[key] = value
        else:
            name = _rename(key, _GKC, 1, "not a tensor of GKC")
            result[name] = value[0].clone() if name == _ROW else value
    return from_fcclip(shared) | result


_RENAMERS: Mapping[str, tuple[Renamer, Renamer]] = {"fcclip": (to_fcclip, from_fcclip), "gkc": (to_gkc, from_gkc)}


def _renamers(framework: str) -> tuple[Renamer, Renamer]:
    if framework not in _RENAMERS:
        raise InputError(f"{framework}: no published names are known for it; they are for {', '.join(_RENAMERS)}")
    return _RENAMERS[framework]


def _rename(key: str, names: _Names, side: int, problem: str) -> str:
    """Return the other side's name of a key.

    Args:
        key: A name.
        names: Pairs of names.
        side: 0 if the key is ours, 1 if it is theirs.
        problem: Message for an unknown name.
    """
    for pair in names:
        pattern = re.escape(pair[side]).replace(r"\#", r"(\d+)") + ("" if pair[side].endswith(".") else "$")
        if found := re.match(pattern, key):
            number = found[1] if found.groups() else ""
            return pair[1 - side].replace("#", number) + key[found.end() :]
    raise MismatchError(f"{key}: {problem}; is this the state of another framework?")


def _projections(layer: str, kind: str) -> list[str]:
    """Return our names of the three projections of a layer's self-attention, weights or biases."""
    return [f"head.transformer.decoder.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]


def _entry(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise MismatchError(f"{key}: missing beside the other projections of its self-attention")
    return state[key]


def _highest_number(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the highest number that follows `prefix` in a key; -1 if there is none."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in state)
    return max((int(match[1]) for match in found if match), default=-1)


def _knows(renamer: Renamer, key: str, value: Tensor) -> bool:
    try:
        renamer({key: value})
    except MismatchError:
        return False
    return True
