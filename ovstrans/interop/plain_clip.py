"""A pruned CLIP as plain weights: the whole state dict that open_clip loads, its zeros baked in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import open_clip
from torch import Tensor

from ovstrans.clip.load import Clip, load_clip, model_shapes, random_clip
from ovstrans.clip.weights import VISUAL, StateFit, encoder_tensors, fit_state, require_finite
from ovstrans.errors import InputError, MismatchError
from ovstrans.interop.describe import WEIGHTS_FORMAT
from ovstrans.interop.foreign import MASK, bake
from ovstrans.interop.foreign_masks import mask_of_entries, mask_of_zeros
from ovstrans.masks.file import mask_metadata, parse_object
from ovstrans.masks.mask import Mask

_HEADS = tuple(f"{VISUAL}{part}." for part in ("attnpool", "head", "trunk.head", "trunk.norm_pre"))
"""What a CLIP puts on its trunk (of a ResNet, of a ConvNeXt). Frameworks drop it; the CLIP's own serves."""

NAME_THE_MODEL = "weights of another architecture; name the right CLIP with `model`"
PARTIAL = "`partial=True` takes what fits"
_MASKED = f".weight{MASK}"
_TOLD = ("pretrained", "weights_sha256", "method", "created_by")
"""What pruned weights say of their mask, as strings."""


@dataclass(frozen=True)
class PlainClip:
    """clip: it, the weights and zeros in place.  mask: what its zeros are, where that is known.
    imported: how the file's entries and the model's compare, where weights came from a file.
    transferred: the mask was made from other weights than these."""

    clip: Clip
    mask: Mask | None
    imported: StateFit | None = None
    transferred: bool = False

    @property
    def state(self) -> dict[str, Tensor]:
        """All tensors, by open_clip's names."""
        return dict(self.clip.model.state_dict())

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The image encoder's tensors."""
        return dict(self.clip.visual.state_dict())

    def metadata(self) -> dict[str, str]:
        """What a file of it says of itself, as strings."""
        about = {} if self.mask is None else mask_metadata(self.mask)
        clip = self.clip
        return {**about, "model": clip.name, "pretrained": clip.pretrained, "weights_sha256": clip.weights_sha256}


def masked_clip(mask: Mask, model: str | None = None, pretrained: str | None = None) -> PlainClip:
    """The CLIP that a mask was made from, or another of its architecture, under the mask.

    Raises MismatchError where the mask does not fit the model, InputError where the model's weights cannot
    be had, or hold no text encoder.
    """
    name = model or mask.model
    if pretrained is None and name == mask.model:
        pretrained = mask.pretrained or None
    clip = _whole(load_clip(name, pretrained))
    mask.apply(clip.model)
    return PlainClip(clip, mask, transferred=not mask.made_from(clip.weights_sha256))


def clip_from_weights(
    state: Mapping[str, Tensor],
    where: str,
    *,
    model: str,
    pretrained: str | None = None,
    mask: Mask | None = None,
    partial: bool = False,
) -> PlainClip:
    """A CLIP with the weights of a file: a whole one's, an image encoder's, or the trunk in a framework's state.

    state: by any names that wrappers give (`backbone.layer1...`, `visual.layer1...`). What the file lacks
    besides the trunk (text encoder, attention pool) comes from the CLIP that `model` and `pretrained` name;
    trunk weights too with `partial`.  mask: to apply, or None.

    Raises MismatchError where shapes are not the model's or the trunk is not whole, InputError where the
    CLIP's own weights are needed and cannot be had, or where a value is NaN.
    """
    clip = random_clip(model, pretrained=pretrained or "")
    imported = fit_state(_by_open_clip_names(state), clip.model.state_dict(), where, remedy=NAME_THE_MODEL)
    imported.require_complete(
        needed=lambda key: not partial and key.startswith(VISUAL) and not key.startswith(_HEADS), remedy=PARTIAL
    )
    if imported.missing:
        clip = _whole(load_clip(model, pretrained))
    else:
        clip.pretrained, clip.weights_sha256 = pretrained or "", ""
    require_finite(imported.state, where)
    clip.model.load_state_dict(imported.state, strict=False)
    if mask is not None:
        mask.apply(clip.model)
    return PlainClip(clip, mask, imported)


