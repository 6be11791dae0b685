"""The training loop: AdamW over parameter groups, random numbers by step, and the state that resumes a run exactly.

A state is a nested dict of tensors, numbers, strings, lists and dicts. It is written atomically by `torch.save` and
read with `weights_only=True`, so that loading one cannot run code.

The state of random number generators is not saved: a loop calls `seed_step` before each step, so that they depend on
(seed, step, rank) alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from ovstrans import files
from ovstrans.clip.torch_file import check_torch_file
from ovstrans.environment import Precision
from ovstrans.errors import InputError
from ovstrans.training.distributed import World

FORMAT = "ovstrans.state/1"
"""Format name that a state file holds."""


def save_state(path: Path | str, state: dict[str, Any]) -> None:
    """Write a state. If the process is killed on the way, the previous state remains.

    Raises:
        InputError: The file cannot be written.
    """
    with files.atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_state(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a state.

    Args:
        path: The file.
        device: Device to put the tensors on.

    Raises:
        InputError: The file is missing, damaged, or not a state.
    """
    path = files.existing_file(path)
    try:
        check_torch_file(path)
        state: Any = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError(f"{path}: not an intact state file; start the run anew") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: its format is {found!r}, {FORMAT!r} is needed; start the run anew")
    return dict(state)


def derive_seed(*parts: int | str) -> int:
    """Return a seed of 63 bits that depends on the parts alone, for instance (seed, "order", 17)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's generators for one step, so that its random numbers do not depend on the steps before."""
    torch.manual_seed(derive_seed(seed, "step", step, rank))


class Stop:
    """Remembers whether SIGINT or SIGTERM came; see `stopping`.

    Attributes:
        signum: Number of the signal that came last; None before the first.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """True once a signal has come."""
        return self.signum is not None

    def now(self, signum: int | None = None) -> None:
        """Restore the previous signal handlers and deliver the signal to them.

        Python's own raise KeyboardInterrupt for SIGINT and end the process for SIGTERM.

        Args:
            signum: Signal to deliver if it came to another process of the group and not to this one; default SIGTERM.
        """
        self._restore()
        signal.raise_signal(self.signum or signum or signal.SIGTERM)

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows signal handlers in the main thread only
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._note)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        second = self.requested
        self.signum = signum
        if second:  # ends the run at once; files are written atomically
            self.now()


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Let SIGINT and SIGTERM only set a flag while the block runs, so that a loop can save its state first.

        with stopping() as stop:
            for step in steps:
                work(step)
                if stop.requested:
                    save_state(path, ...)
                    stop.now()

    A signal that the loop did not react to is delivered when the block ends. A second signal is delivered at once.

    Yields:
        The flag.
    """
    stop = Stop()
    stop._install()
    try:
        yield stop
    finally:
        undelivered = bool(stop._previous) and stop.requested
        stop._restore()
    if undelivered and stop.signum is not None:
        signal.raise_signal(stop.signum)


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
