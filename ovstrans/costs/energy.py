"""Energy counters: NVIDIA's of a GPU, and Intel's and AMD's RAPL of the processor, where the system shows them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RAPL = Path("/sys/class/powercap")
_NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class RaplMeter:
    """The packages (sockets) of this machine: everything that runs on them, not this process alone."""

    packages: tuple[Path, ...]
    name: str = "RAPL, processor packages as a whole"

    def read(self) -> list[int]:
        """Microjoules of each package so far; the counters start again from 0 at their range."""
        return [int((package / "energy_uj").read_text()) for package in self.packages]

    def joules(self, before: list[int], after: list[int]) -> float:
        """What was used between two readings, less than one range apart."""
        ranges = [int((package / "max_energy_range_uj").read_text()) for package in self.packages]
        return sum((new - old) % (most + 1) for old, new, most in zip(before, after, ranges, strict=True)) / 1e6


@dataclass(frozen=True)
class NvmlMeter:
    """A GPU's total since its driver was loaded; its reading moves on every few hundredths of a second."""

    library: Any
    handle: Any
    name: str = "NVML, the GPU as a whole"

    def read(self) -> list[int]:
        """Millijoules so far."""
        value = ctypes.c_ulonglong()
        status = self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(value))
        return [int(value.value)] if status == 0 else []

    def joules(self, before: list[int], after: list[int]) -> float:
        """What was used between two readings."""
        return (after[0] - before[0]) / 1e3


def energy_meter(device: torch.device) -> RaplMeter | NvmlMeter | None:
    """The meter of a device, or None where there is none that may be read."""
    return _nvml(device) if device.type == "cuda" else rapl_meter()


def rapl_meter(folder: Path = RAPL) -> RaplMeter | None:
    """The meter of the processor packages in Linux' powercap folder; reading it often needs root."""
    try:
        # `intel-rapl:0` is a package; `intel-rapl:0:1` a part of it, which would count twice.
        packages = [path for path in sorted(folder.glob("*-rapl:*")) if path.name.count(":") == 1]
        meter = RaplMeter(tuple(path for path in packages if (path / "name").read_text().startswith("package")))
        return meter if meter.read() else None
    except (OSError, ValueError):
        return None


def _nvml(device: torch.device) -> NvmlMeter | None:
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    try:
        library = ctypes.CDLL(_NVML)
        handle = ctypes.c_void_p()
        known = uuid is not None and library.nvmlInit_v2() == 0
        if not known or library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(handle)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    meter = NvmlMeter(library, handle)
    return meter if meter.read() else None
