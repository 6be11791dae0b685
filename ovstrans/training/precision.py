"""Precision of a run: autocast, and the memory layout of images and convolutions.

Weights, gradients and optimizer state stay float32. `auto` is bfloat16 on GPUs and CPUs that compute it natively, and
float32 elsewhere. On such CPUs, with channels-last memory, convolutions run several times faster.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import nn

from ovstrans.errors import InputError
from ovstrans.recipes.schema import PRECISIONS


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
        return str(self.dtype or torch.float32).removeprefix("torch.")

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return a new context for the forward pass and the losses."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler; it scales for float16 and does nothing otherwise."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype is torch.float16)


def native_bf16(device: torch.device | str) -> bool:
    """Return whether the device multiplies bfloat16 in hardware."""
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
    return module.to(device).to(memory_format=torch.channels_last)


def images_to_device(images: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return images [B, 3, H, W] on a device, in channels-last memory."""
    return images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
