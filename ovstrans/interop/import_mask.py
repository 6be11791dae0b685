"""Masks of other programs: `weight_mask` entries of torch's pruning and OpenTrans, or plain zeros among the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ovstrans.clip.layers import BODY
from ovstrans.clip.load import model_shapes
from ovstrans.clip.weights import bake_masks, encoder_tensors
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.file import WEIGHTS_FORMAT, parse_object
from ovstrans.masks.foreign import MASK, has_masks, mask_from_entries
from ovstrans.masks.mask import Mask

_RECORDED = ("pretrained", "weights_sha256", "method", "created_by")
"""Entries in which pruned weights record their mask."""


def mask_from_zeros(encoder: Mapping[str, Tensor], where: str, *, model: str, pretrained: str = "") -> Mask:
    """Make a mask of pruned weights: every weight of the body that is exactly zero is cut.

    A weight that was kept and happens to be zero counts as cut.

    Args:
        encoder: An image encoder's state dict.
        where: As for `mask_from_entries`.
        model: As for `mask_from_entries`.
        pretrained: As for `mask_from_entries`.

    Raises:
        InputError: If nothing is zero.
    """
    body = {
        key: value != 0
        for key, value in encoder.items()
        if key.startswith(BODY) and key.endswith(".weight") and value.dim() > 1
    }
    if all(bool(kept.all()) for kept in body.values()):
        raise InputError(f"{where}: no weight of its layers is exactly zero: it was not pruned, there is no mask in it")
    return Mask(
        tensors=body,
        model=model,
        pretrained=pretrained,
        method="zeros",
        recipe={"file": Path(where).name, "scope": "body"},
        path=where,
    )


def find_mask(state: Mapping[str, Tensor], where: str, *, model: str, pretrained: str, body_only: bool) -> Mask:
    """Return the mask in a state dict: its `weight_mask` entries, or else the zeros of its backbone.

    Raises:
        InputError: If there is neither.
        MismatchError: If the model does not have such layers.
    """
    if has_masks(state):
        mask = mask_from_entries(state, where, model=model, pretrained=pretrained, body_only=body_only)
    else:
        mask = mask_from_zeros(encoder_tensors(state), where, model=model, pretrained=pretrained)
    weights = model_shapes(model) or {}
    for key, shape in mask.shapes.items():
        if weights.get(key) != shape:
            raise MismatchError(
                f"{where}: masks {key} of shape {list(shape)}, which {model} does not have; "
                "name the CLIP it is for as `model`"
            )
    return mask


def split_mask(
    state: Mapping[str, Tensor], where: str, *, model: str, pretrained: str, body_only: bool
) -> tuple[dict[str, Tensor], Mask | None]:
    """Apply and remove the masks that torch's pruning left in a state dict.

    Args:
        state: The state dict.
        where: As for `mask_from_entries`.
        model: As for `mask_from_entries`.
        pretrained: As for `mask_from_entries`.
        body_only: Leave the stem out of the mask that is returned. The weights have all masks applied.

    Returns:
        The weights and the mask; None if the state dict holds no mask.

    Raises:
        InputError: If a weight has no mask beside it.
        MismatchError: If the masks do not fit the weights or the model.
    """
    if not has_masks(state):
        return dict(state), None
    mask = find_mask(state, where, model=model, pretrained=pretrained, body_only=body_only)
    baked = bake_masks(state, where)
    return {key: value for key, value in baked.items() if not key.endswith(f"weight{MASK}")}, mask


def mask_of_pruned_weights(metadata: Mapping[str, str], state: Mapping[str, Tensor], where: str) -> Mask | None:
    """Return the mask of pruned weights of ours: their zeros, with what their metadata record of it.

    Returns:
        None if the metadata are not those of pruned weights.

    Raises:
        InputError: If nothing is zero.
    """
    if metadata.get("format") != WEIGHTS_FORMAT or not metadata.get("method"):
        return None
    mask = mask_from_zeros(encoder_tensors(state), where, model=metadata.get("model", ""))
    recorded: dict[str, Any] = {key: metadata.get(key, "") for key in _RECORDED}
    return replace(mask, recipe=parse_object(metadata.get("recipe", "{}"), f"{where}: recipe"), **recorded)
