"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ovstrans.errors import InputError
from ovstrans.training.distributed import World
from ovstrans.training.optim import set_rate
from ovstrans.training.precision import Precision
from ovstrans.training.state import seed_step


class GradientMask(Protocol):
    """What the loop asks of a mask; `ovstrans.Mask` is one."""

    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights."""


@dataclass(frozen=True)
class Step:
    """A finished step: its number from 1, losses by name and their sum, rate of the head, norm of the gradient before
    clipping, seconds it took, and of those the processor's, summed over this process's threads."""

    number: int
    losses: dict[str, float]
    loss: float
    rate: float
    grad_norm: float
    seconds: float
    processor: float


def train(
    model: nn.Module,
    batches: Iterator[Any],
    optimizer: torch.optim.Optimizer,
    *,
    steps: range,
    rate: Callable[[int], float],
    precision: Precision,
    scaler: torch.amp.GradScaler,
    clip_norm: float,
    mask: GradientMask | None,
    world: World,
    seed: int,
) -> Iterator[Step]:
    """Train, one optimizer step at a time, giving each finished step to the caller.

    model: called with a batch, returns named losses; their sum is minimised.  batches: yields at
    least `len(steps)` of them, in place on the device.  steps: numbers from 0, so that a resumed run
    goes on where it stopped.  rate: factor on the base rates at a step.  clip_norm: bound on the
    gradient's norm, 0 for none.  mask: its zeros get no gradient; holding its weights at zero after
    the step is the business of `mask.held(optimizer)`.

    Random numbers follow from (seed, step, rank) alone. Raises InputError at a loss or gradient that
    is not finite, before the weights take it in.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number in steps:
        start, used = time.perf_counter(), time.process_time()
        batch = next(batches)
        seed_step(seed, number, world.rank)
        set_rate(optimizer, rate(number))
        with precision.autocast():
            losses: Mapping[str, torch.Tensor] = model(batch)
        loss = torch.stack([each.float() for each in losses.values()]).sum()
        values = world.mean({name: float(each.detach()) for name, each in losses.items()})
        _require_finite(number, **values)

        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if mask is not None:
            mask.mask_gradients()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf))
        if not scaler.is_enabled():  # a scaler skips the steps whose gradients overflow, and scales less
            _require_finite(number, gradient=norm)
        scaler.step(optimizer)
        scaler.update()

        head = max(group["lr"] for group in optimizer.param_groups)
        total = sum(values.values())
        took, used = time.perf_counter() - start, time.process_time() - used
        yield Step(number + 1, values, total, head, norm, took, used)


def _require_finite(number: int, **values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(
                f"step {number + 1}: {name} is {value}; training diverged: lower optimizer.lr, bound the gradient "
                "by optimizer.clip_norm, or compute with training.precision=fp32"
            )
