"""GKC's names for the tensors of our `gkc`, both ways.

Ours are the keys of a checkpoint: `backbone.*`, `head.*`, `classifier.*`, `training_only.*`, and
`text_tower.*` where it was kept. Theirs are the state dict of GKC's and OpenTrans' released code, as
detectron2 saves and loads it. The head they share with FC-CLIP goes by the names of `upstream_names`.
Values are carried over to the last bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ovstrans.errors import MismatchError
from ovstrans.interop.upstream_names import from_fcclip, to_fcclip

_HEAD, _THEIR_HEAD = "head.", "sem_seg_head."
_STUDENT, _THEIR_STUDENT, _THEIR_AUX_STUDENT = "training_only.students.", "kd_proj.", "aux_kd_porj_"
_OWN_PATH = "clip_path."
"""CLIP's own pool, an option that theirs has not."""
_TEXT, _THEIR_TEXT = "text_tower.", "text_encoder."

_NAMES = (
    # `#` is a number; a name that ends in a dot stands for all that begin with it.
    ("backbone.", "backbone."),
    ("classifier.query.", "sem_seg_head.predictor.class_embed."),
    ("classifier.project.", "embed_proj.1."),
    ("classifier.non_object", "non_object_embedding"),
    ("classifier.logit_scale", "logit_scale"),
    ("training_only.projections.#.", "aux_embed_porj_#.1."),
    (_STUDENT + "#.", _THEIR_AUX_STUDENT + "#."),
    ("training_only.text_scale", "text_kd_logit_scale"),
    (_TEXT, _THEIR_TEXT),
)
_ROW = "classifier.non_object"
"""A vector here, a matrix of one row there."""

_LEFT_OUT = ("vision_clip.", "empty_weight", "criterion.empty_weight")
"""Of theirs: the teacher, which is CLIP as released, and the weights of classes in the loss, a setting."""


def to_gkc(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under GKC's names; MismatchError where one is not a tensor of ours."""
    result = to_fcclip({key: value for key, value in state.items() if key.startswith(_HEAD)})
    last = _last(state, _STUDENT)
    for key, value in state.items():
        if key.startswith(_OWN_PATH):
            raise MismatchError(
                f"{key}: GKC's published code has no place for it; a run trained with --set model.clip_path=none fits "
                "there, this one goes out as dense or sparse"
            )
        if key.startswith(f"{_STUDENT}{last}."):
            result[_THEIR_STUDENT + key.rpartition(".")[2]] = value
        elif not key.startswith(_HEAD):
            result[_renamed(key, 0, "not a tensor of our gkc")] = value[None] if key == _ROW else value
    return result


def from_gkc(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GKC's tensors under our names, without its teacher and the settings of its loss.

    Their own files hold the text encoder without CLIP's temperature; it is left out then, for it is
    CLIP's as released. Raises MismatchError where one is not a tensor of GKC.
    """
    whole_text = _THEIR_TEXT + "logit_scale" in state
    last = _last(state, _THEIR_AUX_STUDENT) + 1
    shared: dict[str, Tensor] = {}
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(_LEFT_OUT) or (key.startswith(_THEIR_TEXT) and not whole_text):
            continue
        if key.startswith(_THEIR_STUDENT):
            result[f"{_STUDENT}{last}.{key.removeprefix(_THEIR_STUDENT)}"] = value
        elif key.startswith(_THEIR_HEAD) and not key.startswith(_THEIR_HEAD + "predictor.class_embed."):
            shared[key] = value
        else:
            name = _renamed(key, 1, "not a tensor of GKC")
            result[name] = value[0].clone() if name == _ROW else value
    return from_fcclip(shared) | result


def _last(state: Mapping[str, Tensor], prefix: str) -> int:
    """The highest number that follows `prefix` in a key; -1 where there is none."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in state)
    return max((int(match[1]) for match in found if match), default=-1)


def _renamed(key: str, side: int, problem: str) -> str:
    """The other side's name of a key; side: 0 where the key is ours, 1 where it is theirs."""
    for pair in _NAMES:
        pattern = re.escape(pair[side]).replace(r"\#", r"(\d+)") + ("" if pair[side].endswith(".") else "$")
        if found := re.match(pattern, key):
            number = found[1] if found.groups() else ""
            return pair[1 - side].replace("#", number) + key[found.end() :]
    raise MismatchError(f"{key}: {problem}; is this the state of another framework?")
