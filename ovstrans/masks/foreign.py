"""Masks in files of other programs: the `weight_mask` entries of torch's pruning and of OpenTrans."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ovstrans.clip.layers import BODY
from ovstrans.clip.load import model_shapes
from ovstrans.clip.models import config_kind, model_config, model_names
from ovstrans.clip.weights import WRAPPERS, read_weight_file
from ovstrans.errors import InputError
from ovstrans.file_kinds import recognize, refusal
from ovstrans.files import read_metadata
from ovstrans.masks.mask import Mask

MASK = "_mask"
"""End of the name of a mask of torch's pruning."""

logger = logging.getLogger(__name__)


def load_foreign_mask(path: Path) -> Mask:
    """Read the mask in a file of another program. Masks of the stem are left out, as OpenTrans transfers none.

    Its model is that whose body has exactly these layers, if it is a ResNet, else ""; its weights are not known.

    Raises:
        InputError: If the file cannot be read or holds no mask. The message says what it is.
    """
    kind = recognize(path)
    if kind is not None and kind.format.startswith("ovstrans.mask/"):
        raise InputError(
            f"{path}: its format is {kind.format!r}, which this version of ovstrans does not know; update it"
        )
    if kind is not None and kind.format not in ("torch", "safetensors"):
        raise InputError(refusal(path, "a mask"))
    if kind is None and path.suffix == ".safetensors":
        read_metadata(path)  # says what is wrong with it
    state = read_weight_file(path).state
    if not has_masks(state):
        raise InputError(
            f"{path}: a file of weights, not a mask (no format entry, no weight_mask in it); give it as `pretrained`, "
            "or write the mask of its zeros with 'ovstrans export FILE --format mask'"
        )
    mask = mask_from_entries(state, str(path), model="", body_only=_has_body(state))
    mask.model = _find_model(mask.shapes)
    stem = sum(key.endswith(f"weight{MASK}") for key in state) - len(mask.tensors)
    if stem:
        logger.info(
            "%s: %d masks outside layer1 to layer4 left out; 'ovstrans export --format mask --scope file' keeps them",
            path,
            stem,
        )
    return mask


def mask_from_entries(
    state: Mapping[str, Tensor], where: str, *, model: str, pretrained: str = "", body_only: bool = False
) -> Mask:
    """Make a mask of the `weight_mask` entries of a state dict.

    Other entries are ignored, prefixes of wrappers (`module.`, `backbone.`, `visual.`) removed.

    Args:
        state: The state dict. Its masks hold zeros and ones.
        where: The file, for messages and the mask's recipe.
        model: open_clip model that the mask was made from, which such files do not record.
        pretrained: Tag or file of that model's weights.
        body_only: Leave out the stem. OpenTrans saves masks of its second and third convolution, but transfers
            only layer1 to layer4.

    Raises:
        InputError: If there is no mask, or one holds anything but zeros and ones.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.endswith(f"weight{MASK}"):
            continue
        kept = value != 0
        if value.numel() == 0 or not torch.equal(kept, value == 1):
            raise InputError(f"{where}: {key} holds values other than zero and one; it is not a mask")
        name = WRAPPERS.sub("", key).removesuffix(MASK)
        if name in tensors:
            raise InputError(f"{where}: {name} has two masks; keep the entries of one image encoder only")
        if not body_only or name.startswith(BODY):
            tensors[name] = kept
    if not tensors:
        what = "no weight_mask entry of layer1 to layer4" if body_only else "no weight_mask entry"
        raise InputError(f"{where}: {what} in it (first entry: {next(iter(state), 'none')}); is it a mask?")
    return Mask(
        tensors=tensors,
        model=model,
        pretrained=pretrained,
        method="imported",
        recipe={"file": Path(where).name, "scope": "body" if body_only else "file"},
        path=where,
    )


def has_masks(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict holds masks of torch's pruning."""
    return any(key.endswith(f"weight{MASK}") for key in state)


def _has_body(state: Mapping[str, Tensor]) -> bool:
    return any(WRAPPERS.sub("", key).startswith(BODY) for key in state if key.endswith(f"weight{MASK}"))


def _find_model(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the ResNet whose body has exactly these layers, "" if there is none."""
    resnets = [name for name in model_names() if config_kind(model_config(name)) == "resnet"]
    for name in resnets if next(iter(shapes)).startswith("layer") else ():
        known = model_shapes(name) or {}
        body = {key: shape for key, shape in known.items() if key.startswith(BODY) and len(shape) > 1}
        if body == dict(shapes):
            return name.removesuffix("-quickgelu")
    return ""
