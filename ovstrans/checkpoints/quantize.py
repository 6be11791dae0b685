"""Weights as 8-bit integers: each output channel of a tensor is int8 times a float32 scale.

A tensor `W` [O, ...] is stored as int8 of the same shape, and `W.scales`, float32 [O]: the largest magnitude of each
channel over 127. Its values are int8 times the scale of their channel, in float32. Zeros stay zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.file import DAMAGED

SCALES = ".scales"
"""End of the name of a tensor's scales."""

_LARGEST = 127


@dataclass(frozen=True, eq=False)
class Quantized:
    """How a tensor is quantized.

    Attributes:
        scales: Scales [O] of its output channels.
        largest: Largest error of a weight, over the mean magnitude of the weights that are not zero.
        mean: Mean error of the weights that are not zero, over the same.
    """

    scales: Tensor
    largest: float
    mean: float

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Quantized):
            return NotImplemented
        same = (self.largest, self.mean) == (other.largest, other.mean)
        return same and torch.equal(self.scales, other.scales)

    __hash__ = None  # type: ignore[assignment]  # equality is by tensors


def rounding_errors(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return the largest and the mean error of the weights that are not zero, over their mean magnitude."""
    before = before.float()
    weights = before[before != 0]
    if not len(weights):
        return 0.0, 0.0
    difference, size = (after.float()[before != 0] - weights).abs(), float(weights.abs().mean())
    return float(difference.max()) / size, float(difference.mean()) / size


def quantize(value: Tensor) -> tuple[Tensor, Quantized]:
    """Round a tensor [O, ...] to multiples of a scale for each of its output channels.

    Returns:
        The rounded tensor, float32, and its scales and errors.
    """
    value = value.detach().cpu().float()
    rows = value.reshape(len(value), -1)
    scales = rows.abs().amax(dim=1) / _LARGEST
    whole = torch.where(scales[:, None] > 0, rows / scales[:, None], 0.0).round_().clamp_(-_LARGEST, _LARGEST)
    rounded = (whole * scales[:, None]).reshape(value.shape)
    return rounded, Quantized(scales, *rounding_errors(value, rounded))


def to_int8(value: Tensor, scales: Tensor, where: str) -> Tensor:
    """Return a rounded tensor as integers.

    Raises:
        MismatchError: If it is not a multiple of its scales. The message begins with `where`.
    """
    rows = value.detach().cpu().float().reshape(len(value), -1)
    whole = rows / torch.where(scales > 0, scales, 1.0)[:, None]
    integers = whole.round()
    lost = ((whole - integers).abs() > 1e-3) | (integers.abs() > _LARGEST) | ((scales == 0)[:, None] & (rows != 0))
    if bool(lost.any()):
        raise MismatchError(f"{where}: has changed since it was rounded to int8; not written (round it again)")
    return integers.to(torch.int8).reshape(value.shape)


def restore_int8(tensors: MutableMapping[str, Tensor], entries: Mapping[str, Any], where: str) -> dict[str, Quantized]:
    """Replace integers and scales by the values they stand for, in place, one tensor at a time.

    Args:
        tensors: Dense tensors of a checkpoint.
        entries: The errors of each quantized tensor, by its name.
        where: Beginning of messages.

    Raises:
        InputError: If parts are missing or do not agree.
    """
    found = {}
    for name, errors in entries.items():
        for key in (name, name + SCALES):
            if key not in tensors:
                raise InputError(f"{where}: {key} is missing; {DAMAGED}")
        value, scales = tensors.pop(name), tensors.pop(name + SCALES)
        if value.dtype != torch.int8 or value.dim() < 1:
            raise InputError(f"{where}: {name} is said to be int8 and is not; {DAMAGED}")
        if scales.dtype != torch.float32 or scales.shape != value.shape[:1]:
            raise InputError(f"{where}: {name + SCALES} does not hold a float32 for each output channel; {DAMAGED}")
        if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
            raise InputError(f"{where}: {name + SCALES} holds values that are no scales; {DAMAGED}")
        kinds = [type(errors.get(key)) for key in ("largest", "mean")] if isinstance(errors, dict) else []
        if kinds != [float, float]:
            raise InputError(f"{where}: coding has no errors of {name}; {DAMAGED}")
        tensors[name] = value.float().mul_(scales.reshape(-1, *[1] * (value.dim() - 1)))
        found[name] = Quantized(scales, errors["largest"], errors["mean"])
    return found
