"""Multiply-accumulates of a training step, per image: what autograd runs, and what the paper counts.

A layer of C MACs costs C forward, C for the gradient of its input and C for that of its weights.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ovstrans.cost.flops import Flops
from ovstrans.cost.params import frozen_weights


@dataclass(frozen=True)
class TrainingFlops:
    """MACs of one image in one step."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """forward + backward."""
        return self.forward + self.backward

    def as_json(self) -> dict[str, int]:
        """The entry of a report."""
        return {"forward": self.forward, "backward": self.backward, "total": self.total}


def executed_training(
    module: nn.Module, image_size: tuple[int, int], *, frozen: Collection[str] = (), batch: int = 2
) -> TrainingFlops:
    """What autograd executes, by torch's dispatch counter on a real backward pass over meta tensors.

    Masked weights run dense. A frozen layer needs no weight gradient, and no input gradient where
    nothing that trains comes before it. The loss itself is left out. frozen: layers of the image tower.
    """
    still = frozen_weights(module, frozen)
    shadow: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        trains = parameter.requires_grad and name not in still
        shadow[name] = torch.empty_like(parameter, device="meta").requires_grad_(trains)
    shadow |= {name: torch.empty_like(value, device="meta") for name, value in module.named_buffers()}
    images = torch.empty(batch, 3, *image_size, device="meta")
    modes = {inner: inner.training for inner in module.modules()}
    module.train()
    try:
        with FlopCounterMode(display=False) as forward:
            output = torch.func.functional_call(module, shadow, (images,))
        with FlopCounterMode(display=False) as backward:
            if output.requires_grad:
                output.sum().backward()
    finally:
        for inner, was in modes.items():
            inner.training = was
    return TrainingFlops(forward.get_total_flops() // 2 // batch, backward.get_total_flops() // 2 // batch)


def published_training(flops: Flops, *, frozen: Collection[str] = (), fixed: Collection[str] = ()) -> TrainingFlops:
    """The formula of OpenTrans (supplement 6.2), layer by layer, from a forward count.

    Of a layer of C MACs with density d: forward dC, input gradient C (also in a frozen prefix, which
    autograd skips), weight gradient dC unless it is frozen. frozen: layers of the trunk.  fixed:
    components of which nothing trains.
    """
    forward = weights = 0
    for layer in flops.layers:
        still = layer.component in fixed or (layer.component == "trunk" and layer.name in frozen)
        forward += layer.effective
        weights += 0 if still else layer.effective
    return TrainingFlops(forward // flops.batch, (flops.dense + weights) // flops.batch)