def without_masks(
    state: Mapping[str, Tensor], where: str, *, model: str, pretrained: str, body: bool
) -> tuple[dict[str, Tensor], Mask | None]:
    """(the weights of a file with its masks applied, its mask) where torch's pruning left both in it.

    body: of the mask, what is of layer1 to layer4; the weights are under all of it. None where there is no
    mask. Raises InputError for a weight without its mask, MismatchError where model and masks do not fit.
    """
    if not any(key.endswith(_MASKED) for key in state):
        return dict(state), None
    mask = mask_in(state, where, model=model, pretrained=pretrained, body=body)
    baked = bake(state, where)
    return {key: value for key, value in baked.items() if not key.endswith(_MASKED)}, mask


def mask_in(state: Mapping[str, Tensor], where: str, *, model: str, pretrained: str, body: bool) -> Mask:
    """The mask in a file's state: its `weight_mask` entries, or else what is exactly zero in its trunk.

    body: of the entries, those of layer1 to layer4 only. Raises InputError where there is neither,
    MismatchError where the model does not have such layers.
    """
    if any(key.endswith(_MASKED) for key in state):
        mask = mask_of_entries(state, where, model=model, pretrained=pretrained, body=body)
    else:
        mask = mask_of_zeros(encoder_tensors(state), where, model=model, pretrained=pretrained)
    weights = model_shapes(model) or {}
    for key, shape in mask.shapes.items():
        if weights.get(key) != shape:
            raise MismatchError(
                f"{where}: masks {key} of shape {list(shape)}, which {model} does not have; "
                "name the CLIP it is for with --model"
            )
    return mask


def pruned_mask(metadata: Mapping[str, str], state: Mapping[str, Tensor], where: str) -> Mask | None:
    """The mask that pruned weights of ours are under, read off the zeros, with what their metadata say of it.

    None where the metadata are not those of pruned weights. Raises InputError where nothing is zero.
    """
    if metadata.get("format") != WEIGHTS_FORMAT or not metadata.get("method"):
        return None
    mask = mask_of_zeros(encoder_tensors(state), where, model=metadata.get("model", ""))
    told: dict[str, Any] = {key: metadata.get(key, "") for key in _TOLD}
    return replace(mask, recipe=parse_object(metadata.get("recipe", "{}"), f"{where}: recipe"), **told)


def open_clip_name(model: str, pretrained: str) -> str:
    """The name under which open_clip builds the very model: its QuickGELU goes by name, not by weights."""
    quick = f"{model}-quickgelu"
    settings = open_clip.get_pretrained_cfg(model, pretrained) or {}
    config = open_clip.get_model_config(model) or {}
    wanted = settings.get("quick_gelu", False) and not config.get("quick_gelu", False)
    return quick if wanted and quick in open_clip.list_models() else model


def is_builtin(model: str) -> bool:
    """Whether open_clip knows a model by name; it builds others from a folder (`local-dir:`)."""
    return open_clip.get_model_config(model) is not None


def _whole(clip: Clip) -> Clip:
    """A CLIP with its text encoder; InputError where its file held none."""
    if not clip.has_text:
        raise InputError(f"{clip.pretrained}: holds the image encoder only; name the whole CLIP's with --pretrained")
    return clip


def _by_open_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors with the image encoder's under `visual.`, whatever they were under."""
    if any(key.startswith(VISUAL) for key in state):
        return dict(state)
    prefix = _encoder_prefix(state)
    text = prefix.removesuffix(VISUAL) if prefix.endswith(VISUAL) else None
    renamed = {}
    for key, value in state.items():
        if key.startswith(prefix):
            renamed[VISUAL + key.removeprefix(prefix)] = value
        elif text is not None and key.startswith(text):
            renamed[key.removeprefix(text)] = value
        else:
            renamed[key] = value
    return renamed


def _encoder_prefix(state: Mapping[str, Tensor]) -> str:
    """What stands before the image encoder's names in a state; "" for a tower alone."""
    for prefix in ("backbone.clip_model.visual.", "clip_model.visual.", "backbone.", ""):
        if any(key.startswith((f"{prefix}layer1.0.", f"{prefix}trunk.stages.")) for key in state):
            return prefix
    return ""
