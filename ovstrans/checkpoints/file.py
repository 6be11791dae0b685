"""The sparse checkpoint: a segmenter in one file, its masked weights without their zeros.

A safetensors file. A dense tensor is itself; a masked tensor `W` is `W.values` (the kept values in C
order, in W's own type) and `W.bitmask` (its mask as packed bits, see `masks.bits`). Keys:

    backbone.*                     the image encoder, masked or dense
    (anything else)                the head, under its own names
    text.embeddings, text.owner    [R, E] a row per class name, [R] int64 the class of each row
    text_tower.*                   the CLIP's text encoder, where it was kept

The metadata are strings: `format` ("ovstrans.checkpoint/1"), `framework`, `created_by`, and as JSON
objects `options` (of the framework), `vocabulary`, `clip` (model, pretrained, weights_sha256, image_size,
mean, std), `recipe`, `provenance`, `shapes` (of the masked tensors, by W) and `mask` (what the mask was
made from; empty without one).

Reading it takes numpy, json and safetensors (bfloat16 values, which numpy lacks, take torch):

    import json
    import math

    import numpy as np
    from safetensors import safe_open

    def read_checkpoint(path):
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
            state = {key: file.get_tensor(key) for key in file.keys()}
        for key, shape in json.loads(metadata["shapes"]).items():
            bits = np.unpackbits(state.pop(key + ".bitmask"), count=math.prod(shape))
            values = state.pop(key + ".values")
            dense = np.zeros(len(bits), values.dtype)
            dense[bits == 1] = values
            state[key] = dense.reshape(shape)
        return state, metadata
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints.sparse import BACKBONE, densify, sparse_state
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.bits import DAMAGED, parse_object, parse_shapes, require_entries
from ovstrans.masks.mask import CREATED_BY, Mask
from ovstrans.vocabulary.vocabulary import Vocabulary

FORMAT = "ovstrans.checkpoint/1"
TEXT_ENCODER = "text_tower."
EMBEDDINGS = "text.embeddings"
OWNER = "text.owner"
METADATA = (
    "format",
    "framework",
    "created_by",
    "options",
    "vocabulary",
    "clip",
    "recipe",
    "provenance",
    "shapes",
    "mask",
)
"""The entries that every checkpoint has."""

_CLIP = ("model", "pretrained", "weights_sha256", "image_size", "mean", "std")
_MASK = ("model", "pretrained", "weights_sha256", "method", "created_by")


@dataclass
class Checkpoint:
    """A segmenter and all that is needed to run it.

    framework: name.  options: what it is built with.  state: its state dict, dense.  mask: in force on
    its backbone, or None.  text_embeddings: [R, E], text_owner: [R], vocabulary: the text classifier it
    was trained with.  clip: `Clip.describe()` of the CLIP it came from.  recipe: settings of the run.
    provenance: where it came from (files, hashes, versions).  text_tower: state dict of the CLIP's text
    tower, or None.
    """

    framework: str
    options: dict[str, Any]
    state: dict[str, Tensor]
    mask: Mask | None
    text_embeddings: Tensor
    text_owner: Tensor
    vocabulary: Vocabulary
    clip: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, Tensor] | None = None
    created_by: str = CREATED_BY


def save_checkpoint(path: Path | str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically and reproducibly.

    Raises MismatchError, before anything is written, where a masked weight is not zero or the state lacks
    a masked tensor; InputError where `path` is unwritable.
    """
    mask = checkpoint.mask
    tensors = sparse_state(checkpoint.state, mask, where=str(path))
    extra = {EMBEDDINGS: checkpoint.text_embeddings, OWNER: checkpoint.text_owner}
    extra.update((TEXT_ENCODER + key, value) for key, value in (checkpoint.text_encoder or {}).items())
    for key in extra:
        if key in tensors:
            raise MismatchError(f"{path}: the framework has a tensor called {key}, a name this format keeps for text")
    shapes = {} if mask is None else {BACKBONE + key: list(shape) for key, shape in mask.shapes.items()}
    about = {} if mask is None else {**{key: getattr(mask, key) for key in _MASK}, "recipe": mask.recipe}
    metadata = {
        "format": FORMAT,
        "framework": checkpoint.framework,
        "created_by": checkpoint.created_by,
        "options": _dump(checkpoint.options),
        "vocabulary": _dump(checkpoint.vocabulary.to_json()),
        "clip": _dump(checkpoint.clip),
        "recipe": _dump(checkpoint.recipe),
        "provenance": _dump(checkpoint.provenance),
        "shapes": _dump(shapes),
        "mask": _dump(about),
    }
    files.write_tensors(path, {**tensors, **extra}, metadata)


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint; its state comes back dense, on the CPU, with exact zeros where it is masked.

    Raises InputError, naming the file and the entry, where it is missing, truncated, of another format,
    or where its parts do not agree.
    """
    tensors, metadata = files.read_tensors(path)
    where = str(path)
    found = metadata.get("format")
    if found != FORMAT:
        raise InputError(
            f"{where}: not a checkpoint: its format is {found!r}, {FORMAT!r} is needed; "
            "'ovstrans inspect' tells what it is"
        )
    require_entries(metadata, METADATA, where)
    objects = {
        key: parse_object(metadata[key], f"{where}: {key}")
        for key in ("options", "vocabulary", "clip", "recipe", "provenance", "mask")
    }
    for key in _CLIP:
        if key not in objects["clip"]:
            raise InputError(f"{where}: clip has no {key!r}; make the file again")
    try:
        vocabulary = Vocabulary.from_json(objects["vocabulary"])
    except InputError as error:
        raise InputError(f"{where}: vocabulary: {error}") from error
    embeddings, owner = _take_text(tensors, len(vocabulary), where)
    mask = _take_mask(tensors, parse_shapes(metadata["shapes"], where), objects["mask"], where)
    text_encoder = {key: tensors.pop(key) for key in list(tensors) if key.startswith(TEXT_ENCODER)}
    _refuse_nan(tensors, where)
    return Checkpoint(
        framework=metadata["framework"],
        options=objects["options"],
        state=tensors,
        mask=mask,
        text_embeddings=embeddings,
        text_owner=owner,
        vocabulary=vocabulary,
        clip=objects["clip"],
        recipe=objects["recipe"],
        provenance=objects["provenance"],
        text_encoder={key.removeprefix(TEXT_ENCODER): value for key, value in text_encoder.items()} or None,
        created_by=metadata["created_by"],
    )


def _take_mask(
    tensors: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], about: Mapping[str, Any], where: str
) -> Mask | None:
    """Make the masked tensors dense, in place; returns the mask, with what the file says of it."""
    kept = densify(tensors, shapes, where=where)
    if not kept:
        return None
    fields = {key: str(about.get(key, "")) for key in _MASK}
    recipe = about.get("recipe", {})
    return Mask(kept, recipe=recipe if isinstance(recipe, dict) else {}, path=where, **fields)


def _take_text(tensors: dict[str, Tensor], classes: int, where: str) -> tuple[Tensor, Tensor]:
    """Remove and return the text classifier's embeddings and owners."""
    for key in (EMBEDDINGS, OWNER):
        if key not in tensors:
            raise InputError(f"{where}: {key} is missing; {DAMAGED}")
    embeddings, owner = tensors.pop(EMBEDDINGS), tensors.pop(OWNER)
    if embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise InputError(f"{where}: {EMBEDDINGS} has shape {list(embeddings.shape)}, [rows, dimensions] are needed")
    if owner.dtype != torch.int64 or owner.shape != embeddings.shape[:1]:
        raise InputError(
            f"{where}: {OWNER} has shape {list(owner.shape)}, one int64 for each of {len(embeddings)} rows is needed"
        )
    if len(owner) and not 0 <= int(owner.min()) <= int(owner.max()) < classes:
        raise InputError(f"{where}: {OWNER} names a class outside the {classes} of the vocabulary")
    _refuse_nan({EMBEDDINGS: embeddings}, where)
    return embeddings, owner


def _refuse_nan(tensors: Mapping[str, Tensor], where: str) -> None:
    for key, value in tensors.items():
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise InputError(f"{where}: {key} holds NaN; the training that wrote it diverged, lower its learning rate")


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, allow_nan=False)
