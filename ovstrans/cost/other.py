"""Sampling and resizing: multiply-accumulates that no counter of matrix products sees, in closed form.

An interpolated value is a weighted sum of its neighbours, one MAC each: 4 for bilinear, 16 for bicubic in two
dimensions. Making the weights is not counted: it happens once a position, not once a channel. A resize to the
size that is there already is a copy. Deformable attention (Zhu et al. 2021, eq. 3) samples bilinearly, then
weighs each sample and adds it up: one MAC more a sample.

Shapes: `B` batch, `C` channels, `N` samples of a channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_RESIZES = {
    torch.ops.aten.upsample_linear1d: ("linear_resizing", 2),
    torch.ops.aten.upsample_bilinear2d: ("bilinear_resizing", 4),
    torch.ops.aten.upsample_bicubic2d: ("bicubic_resizing", 16),
    torch.ops.aten.upsample_trilinear3d: ("trilinear_resizing", 8),
}
"""What resizes to the name of the operation and the neighbours of a value."""

_SAMPLINGS = {
    torch.ops.aten.grid_sampler: {0: 4, 1: 0, 2: 16},  # an operation of its own in inference mode only
    torch.ops.aten.grid_sampler_2d: {0: 4, 1: 0, 2: 16},
    torch.ops.aten.grid_sampler_3d: {0: 8, 1: 0},
}
"""What samples to the neighbours of a value, by mode: linear, nearest, cubic."""


class OtherOperations(TorchDispatchMode):
    """While it is on, `record(operation, macs)` hears of every sampling and resizing.

    running: tells which module runs.
    """

    def __init__(self, record: Callable[[str, int], None], running: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.record, self.running = record, running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in _RESIZES:
            operation, neighbours = _RESIZES[packet]
            if made.shape != args[0].shape:
                self.record(operation, neighbours * made.numel())
        elif packet in _SAMPLINGS:
            self._sampled(made, _neighbours(packet, args))
        return made

    def _sampled(self, made: Tensor, neighbours: int) -> None:
        if is_deformable_attention(self.running()):
            self.record("deformable_sampling", neighbours * made.numel())
            self.record("deformable_weighting", made.numel())
        elif neighbours:
            self.record("grid_sampling", neighbours * made.numel())


def is_deformable_attention(module: nn.Module) -> bool:
    """Whether a module is deformable attention, by the names that every implementation of it gives its layers."""
    return hasattr(module, "sampling_offsets") and hasattr(module, "attention_weights")


def _neighbours(packet: Any, args: Any) -> int:
    volume = packet is torch.ops.aten.grid_sampler and args[0].dim() == 5
    return _SAMPLINGS[torch.ops.aten.grid_sampler_3d if volume else packet][args[2]]
