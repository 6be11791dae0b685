"""The types that a checkpoint's weights are stored in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.errors import InputError

VALUES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Types by name, as recipes name precisions."""


def convert_values(checkpoint: Checkpoint, values: str) -> tuple[Checkpoint, float]:
    """Store the weights of a checkpoint in another type.

    Tensors of two and more dimensions are converted. Biases, norms and their statistics are small and keep their type,
    and so do the text embeddings. Whoever loads the file computes in float32 again.

    Args:
        checkpoint: The checkpoint, which is left as it is.
        values: One of `VALUES`.

    Returns:
        The converted checkpoint, and the error: root mean square of the differences over that of the weights.

    Raises:
        InputError: If there is no such type, or a weight is too large for it.
    """
    if values not in VALUES:
        raise InputError(f"`values={values}`: unknown; use {', '.join(VALUES)}")
    kind, state, error, power = VALUES[values], dict(checkpoint.state), 0.0, 0.0
    for key, value in state.items():
        if not value.is_floating_point() or value.dim() < 2:
            continue
        state[key] = converted = value.to(kind)
        if bool(torch.isinf(converted).any()) and not bool(torch.isinf(value).any()):
            raise InputError(
                f"`values={values}`: {key} has weights up to {float(value.abs().max()):.3g}; use bf16 or fp32"
            )
        error += float((converted.float() - value.float()).square().sum())
        power += float(value.float().square().sum())
    return replace(checkpoint, state=state), (error / power) ** 0.5 if power else 0.0
