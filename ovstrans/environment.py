"""The machine: choosing the device to compute on, and describing the environment that a file was made in."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovstrans.errors import InputError
from ovstrans.version import __version__

if TYPE_CHECKING:
    import torch

SCHEMA = "ovstrans.environment/1"
"""Schema name of a run's `environment.json`."""


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


def environment(device: torch.device | str, *, processes: int | None = None) -> dict[str, Any]:
    """Describe versions and machine as plain values, for a report or a run.

    Args:
        device: The device computed on. A GPU appears by the name of its model. A CPU is "cpu" in a report, where
            entries of like machines are compared, and the processor's own name in a run.
        processes: Number of processes of a run. None describes what the figures of a report may depend on, and no more.
    """
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
