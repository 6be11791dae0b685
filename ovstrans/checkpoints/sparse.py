"""Masked tensors without their zeros: `W` as `W.values`, its kept values in C order, and `W.bitmask`, its mask."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import numpy as np
import torch
from torch import Tensor

from ovstrans.checkpoints.compress import BITMASK
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.file import DAMAGED, pack, unpack
from ovstrans.masks.mask import Mask

BACKBONE = "backbone."
"""Prefix of the image encoder's keys."""

VALUES = ".values"


def to_sparse(state: Mapping[str, Tensor], mask: Mask | None, *, where: str) -> dict[str, Tensor]:
    """Return a framework's state with every masked tensor `W` as `W.values` and `W.bitmask`.

    Raises:
        MismatchError: If a masked tensor is missing, of another shape or not zero where it is masked, or if the
            framework has a tensor whose name is reserved for the sparse format. The message begins with `where`.
    """
    tensors = dict(state)
    for name, kept in {} if mask is None else mask.tensors.items():
        key = BACKBONE + name
        if key not in tensors:
            raise MismatchError(f"{where}: the mask is about {name}, but the state has no {key}; not written")
        weight = tensors.pop(key).detach().cpu()
        if weight.shape != kept.shape:
            raise MismatchError(
                f"{where}: {key} has shape {list(weight.shape)}, its mask {list(kept.shape)}; not written"
            )
        nonzero = int((weight[~kept] != 0).sum())
        if nonzero:
            raise MismatchError(
                f"{where}: {nonzero} masked weights of {key} are not zero, the mask was not in force; "
                "not written (train inside 'with mask.held(optimizer)', or call mask.apply first)"
            )
        for part, value in ((VALUES, weight[kept]), (BITMASK, pack(kept))):
            if key + part in tensors:
                raise MismatchError(f"{where}: {key + part} is a name that the sparse form needs; not written")
            tensors[key + part] = value
    return tensors


def to_dense(
    tensors: MutableMapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, where: str
) -> dict[str, Tensor]:
    """Replace values and bits by dense tensors, in place, one tensor at a time.

    Args:
        tensors: The tensors of a checkpoint.
        shapes: Shapes of the masked tensors, by key.
        where: Beginning of messages.

    Returns:
        Boolean tensors of what is kept, by name in the image encoder.

    Raises:
        InputError: If parts are missing or do not agree.
    """
    kept: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        for part in (VALUES, BITMASK):
            if key + part not in tensors:
                raise InputError(f"{where}: {key + part} is missing; {DAMAGED}")
        if key in tensors or not key.startswith(BACKBONE):
            raise InputError(f"{where}: {key} is listed as masked and cannot be; {DAMAGED}")
        bits = unpack(tensors.pop(key + BITMASK), shape, f"{where}: {key + BITMASK}")
        values = tensors.pop(key + VALUES)
        count = int(np.count_nonzero(bits.numpy()))
        if values.dim() != 1 or len(values) != count:
            raise InputError(f"{where}: {key + VALUES} is {list(values.shape)}, its bitmask keeps {count}; {DAMAGED}")
        tensors[key] = torch.zeros(shape, dtype=values.dtype).masked_scatter_(bits, values)
        kept[key.removeprefix(BACKBONE)] = bits
    for key in tensors:
        if key.endswith(BITMASK):
            raise InputError(f"{where}: {key} has no entry in shapes; {DAMAGED}")
    return kept
