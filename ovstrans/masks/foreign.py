"""Masks of other programs: dictionaries of `*.weight_mask`, as torch's pruning and OpenTrans save them."""

from __future__ import annotations

from pathlib import Path

import torch

from ovstrans.clip.layers import BODY
from ovstrans.clip.weights import read_state_dict
from ovstrans.errors import InputError
from ovstrans.masks.mask import Mask
from ovstrans.masks.match import WRAPPERS

_SUFFIX = "_mask"


def load_foreign_mask(path: Path | str, *, model: str = "RN50", pretrained: str = "openai", body: bool = False) -> Mask:
    """Read `layer1.0.conv1.weight_mask` entries, of zeros and ones, as a Mask.

    path: a torch file, read with `weights_only`, or safetensors; other entries (a whole state dict's) are
    passed over, wrappers' prefixes (`module.`, `backbone.`, `visual.`) taken off.  model, pretrained: what
    it was made from, which such files do not say.  body: leave out the stem; OpenTrans saves masks of
    its second and third convolution but transfers only layer1 to layer4.

    Raises InputError where the file is unreadable or could run code, where no mask is in it, or where one
    holds anything but zeros and ones.
    """
    state = read_state_dict(path)
    tensors = {}
    for key, value in state.items():
        if not key.endswith(".weight_mask"):
            continue
        kept = value != 0
        if value.numel() == 0 or not torch.equal(kept, value == 1):
            raise InputError(f"{path}: {key} holds values other than zero and one; it is not a mask")
        name = WRAPPERS.sub("", key).removesuffix(_SUFFIX)
        if name in tensors:
            raise InputError(f"{path}: {name} has two masks; keep the entries of one image tower only")
        if not body or name.startswith(BODY):
            tensors[name] = kept
    if not tensors:
        what = "no weight_mask entry of layer1 to layer4" if body else "no weight_mask entry"
        raise InputError(f"{path}: {what} in it (first entry: {next(iter(state))}); is it a mask?")
    return Mask(
        tensors=tensors,
        model=model,
        pretrained=pretrained,
        method="imported",
        recipe={"file": Path(path).name, "scope": "body" if body else "file"},
        path=str(path),
    )
