"""What an exported file says of itself, so that it can come back.

One JSON object, under the name "ovstrans": in the metadata of a safetensors file, as text beside the state in
a torch file. Its entries:

    format                  "ovstrans.origin/1"
    names                   whose names the tensors have: "ovstrans", or a framework's published code
    clip                    model, pretrained, weights_sha256, image_size, mean, std
    mask                    what the mask was made from, and the `tensors` it is about; null without one
    created_by              program and version

and of a framework also `framework`, `options`, `vocabulary`, `recipe`, `provenance`. The mask itself is in the
zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ovstrans.checkpoints.file import BACKBONE, Checkpoint
from ovstrans.clip.weights import encoder_tensors
from ovstrans.errors import InputError
from ovstrans.interop.foreign import ABOUT
from ovstrans.interop.plain_clip import PlainClip
from ovstrans.masks.file import DAMAGED, mask_metadata, parse_object
from ovstrans.masks.mask import CREATED_BY, Mask

FORMAT = "ovstrans.origin/1"
OURS = "ovstrans"
"""Whose names a file has that has ours."""

_CLIP = ("model", "pretrained", "weights_sha256", "image_size", "mean", "std")


def describe_source(source: Checkpoint | PlainClip, names: str) -> str:
    """What an exported file says of itself (see above). names: whose its names are."""
    about: dict[str, Any] = {"format": FORMAT, "names": names, "created_by": CREATED_BY}
    if isinstance(source, PlainClip):
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


def read_about(text: str, where: str) -> dict[str, Any]:
    """What an exported file says of itself; {} where it says nothing. InputError where it is damaged."""
    if not text:
        return {}
    about = parse_object(text, f"{where}: {ABOUT}")
    if about.get("format") != FORMAT:
        raise InputError(
            f"{where}: its origin is told as {about.get('format')!r}, which this version of ovstrans does not know"
        )
    for key in ("clip", "options", "recipe", "provenance", "vocabulary"):
        if key in about and not isinstance(about[key], dict):
            raise InputError(f"{where}: {ABOUT}: {key} is no object; {DAMAGED}")
    for key in _CLIP:
        if key not in about.get("clip", {}):
            raise InputError(f"{where}: {ABOUT}: clip has no {key!r}; {DAMAGED}")
    return about


def recorded_mask(about: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> Mask | None:
    """The mask that a file says its backbone is under, read off the zeros; None without one.

    state: by our names. Raises InputError where a tensor that it names is missing.
    """
    mask = about.get("mask")
    if not isinstance(mask, dict):
        return None
    keys = [str(key) for key in mask.get("tensors", [])]
    for key in keys:
        if BACKBONE + key not in state:
            raise InputError(f"{where}: its mask is about {key}, which is missing; copy or make the file again")
    fields = {key: str(mask.get(key, "")) for key in ("model", "pretrained", "weights_sha256", "method", "created_by")}
    recipe = parse_object(str(mask.get("recipe", "{}")), f"{where}: mask")
    return Mask({key: state[BACKBONE + key] != 0 for key in keys}, recipe=recipe, path=where, **fields)


def recorded_image_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder in a file's state, under the names that `recorded_mask` looks for."""
    return {BACKBONE + key: value for key, value in encoder_tensors(state).items()}
