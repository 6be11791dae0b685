"""Writing and reading mask files, the packed bits in them, and the files of pruned weights beside them.

A mask file is a safetensors file with one entry per pruned tensor. The key is the parameter's name in the image
encoder. The value is the boolean tensor as packed bits: flattened in C order, bit 1 is kept, eight to a byte with the
first in the most significant bit (`numpy.packbits`), the last byte filled up with zeros; uint8, one dimension. Sparse
checkpoints pack their masks the same way. The metadata are strings:

    format           "ovstrans.mask/1"
    model            open_clip model that it was made from
    pretrained       tag or file of its weights
    weights_sha256   hash of that image encoder, see `clip.weights.weights_sha256`; "" if unknown
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

A weights file is a safetensors file with the plain state dict of the image encoder as pruning left it (keys without
`visual.`), which everything that takes weights reads. Its metadata say where the weights come from: `format`
("ovstrans.weights/1"), `model`, `pretrained`, `weights_sha256` (of the weights that were pruned), `method`, `sparsity`,
`mask` (name of the mask file), `recipe` (JSON), `created_by`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans import files
from ovstrans.errors import InputError
from ovstrans.masks.mask import Mask
from ovstrans.parsing import parse_json

FORMAT = "ovstrans.mask/1"
WEIGHTS_FORMAT = "ovstrans.weights/1"
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

DAMAGED = "the file is damaged, copy or make it again"
"""End of the messages about files whose parts do not agree."""

_MOST_DIMENSIONS = 8

_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")


def mask_metadata(mask: Mask) -> dict[str, str]:
    """Return what a mask is and what it was made from, as metadata of a file made of it."""
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
    """Write a mask atomically; equal masks give equal bytes.

    Raises:
        InputError: If nothing can be written at `path`.
    """
    metadata = {
        **mask_metadata(mask),
        "format": FORMAT,
        "shapes": json.dumps({key: list(shape) for key, shape in mask.shapes.items()}),
    }
    files.write_tensors(path, {key: pack(kept) for key, kept in mask.tensors.items()}, metadata)


def load_mask(path: Path | str) -> Mask:
    """Read a mask file, or the `weight_mask` entries of a file of torch's pruning or OpenTrans.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If the file is truncated or of another format, or its bits do not agree with its metadata. The
            message names the file and the tensor, or says what the file is and where it goes.
    """
    if files.read_format(path) != FORMAT:
        from ovstrans.masks.foreign import load_foreign_mask

        return load_foreign_mask(Path(path))
    tensors, metadata = files.read_tensors(path)
    where = str(path)
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


def pruned_weights_path(mask: Path | str) -> Path:
    """Return the path of the pruned weights of a mask file: `mask.weights.safetensors` for `mask.safetensors`."""
    mask = Path(mask)
    return mask.with_name(f"{mask.stem}.weights.safetensors")


def save_weights(path: Path | str, weights: Mapping[str, Tensor], mask: Mask, mask_name: str = "") -> None:
    """Write pruned weights, atomically.

    Args:
        path: File to write.
        weights: State dict of the image encoder.
        mask: Mask of the weights, whose origin is recorded.
        mask_name: Name of the mask file.
    """
    files.write_tensors(path, weights, {**mask_metadata(mask), "format": WEIGHTS_FORMAT, "mask": mask_name})


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the state dict and the metadata of a weights file.

    Raises:
        InputError: The file is missing, damaged, or of another format.
    """
    weights, metadata = files.read_tensors(path)
    if metadata.get("format") != WEIGHTS_FORMAT:
        raise InputError(f"{path}: its format is {metadata.get('format')!r}, {WEIGHTS_FORMAT!r} is needed")
    return weights, metadata


def _require_sparsity(text: str, mask: Mask, where: str) -> None:
    try:
        sparsity = float(text)
    except ValueError as error:
        raise InputError(f"{where}: sparsity {text!r} is not a number") from error
    # Half a weight is the most that a rounded decimal may be off; this also refuses NaN.
    if not abs(sparsity - mask.sparsity) * mask.total <= 0.5 + 1e-6:
        raise InputError(f"{where}: sparsity says {text}, the bits say {mask.sparsity:.9g}; {DAMAGED}")


def pack(kept: Tensor) -> Tensor:
    """Pack a boolean tensor of any shape into bits, uint8 [ceil(n / 8)]."""
    return torch.from_numpy(np.packbits(kept.detach().cpu().contiguous().numpy().reshape(-1)))


def unpack(bits: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
    """Unpack bits into a boolean tensor.

    Args:
        bits: What `pack` made.
        shape: Shape of the result.
        where: Beginning of messages.

    Raises:
        InputError: If the bits are of another type or length, or the padding is not zero.
    """
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.dim() != 1:
        kind = f"{str(bits.dtype).removeprefix('torch.')} {list(bits.shape)}"
        raise InputError(f"{where}: holds {kind}, packed bits (uint8, one dimension) are needed")
    if len(bits) != -(-count // 8):
        raise InputError(f"{where}: {len(bits)} bytes of bits, shape {list(shape)} needs {-(-count // 8)}; {DAMAGED}")
    flat = np.unpackbits(bits.numpy())
    if flat[count:].any():
        raise InputError(f"{where}: bits are set beyond shape {list(shape)}; {DAMAGED}")
    return torch.from_numpy(flat[:count].view(np.bool_)).reshape(shape)


def parse_shapes(text: str, where: str) -> dict[str, tuple[int, ...]]:
    """Parse the `shapes` entry of a file's metadata; InputError if it does not map keys to lists of sizes."""
    shapes = parse_object(text, f"{where}: shapes")
    for key, shape in shapes.items():
        sound = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
        sound = sound and len(shape) <= _MOST_DIMENSIONS and math.prod(shape) < 1 << 40
        if not sound:
            raise InputError(f"{where}: the shape of {key} is {shape!r}, a list of sizes is needed; {DAMAGED}")
    return {key: tuple(shape) for key, shape in shapes.items()}


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse a JSON object in a file's metadata; InputError if it is anything else."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}); {DAMAGED}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object is needed, not a {type(value).__name__}; {DAMAGED}")
    return value


def require_entries(metadata: Mapping[str, str], entries: Collection[str], where: str) -> None:
    """Raise InputError naming the first of `entries` that a file's metadata lacks."""
    for entry in entries:
        if entry not in metadata:
            raise InputError(f"{where}: its metadata has no {entry!r}; make the file again")
