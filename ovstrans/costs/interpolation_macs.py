"""Sampling and resizing: multiply-accumulates that no counter of matrix products sees, in closed form.

An interpolated value is a weighted sum of its neighbours, one MAC each: 4 for bilinear, 16 for bicubic in two
dimensions. Making the weights is not counted: it happens once a position, not once a channel. A resize to the
size that is there already is a copy. Deformable attention (Zhu et al. 2021, eq. 3) samples bilinearly, then
weighs each sample and adds it up: one MAC more a sample.

Shapes: images [B, C, *], positions [B, *, 2 or 3].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_RESIZES = {
    torch.ops.aten.upsample_linear1d.default: ("linear_resizing", 2),
    torch.ops.aten.upsample_bilinear2d.default: ("bilinear_resizing", 4),
    torch.ops.aten.upsample_bicubic2d.default: ("bicubic_resizing", 16),
    torch.ops.aten.upsample_trilinear3d.default: ("trilinear_resizing", 8),
}
"""What resizes (images, size, ...) to the name of the operation and the neighbours of a value."""

_SAMPLINGS = {
    torch.ops.aten.grid_sampler_2d.default: (4, 0, 16),
    torch.ops.aten.grid_sampler_3d.default: (8, 0),
}
"""What samples (images, positions, mode, ...) to the neighbours of a value, by mode: linear, nearest, cubic."""


class ShapesOnly(TorchDispatchMode):
    """While it is on, sampling and resizing of meta tensors only get the shape of their result.

    The long way there takes up half the time of a count. Enter it before other modes, which then see these
    operations as ever.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RESIZES:
            return self._resized(*_RESIZES[func], *args[:2])
        if func in _SAMPLINGS:
            return self._sampled(_SAMPLINGS[func][args[2]], *args[:2])
        return func(*args, **(kwargs or {}))

    def _resized(self, _operation: str, _neighbours: int, images: Tensor, size: Sequence[int]) -> Tensor:
        return images.new_empty([*images.shape[:2], *size])

    def _sampled(self, _neighbours: int, images: Tensor, positions: Tensor) -> Tensor:
        return images.new_empty([*images.shape[:2], *positions.shape[1:-1]])


class OtherOperations(ShapesOnly):
    """While it is on, `record(operation, macs)` hears of every sampling and resizing of meta tensors.

    running: tells which module runs.
    """

    def __init__(self, record: Callable[[str, int], None], running: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.record, self.running = record, running

    def _resized(self, operation: str, neighbours: int, images: Tensor, size: Sequence[int]) -> Tensor:
        made = super()._resized(operation, neighbours, images, size)
        if made.shape != images.shape:
            self.record(operation, neighbours * made.numel())
        return made

    def _sampled(self, neighbours: int, images: Tensor, positions: Tensor) -> Tensor:
        made = super()._sampled(neighbours, images, positions)
        if is_deformable_attention(self.running()):
            self.record("deformable_sampling", neighbours * made.numel())
            self.record("deformable_weighting", made.numel())
        elif neighbours:
            self.record("grid_sampling", neighbours * made.numel())
        return made


def is_deformable_attention(module: nn.Module) -> bool:
    """Whether a module is deformable attention, by the names that every implementation of it gives its layers."""
    return hasattr(module, "sampling_offsets") and hasattr(module, "attention_weights")
