"""Masks of other programs: `*.weight_mask` entries, as torch's pruning and OpenTrans save them, or plain zeros."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ovstrans.clip.backbone import BODY
from ovstrans.clip.weights import WRAPPERS, read_state_dict
from ovstrans.errors import InputError
from ovstrans.masks.mask import Mask

_SUFFIX = "_mask"


def load_foreign_mask(path: Path | str, *, model: str = "RN50", pretrained: str = "openai", body: bool = False) -> Mask:
    """Read `layer1.0.conv1.weight_mask` entries, of zeros and ones, as a Mask.

    path: a torch file, read with `weights_only`, or safetensors; the rest as in `mask_of_entries`, which
    says what is refused.
    """
    return mask_of_entries(read_state_dict(path), str(path), model=model, pretrained=pretrained, body=body)


def mask_of_entries(
    state: Mapping[str, Tensor], where: str, *, model: str, pretrained: str = "", body: bool = False
) -> Mask:
    """The `weight_mask` entries of a state dict, of zeros and ones, as a Mask.

    Other entries are passed over, wrappers' prefixes (`module.`, `backbone.`, `visual.`) taken off.
    where: the file, for messages and the mask's recipe.  model, pretrained: what it was made from, which
    such files do not say.  body: leave out the stem; OpenTrans saves masks of its second and third
    convolution but transfers only layer1 to layer4.

    Raises InputError where no mask is in it, or where one holds anything but zeros and ones.
    """
    tensors = {}
    for key, value in state.items():
        if not key.endswith(f".weight{_SUFFIX}"):
            continue
        kept = value != 0
        if value.numel() == 0 or not torch.equal(kept, value == 1):
            raise InputError(f"{where}: {key} holds values other than zero and one; it is not a mask")
        name = WRAPPERS.sub("", key).removesuffix(_SUFFIX)
        if name in tensors:
            raise InputError(f"{where}: {name} has two masks; keep the entries of one image encoder only")
        if not body or name.startswith(BODY):
            tensors[name] = kept
    if not tensors:
        what = "no weight_mask entry of layer1 to layer4" if body else "no weight_mask entry"
        raise InputError(f"{where}: {what} in it (first entry: {next(iter(state), 'none')}); is it a mask?")
    return Mask(
        tensors=tensors,
        model=model,
        pretrained=pretrained,
        method="imported",
        recipe={"file": Path(where).name, "scope": "body" if body else "file"},
        path=where,
    )


def mask_of_zeros(encoder: Mapping[str, Tensor], where: str, *, model: str, pretrained: str = "") -> Mask:
    """The mask that pruned weights are under: whatever is exactly zero in the body is cut.

    encoder: an image encoder's state dict.  where, model, pretrained: as in `mask_of_entries`.  A weight that
    was kept and happens to be zero counts as cut. Raises InputError where nothing is zero.
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
