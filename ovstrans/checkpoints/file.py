"""The sparse checkpoint: a segmenter in one file, with its masked weights stored without their zeros.

A safetensors file. A dense tensor is stored as it is. A masked tensor `W` is stored as `W.values` (the kept values in
C order, in W's own type) and `W.bitmask` (its mask as packed bits, see `masks.file`). Keys:

    backbone.*                     the image encoder, masked or dense
    (anything else)                the head, under its own names
    text.embeddings, text.owner    [R, E] a row per class name, [R] int64 the class of each row
    text_tower.*                   the CLIP's text encoder, if it was kept

The metadata are strings: `format` ("ovstrans.checkpoint/1"), `framework`, `created_by`, and as JSON objects `options`
(of the framework), `vocabulary`, `clip` (model, pretrained, weights_sha256, image_size, mean, std), `recipe`,
`provenance`, `shapes` (of the masked tensors, by W) and `mask` (what the mask was made from; empty without one).

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

A file with tensors in int8 or compressed has the format "ovstrans.checkpoint/2" and a further entry `coding`, a JSON
object. `packed` in it lists the compressed tensors, see `checkpoints.compress`; `int8` lists the weights of which
each output channel is stored as int8 times a scale, `W.scales`, see `checkpoints.quantize`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints.compress import BITMASK, CompressedTensors, compress_tensors
from ovstrans.checkpoints.quantize import SCALES, Quantized, restore_int8, to_int8
from ovstrans.checkpoints.stored import BACKBONE as BACKBONE
from ovstrans.checkpoints.stored import StoredTensors, to_dense, to_sparse
from ovstrans.errors import InputError, MismatchError, MissingFileError, counted
from ovstrans.masks.file import DAMAGED, parse_object, parse_shapes, require_entries
from ovstrans.masks.mask import CREATED_BY, Mask
from ovstrans.vocabulary.vocabulary import Vocabulary

FORMAT = "ovstrans.checkpoint/1"
CODED_FORMAT = "ovstrans.checkpoint/2"
"""Format of files with tensors in int8, or compressed."""

FORMATS = (FORMAT, CODED_FORMAT)
NAME = "checkpoint.safetensors"
"""Name of the checkpoint in a run folder."""

TEXT_ENCODER = "text_tower."
"""Prefix of the text encoder's keys."""

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

CODING = "coding"
"""The entry in addition of files of `CODED_FORMAT`."""

_CLIP = ("model", "pretrained", "weights_sha256", "image_size", "mean", "std")
_MASK = ("model", "pretrained", "weights_sha256", "method", "created_by")


