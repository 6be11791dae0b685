"""Kept and cut weights as bits: the packing that mask files and sparse checkpoints share.

A boolean tensor is flattened in C order, True is bit 1, eight to a byte, the first in the most
significant bit (`numpy.packbits`); the last byte is filled up with zeros.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans.errors import InputError

DAMAGED = "the file is damaged, copy or make it again"
"""What messages advise where parts of a file do not agree."""


def pack(kept: Tensor) -> Tensor:
    """Boolean tensor of any shape to its bits, uint8 [ceil(n / 8)]."""
    return torch.from_numpy(np.packbits(kept.detach().cpu().contiguous().numpy().reshape(-1)))


def unpack(bits: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
    """Bits, as `pack` made them, to a boolean tensor of `shape`.

    Raises InputError, starting with `where`, for another type or length, or padding that is not zero.
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
    """The `shapes` entry of a file's metadata; InputError where it is not keys to lists of sizes."""
    shapes = parse_object(text, f"{where}: shapes")
    for key, shape in shapes.items():
        sound = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
        if not sound:
            raise InputError(f"{where}: the shape of {key} is {shape!r}, a list of sizes is needed; {DAMAGED}")
    return {key: tuple(shape) for key, shape in shapes.items()}


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object in a file's metadata; InputError where it is anything else."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}); {DAMAGED}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object is needed, not a {type(value).__name__}; {DAMAGED}")
    return value


def require_entries(metadata: Mapping[str, str], entries: Collection[str], where: str) -> None:
    """InputError naming the first of `entries` that a file's metadata lacks."""
    for entry in entries:
        if entry not in metadata:
            raise InputError(f"{where}: its metadata has no {entry!r}; make the file again")
