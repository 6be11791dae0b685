"""Sparse and dense forms of a state dict: a masked tensor as its kept values and its packed bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.bits import DAMAGED, pack, unpack
from ovstrans.masks.mask import Mask

BACKBONE = "backbone."
VALUES = ".values"
BITMASK = ".bitmask"


def sparse_state(state: Mapping[str, Tensor], mask: Mask | None, *, where: str) -> dict[str, Tensor]:
    """A framework's state with every masked tensor `W` as `W.values` and `W.bitmask`.

    Raises MismatchError, starting with `where`, where a masked tensor is missing, of another shape or not
    zero where it is masked, or where the framework uses a name that this form needs.
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


def densify(tensors: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, where: str) -> dict[str, Tensor]:
    """Replace values and bits by dense tensors, in place; returns the bits by name in the image encoder.

    shapes: of the masked tensors, by key.  Raises InputError, starting with `where`, where parts are
    missing or do not agree.
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
        count = int(bits.sum())
        if values.dim() != 1 or len(values) != count:
            raise InputError(f"{where}: {key + VALUES} is {list(values.shape)}, its bitmask keeps {count}; {DAMAGED}")
        dense = torch.zeros(shape, dtype=values.dtype)
        dense[bits] = values
        tensors[key] = dense
        kept[key.removeprefix(BACKBONE)] = bits
    for key in tensors:
        if key.endswith(BITMASK):
            raise InputError(f"{where}: {key} has no entry in shapes; {DAMAGED}")
    return kept
