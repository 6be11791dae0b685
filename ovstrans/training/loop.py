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
    """Interface of a mask that the loop needs; `ovstrans.Mask` has it."""

    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights."""


@dataclass(frozen=True)
class Step:
    """A finished step.

    Attributes:
        number: Number of the step, from 1.
        losses: Losses by name, means over the processes.
        loss: Sum of the losses.
        rate: Learning rate of the head.
        grad_norm: Norm of the gradient before clipping.
        seconds: Duration.
        processor: Seconds of processor time, summed over the threads of this process.
    """

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
    """Train one optimizer step at a time.

    Random numbers depend on (seed, step, rank) alone.

    Args:
        model: Returns named losses for a batch; their sum is minimised.
        batches: Yields at least `len(steps)` batches, on the device.
        optimizer: The optimizer; its groups have a `base_lr`, see `optim.set_rate`.
        steps: Numbers of the steps, from 0; a resumed run begins with a later one.
        rate: Returns the factor on the learning rate at a step.
        precision: Precision of the forward pass.
        scaler: Gradient scaler, see `Precision.scaler`.
        clip_norm: Largest norm of the gradient; 0 for no limit.
        mask: Masked weights get no gradient. `mask.held(optimizer)` keeps them at zero after the step.
        world: This process.
        seed: Seed of the run.

    Yields:
        Each finished step.

    Raises:
        InputError: A loss or the gradient is not finite; the weights are not changed by that step.
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
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
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