@dataclass(eq=False)
class Checkpoint:
    """A trained segmenter and all that is needed to run it.

    Attributes:
        framework: Name of the framework.
        options: Options that the framework is built with.
        state: The framework's state dict, dense.
        mask: The mask in force on its image encoder, or None.
        text_embeddings: Text embeddings [R, E] that it was trained with, one row per synonym.
        text_owner: Index [R] of the class that each row belongs to.
        vocabulary: The classes that it was trained with.
        clip: The CLIP that it started from, as `clip.load.Clip.describe` tells it.
        recipe: Settings of the run.
        provenance: Files, hashes and versions that it came from.
        text_encoder: State dict of the CLIP's text encoder, or None.
        quantized: Of the tensors of the state that are stored as int8: their scales, and the error.
        created_by: Program and version.
        path: File it was read from, for messages; "" if none.
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
    quantized: dict[str, Quantized] = field(default_factory=dict)
    created_by: str = CREATED_BY
    path: str = field(default="", repr=False, compare=False)

    def __repr__(self) -> str:
        values = sum(value.numel() for value in self.state.values())
        mask = self.mask and f"{self.mask.sparsity:.2%} of {self.mask.total:,} weights are zero"
        facts = {
            "clip": " ".join(filter(None, (self.clip["model"], self.clip["pretrained"]))),
            "mask": mask or "none",
            "vocabulary": f"{self.vocabulary.name} ({counted(len(self.vocabulary), 'class', 'classes')})",
            "text": "no text encoder" if self.text_encoder is None else "with its text encoder",
        }
        lines = [f"Checkpoint of {self.framework}: {len(self.state)} tensors, {values:,} values"]
        return "\n".join([*lines, *(f"  {name:<10}  {value}" for name, value in facts.items())])


def save_checkpoint(path: Path | str, checkpoint: Checkpoint, *, compress: bool = False) -> None:
    """Write a checkpoint atomically; equal checkpoints give equal bytes.

    Args:
        path: The file.
        checkpoint: What to write.
        compress: Compress its tensors, without loss.

    Raises:
        MismatchError: If a masked weight is not zero, the state lacks a masked tensor, or a quantized tensor has
            changed. Nothing has been written.
        InputError: If nothing can be written at `path`.
    """
    mask, quantized = checkpoint.mask, checkpoint.quantized
    state = dict(checkpoint.state)
    state.update((key, to_int8(state[key], one.scales, f"{path}: {key}")) for key, one in quantized.items())
    tensors = to_sparse(state, mask, where=str(path))
    extra = {EMBEDDINGS: checkpoint.text_embeddings, OWNER: checkpoint.text_owner}
    extra.update((TEXT_ENCODER + key, value) for key, value in (checkpoint.text_encoder or {}).items())
    extra.update((key + SCALES, one.scales) for key, one in quantized.items())
    for key in extra:
        if key in tensors:
            raise MismatchError(f"{path}: the framework has a tensor called {key}, a name that this format needs")
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
    tensors.update(extra)
    coding: dict[str, Any] = {}
    if quantized:
        coding["int8"] = {key: {"largest": one.largest, "mean": one.mean} for key, one in quantized.items()}
    if compress:
        counts = {} if mask is None else {BACKBONE + key + BITMASK: kept.numel() for key, kept in mask.tensors.items()}
        tensors, coding["packed"] = compress_tensors(tensors, counts)
    if coding:
        metadata |= {"format": CODED_FORMAT, CODING: _dump(coding)}
    files.write_tensors(path, tensors, metadata)


def find_checkpoint(path: Path | str) -> Path:
    """Return the checkpoint file that a path names: itself, or the one in a run folder.

    Raises:
        MissingFileError: If there is no such file, or the folder holds no checkpoint.
        InputError: If the file cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return files.existing_file(path)
    if (path / NAME).exists():
        return path / NAME
    if (path / "state" / "state.pt").exists():
        raise MissingFileError(f"{path}: this run is not finished; resume it with `ovstrans finetune` (`resume=True`)")
    if (path / "recipe.toml").exists():
        raise MissingFileError(f"{path}: the run has no {NAME} and no state to resume from; train it again")
    raise MissingFileError(f"{path}: no {NAME} in this folder; give a run of `ovstrans finetune`")


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint. Its state comes back dense, on the CPU, with exact zeros where it is masked.

    Args:
        path: A checkpoint file, or the folder of a run.

    Raises:
        MissingFileError: As `find_checkpoint` does.
        InputError: If the file is truncated or of another format, or its parts do not agree. The message names the
            file and the entry.
    """
    path = find_checkpoint(path)
    where, found = str(path), files.read_format(path)
    if found not in FORMATS:
        raise InputError(_refusal(path, found))
    with StoredTensors(path) as stored:
        return _parse(stored, stored.metadata, found, where)


def _parse(stored: MutableMapping[str, Tensor], metadata: Mapping[str, str], found: str, where: str) -> Checkpoint:
    require_entries(metadata, METADATA if found == FORMAT else (*METADATA, CODING), where)
    objects = {
        key: parse_object(metadata[key], f"{where}: {key}")
        for key in ("options", "vocabulary", "clip", "recipe", "provenance", "mask")
    }
    for key in _CLIP:
        if key not in objects["clip"]:
            raise InputError(f"{where}: clip has no {key!r}; make the file again")
    _check_clip(objects["clip"], where)
    try:
        vocabulary = Vocabulary.from_json(objects["vocabulary"])
    except InputError as error:
        raise InputError(f"{where}: vocabulary: {error}") from error
    coding = {} if found == FORMAT else parse_object(metadata[CODING], f"{where}: {CODING}")
    for key, value in coding.items():
        if key not in ("packed", "int8") or not isinstance(value, dict):
            raise InputError(f"{where}: {CODING} has an entry {key!r} that is not known; update ovstrans")
    tensors = CompressedTensors(stored, coding["packed"], where) if "packed" in coding else stored
    embeddings, owner = _take_text(tensors, len(vocabulary), where)
    mask = _take_mask(tensors, parse_shapes(metadata["shapes"], where), objects["mask"], where)
    quantized = restore_int8(tensors, coding["int8"], where) if "int8" in coding else {}
    text_encoder = {key: tensors.pop(key) for key in list(tensors) if key.startswith(TEXT_ENCODER)}
    state = dict(tensors)
    _refuse_nan(state, where)
    return Checkpoint(
        framework=metadata["framework"],
        options=objects["options"],
        state=state,
        mask=mask,
        text_embeddings=embeddings,
        text_owner=owner,
        vocabulary=vocabulary,
        clip=objects["clip"],
        recipe=objects["recipe"],
        provenance=objects["provenance"],
        text_encoder={key.removeprefix(TEXT_ENCODER): value for key, value in text_encoder.items()} or None,
        quantized=quantized,
        created_by=metadata["created_by"],
        path=where,
    )


def _check_clip(clip: Mapping[str, Any], where: str) -> None:
    """Raise InputError if an entry about the CLIP is of another type than `Clip.describe` gives it."""
    for key in ("model", "pretrained", "weights_sha256"):
        if not isinstance(clip[key], str):
            raise InputError(f"{where}: clip: {key} is {clip[key]!r}, a text is needed; {DAMAGED}")
    for key in ("mean", "std"):
        numbers = clip[key]
        sound = isinstance(numbers, list) and len(numbers) == 3 and all(type(each) in (int, float) for each in numbers)
        if not sound or (key == "std" and not all(0 < each <= 1e6 for each in numbers)):
            raise InputError(
                f"{where}: clip: {key} is {numbers!r}, a number for each of 3 channels is needed; {DAMAGED}"
            )


def _refusal(path: Path, found: str) -> str:
    """Return the error message for a file that is no checkpoint."""
    from ovstrans.file_kinds import recognize

    kind = recognize(path)
    if kind is None and path.suffix == ".safetensors":
        files.read_metadata(path)  # says what is wrong with it
    what = "" if kind is None else f"; it is {kind.name}" + (f", {kind.remedy}" if kind.remedy else "")
    wanted = f"its format is {found or None!r}, {FORMAT!r} is needed"
    return f"{path}: not a checkpoint: {wanted}{what or '; give a run of `ovstrans finetune`'}"


def _take_mask(
    tensors: MutableMapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], about: Mapping[str, Any], where: str
) -> Mask | None:
    """Make the masked tensors dense, in place, and return the mask with what the file says of it."""
    kept = to_dense(tensors, shapes, where=where)
    if not kept:
        return None
    fields = {key: str(about.get(key, "")) for key in _MASK}
    recipe = about.get("recipe", {})
    return Mask(kept, recipe=recipe if isinstance(recipe, dict) else {}, path=where, **fields)


def _take_text(tensors: MutableMapping[str, Tensor], classes: int, where: str) -> tuple[Tensor, Tensor]:
    """Remove the text classifier's embeddings and owners from the tensors and return them."""
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
