"""The optimizer, AdamW over parameter groups, and the training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ovstrans.environment import Precision
from ovstrans.errors import InputError
from ovstrans.training.distributed import World
from ovstrans.training.state import seed_step

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.Embedding)


class Rates(Protocol):
    """Learning rates and weight decay; `recipes.schema.Optimizer` has them."""

    @property
    def lr(self) -> float:
        """Learning rate of the head."""

    @property
    def backbone_rate(self) -> float:
        """Factor on it for the backbone."""

    @property
    def weight_decay(self) -> float:
        """Weight decay."""


def parameter_groups(model: nn.Module, settings: Rates, backbone: str = "backbone") -> list[dict[str, Any]]:
    """Group the trainable parameters for AdamW: backbone or head, with weight decay or without.

    Weight matrices and kernels decay. Norms, biases, embeddings, and learned scalars and vectors (the temperature, the
    non-object vector) do not. Frozen parameters are in no group, hence get no optimizer state. There are always four
    groups, some of them maybe empty, so that a resumed run finds the groups that it saved.

    Args:
        model: The model.
        settings: Learning rates and weight decay.
        backbone: Name of the submodule that is the backbone.

    Returns:
        Groups with `params`, `name`, `lr`, `weight_decay`, and `base_lr`, which `set_rate` multiplies.
    """
    exempt = {
        id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {(b, d): [] for b in (False, True) for d in (False, True)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_backbone = name.startswith(f"{backbone}.")
            decays = name.endswith("weight") and parameter.dim() > 1 and id(parameter) not in exempt
            groups[in_backbone, decays].append(parameter)
    result = []
    for (in_backbone, decays), parameters in groups.items():
        rate = settings.lr * (settings.backbone_rate if in_backbone else 1.0)
        result.append(
            {
                "params": parameters,
                "name": f"{'backbone' if in_backbone else 'head'}{'' if decays else ', no decay'}",
                "lr": rate,
                "base_lr": rate,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
        )
    return result


def make_optimizer(model: nn.Module, settings: Rates, backbone: str = "backbone") -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; see `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(model, settings, backbone), lr=settings.lr)


def drop_frozen(optimizer: torch.optim.Optimizer) -> int:
    """Remove parameters that no longer require a gradient from the optimizer, with their state.

    Returns:
        The number of parameters removed.
    """
    dropped = 0
    for group in optimizer.param_groups:
        frozen = [parameter for parameter in group["params"] if not parameter.requires_grad]
        for parameter in frozen:
            parameter.grad = None
            optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
        dropped += len(frozen)
    return dropped


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("base_lr", group["lr"]) * factor


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
        optimizer: The optimizer; its groups have a `base_lr`, see `parameter_groups`.
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
        values = {name: float(each.detach()) for name, each in losses.items()}
        if world.size > 1:
            values = world.mean(values)
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
