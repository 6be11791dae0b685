"""The mask file: writing and reading it.

A safetensors file. One entry per pruned tensor, its key the parameter's name in the image encoder, its
value the packed bits of `masks.bits` (uint8, one dimension; 1 is kept). The metadata are strings:

    format           "ovstrans.mask/1"
    model            open_clip model that it was made from
    pretrained       tag or file of its weights
    weights_sha256   hash of that image encoder, see `clip.weights.weights_sha256`; "" where unknown
    method           how it was made: imp, magnitude, random, ...
    sparsity         zeros / weights in the file, a decimal number
    shapes           JSON object: key to list of sizes
    recipe           JSON object: the settings it was made with
    created_by       program and version

Reading it takes numpy, json and safetensors:

    import json
    import math

    import numpy as np
    from safetensors import safe_open

    def read_mask(path):
        with safe_open(path, framework="np") as file:
            shapes = json.loads(file.metadata()["shapes"])
            bits = {key: file.get_tensor(key) for key in file.keys()}
        return {
            key: np.unpackbits(bits[key], count=math.prod(shape)).astype(bool).reshape(shape)
            for key, shape in shapes.items()
        }

RN50's body (23,445,504 weights) takes 2.9 MB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ovstrans import files
from ovstrans.errors import InputError
from ovstrans.masks.bits import DAMAGED, pack, parse_object, parse_shapes, require_entries, unpack
from ovstrans.masks.mask import Mask

FORMAT = "ovstrans.mask/1"
METADATA = (
    "format",
    "model",
    "pretrained",
    "weights_sha256",
    "method",
    "sparsity",
    "shapes",
    "recipe",
    "created_by",
)
"""The entries that every mask file has."""

_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")


def origin(mask: Mask) -> dict[str, str]:
    """What a mask is and what it was made from, as the metadata of a file made of it."""
    return {
        "model": mask.model,
        "pretrained": mask.pretrained,
        "weights_sha256": mask.weights_sha256,
        "method": mask.method,
        "sparsity": repr(mask.sparsity),
        "recipe": json.dumps(mask.recipe, allow_nan=False),
        "created_by": mask.created_by,
    }


def save_mask(path: Path | str, mask: Mask) -> None:
    """Write a mask, atomically; equal masks give equal bytes. InputError where `path` is unwritable."""
    metadata = {
        **origin(mask),
        "format": FORMAT,
        "shapes": json.dumps({key: list(shape) for key, shape in mask.shapes.items()}),
    }
    files.write_tensors(path, {key: pack(kept) for key, kept in mask.tensors.items()}, metadata)


def load_mask(path: Path | str) -> Mask:
    """Read a mask file.

    Raises InputError, naming the file and the tensor, where it is missing, truncated, of another format,
    or where its bits do not agree with its metadata.
    """
    tensors, metadata = files.read_tensors(path)
    where = str(path)
    _require_format(metadata, tensors, where)
    require_entries(metadata, METADATA, where)
    shapes = parse_shapes(metadata["shapes"], where)
    for key in tensors:
        if key not in shapes:
            raise InputError(f"{where}: {key} has no entry in shapes; {DAMAGED}")
    for key in shapes:
        if key not in tensors:
            raise InputError(f"{where}: shapes names {key}, which has no bits; make or copy the file again")
    if not _SHA256.fullmatch(metadata["weights_sha256"]):
        raise InputError(f"{where}: weights_sha256 {metadata['weights_sha256']!r} is not a SHA-256 in hexadecimal")
    mask = Mask(
        tensors={key: unpack(tensors[key], shape, f"{where}: {key}") for key, shape in shapes.items()},
        model=metadata["model"],
        pretrained=metadata["pretrained"],
        weights_sha256=metadata["weights_sha256"],
        method=metadata["method"],
        recipe=parse_object(metadata["recipe"], f"{where}: recipe"),
        created_by=metadata["created_by"],
        path=where,
    )
    _require_sparsity(metadata["sparsity"], mask, where)
    return mask


def _require_format(metadata: Mapping[str, str], tensors: Mapping[str, Tensor], where: str) -> None:
    found = metadata.get("format")
    if found == FORMAT:
        return
    if any(key.endswith(".weight_mask") for key in tensors):
        raise InputError(
            f"{where}: holds weight_mask entries, not {FORMAT!r}; "
            "convert it with ovstrans.interop.foreign_masks.load_foreign_mask"
        )
    kind = "has no format entry" if found is None else f"its format is {found!r}"
    raise InputError(f"{where}: not a mask file: {kind}, {FORMAT!r} is needed; 'ovstrans inspect' tells what it is")


def _require_sparsity(text: str, mask: Mask, where: str) -> None:
    try:
        sparsity = float(text)
    except ValueError as error:
        raise InputError(f"{where}: sparsity {text!r} is not a number") from error
    # Half a weight is the most that a rounded decimal may be off; this also refuses NaN.
    if not abs(sparsity - mask.sparsity) * mask.total <= 0.5 + 1e-6:
        raise InputError(f"{where}: sparsity says {text}, the bits say {mask.sparsity:.9g}; {DAMAGED}")
