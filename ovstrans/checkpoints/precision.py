"""The types that a checkpoint's weights are stored in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.checkpoints.quantize import Quantized, quantize, rounding_errors
from ovstrans.errors import InputError

VALUES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
"""Types by name, as recipes name precisions."""


@dataclass(frozen=True)
class Rounding:
    """The rounding error of weights that were stored in another type.

    Attributes:
        layers: Largest and mean error of each tensor's weights that are not zero, over their mean magnitude.
        rms: Root mean square of all errors over that of all weights.
    """

    layers: dict[str, tuple[float, float]]
    rms: float


def convert_values(checkpoint: Checkpoint, values: str) -> tuple[Checkpoint, Rounding]:
    """Store the weights of a checkpoint in another type.

    Tensors of two and more dimensions are converted; with int8, each output channel has a scale of its own. Biases,
    norms and their statistics are small and keep their type, and so do the text embeddings. Whoever loads the file
    computes in float32 again.

    Args:
        checkpoint: The checkpoint, which is left as it is.
        values: One of `VALUES`.

    Returns:
        The converted checkpoint, and the error.

    Raises:
        InputError: If there is no such type, or a weight is too large for it.
    """
    if values not in VALUES:
        raise InputError(f"`values={values}`: unknown; use {', '.join(VALUES)}")
    kind, state, error, power = VALUES[values], dict(checkpoint.state), 0.0, 0.0
    quantized: dict[str, Quantized] = {}
    layers = {}
    for key, value in state.items():
        if not value.is_floating_point() or value.dim() < 2 or not value.numel():
            continue
        finite = bool(torch.isfinite(value).all())
        if kind is torch.int8 and not finite:
            raise InputError(f"`values=int8`: {key} has weights that are not finite; use bf16 or fp32")
        converted = _convert(key, value, kind, quantized)
        if finite and not bool(torch.isfinite(converted).all()):
            raise InputError(
                f"`values={values}`: {key} has weights up to {float(value.abs().max()):.3g}; use bf16 or fp32"
            )
        state[key] = converted
        layers[key] = rounding_errors(value, converted)
        error += float((converted.float() - value.float()).square().sum())
        power += float(value.float().square().sum())
    rounding = Rounding(layers, (error / power) ** 0.5 if power else 0.0)
    return replace(checkpoint, state=state, quantized=quantized), rounding


def _convert(key: str, value: Tensor, kind: torch.dtype, quantized: dict[str, Quantized]) -> Tensor:
    """Return a tensor in a type; in int8 as the float32 that it stands for, with its scales in `quantized`."""
    if kind is not torch.int8:
        return value.to(kind)
    converted, quantized[key] = quantize(value)
    return converted
