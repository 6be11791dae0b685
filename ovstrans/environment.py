"""The machine: device, precision and memory layout to compute with, and the environment that a file was made in.

Weights, gradients and optimizer state stay float32. The precision `auto` is bfloat16 on GPUs and CPUs that compute it
natively, and float32 elsewhere. On such CPUs, with channels-last memory, convolutions run several times faster.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovstrans.errors import InputError
from ovstrans.version import __version__

if TYPE_CHECKING:
    import torch
    from torch import nn

SCHEMA = "ovstrans.environment/1"
"""Schema name of a run's `environment.json`."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""Names of precisions, as the recipe value `training.precision` has them."""


def pick_device(device: torch.device | str = "auto") -> torch.device:
    """Return the torch device of a name.

    Args:
        device: "auto" (CUDA where torch sees a device, the CPU elsewhere), "cpu", "cuda" or "cuda:N"; or a device.

    Raises:
        InputError: The name is unknown, or torch sees no such device.
    """
    import torch

    name = str(device)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and name.split(":")[0] != "cuda":
        raise InputError(f"`device={name}`: unknown; use auto, cpu or cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"`device={name}`: torch sees no CUDA device here; use `device=cpu`")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError(f"`device={name}`: {error}") from error


@dataclass(frozen=True)
class Precision:
    """Precision of the forward pass; see `pick_precision`.

    Attributes:
        device_type: "cpu" or "cuda".
        dtype: Type of autocast; None for float32 throughout.
    """

    device_type: str
    dtype: torch.dtype | None

    @property
    def name(self) -> str:
        """Name of the type, for logs: float32, bfloat16 or float16."""
        return str(self.dtype or "torch.float32").removeprefix("torch.")

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return a new context for the forward pass and the losses."""
        import torch

        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler; it scales for float16 and does nothing otherwise."""
        import torch

        return torch.amp.GradScaler(self.device_type, enabled=self.dtype is torch.float16)


def native_bf16(device: torch.device | str) -> bool:
    """Return whether the device multiplies bfloat16 in hardware."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] >= 8
    try:
        # oneDNN emulates bfloat16 on older CPUs, slower than float32: ask for the instructions too.
        flags = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        hardware = any(flag() for flag in flags if flag is not None)
        return hardware and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def pick_precision(name: str, device: torch.device | str) -> Precision:
    """Return the precision for the recipe value `training.precision`.

    Args:
        name: auto, fp32, bf16 or fp16.
        device: Device of the run.

    Raises:
        InputError: The name is another one, or is fp16 on a CPU, where gradients would underflow.
    """
    import torch

    kind = torch.device(device).type
    if name not in PRECISIONS:
        raise InputError(f"`precision={name}`: unknown; use one of {', '.join(PRECISIONS)}")
    if name == "fp16" and kind != "cuda":
        raise InputError(f"`precision=fp16`: needs a CUDA device, this run is on {kind}; use auto, bf16 or fp32")
    if name == "auto":
        return Precision(kind, torch.bfloat16 if native_bf16(device) else None)
    return Precision(kind, {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name])


def to_device(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a module to a device, in place, with its convolution weights in channels-last memory."""
    import torch

    return module.to(device).to(memory_format=torch.channels_last)


def images_to_device(images: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return images [B, 3, H, W] on a device, in channels-last memory."""
    import torch

    return images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)


def environment(device: torch.device | str, *, processes: int | None = None) -> dict[str, Any]:
    """Describe versions and machine as plain values, for a report or a run.

    Args:
        device: The device computed on. A GPU appears by the name of its model. A CPU is "cpu" in a report, where
            entries of like machines are compared, and the processor's own name in a run.
        processes: Number of processes of a run. None describes what the figures of a report may depend on, and no more.
    """
    import platform

    import torch

    on_gpu = str(device).startswith("cuda")
    known = {
        "ovstrans": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "threads": torch.get_num_threads(),
    }
    if processes is None:
        return known

    import open_clip
    import torchvision

    return {
        "schema": SCHEMA,
        "ovstrans": known["ovstrans"],
        "python": known["python"],
        "torch": known["torch"],
        "torchvision": torchvision.__version__,
        "open_clip": open_clip.__version__,
        "platform": known["platform"],
        "device": known["device"] if on_gpu else platform.processor() or platform.machine(),
        "processes": processes,
        "threads": known["threads"],
        "cores": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
