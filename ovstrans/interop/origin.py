"""The record that an exported file carries, so that it can be imported again.

One JSON object, under the name "ovstrans": in the metadata of a safetensors file, or as text beside the state in a
torch file. Its entries:

    format                  "ovstrans.origin/1"
    names                   whose names the tensors have: "ovstrans", or a framework's published code
    clip                    model, pretrained, weights_sha256, image_size, mean, std
    mask                    what the mask was made from, and the `tensors` it is about; null without one
    created_by              program and version

and of a framework also `framework`, `options`, `vocabulary`, `recipe`, `provenance`. The mask itself is in the zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.clip.weights import ORIGIN, encoder_tensors
from ovstrans.errors import InputError
from ovstrans.interop.import_clip import MaskedClip
from ovstrans.masks.file import DAMAGED, mask_metadata, parse_object
from ovstrans.masks.mask import CREATED_BY, Mask

FORMAT = "ovstrans.origin/1"
OURS = "ovstrans"
"""The `names` of a file that has our names."""

_CLIP = ("model", "pretrained", "weights_sha256", "image_size", "mean", "std")


def describe_origin(source: Checkpoint | MaskedClip, names: str) -> str:
    """Return what an exported file says of itself, as JSON text.

    Args:
        source: What is exported.
        names: Whose names the file's tensors have: `OURS` or a framework.
    """
    about: dict[str, Any] = {"format": FORMAT, "names": names, "created_by": CREATED_BY}
    if isinstance(source, MaskedClip):
        about["clip"] = source.clip.describe()
    else:
        about.update(
            framework=source.framework,
            options=source.options,
            vocabulary=source.vocabulary.to_json(),
            clip=source.clip,
            recipe=source.recipe,
            provenance=source.provenance,
        )
    mask = source.mask
    about["mask"] = None if mask is None else {**mask_metadata(mask), "tensors": sorted(mask.tensors)}
    return json.dumps(about, allow_nan=False)


def parse_origin(text: str, where: str) -> dict[str, Any]:
    """Parse what an exported file says of itself; {} if it says nothing.

    Raises:
        InputError: If it is damaged or of a later format. The message begins with `where`.
    """
    if not text:
        return {}
    about = parse_object(text, f"{where}: {ORIGIN}")
    if about.get("format") != FORMAT:
        raise InputError(
            f"{where}: its origin has the format {about.get('format')!r}, which this version of ovstrans does not know"
        )
    for key in ("clip", "options", "recipe", "provenance", "vocabulary"):
        if key in about and not isinstance(about[key], dict):
            raise InputError(f"{where}: {ORIGIN}: {key} is not an object; {DAMAGED}")
    for key in _CLIP:
        if key not in about.get("clip", {}):
            raise InputError(f"{where}: {ORIGIN}: clip has no {key!r}; {DAMAGED}")
    return about


def recorded_mask(origin: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> Mask | None:
    """Return the mask that a file says its weights are under, read off the zeros; None without one.

    Args:
        origin: See `parse_origin`.
        state: The file's tensors, under any wrapper's names.
        where: The file, for messages.

    Raises:
        InputError: If a tensor that it names is missing.
    """
    encoder = encoder_tensors(state)
    mask = origin.get("mask")
    if not isinstance(mask, dict):
        return None
    keys = [str(key) for key in mask.get("tensors", [])]
    for key in keys:
        if key not in encoder:
            raise InputError(f"{where}: its mask is about {key}, which is missing; copy or make the file again")
    fields = {key: str(mask.get(key, "")) for key in ("model", "pretrained", "weights_sha256", "method", "created_by")}
    recipe = parse_object(str(mask.get("recipe", "{}")), f"{where}: mask")
    return Mask({key: encoder[key] != 0 for key in keys}, recipe=recipe, path=where, **fields)
