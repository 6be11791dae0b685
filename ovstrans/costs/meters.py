"""Meters of a running model: peak memory, and energy where the system shows it.

Energy comes from NVIDIA's counter of a GPU (NVML), and from Intel's and AMD's counters of the processor (RAPL).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RAPL = Path("/sys/class/powercap")
_NVML = "libnvidia-ml.so.1"
_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5): written to clear_refs, it resets VmHWM to what is resident now


def measure_peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Measure the peak memory of `run()` above what was held before, in bytes.

    On a GPU torch's allocator tells. On the CPU the kernel's count of resident memory does, to the page; only Linux
    can reset it, so the result is None elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # give freed memory back to the system, so that it counts when used anew
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, KeyError):
        return None


@dataclass(frozen=True)
class RaplMeter:
    """Energy counters of the processor packages (sockets): of everything that runs on them, not this process alone.

    Attributes:
        packages: Folders of the packages in Linux' powercap tree.
        name: Name for reports.
    """

    packages: tuple[Path, ...]
    name: str = "RAPL, processor packages as a whole"

    def read(self) -> list[int]:
        """Return the microjoules of each package so far; a counter restarts from 0 at the end of its range."""
        return [int((package / "energy_uj").read_text()) for package in self.packages]

    def joules(self, before: list[int], after: list[int]) -> float:
        """Return the energy used between two readings that are less than one range apart."""
        ranges = [int((package / "max_energy_range_uj").read_text()) for package in self.packages]
        return sum((new - old) % (most + 1) for old, new, most in zip(before, after, ranges, strict=True)) / 1e6


@dataclass(frozen=True)
class NvmlMeter:
    """Energy counter of a GPU since its driver was loaded; it advances every few hundredths of a second.

    Attributes:
        library: The NVML library.
        handle: Its handle of the GPU.
        name: Name for reports.
    """

    library: Any
    handle: Any
    name: str = "NVML, the GPU as a whole"

    def read(self) -> list[int]:
        """Return the millijoules so far; an empty list if the GPU does not tell."""
        value = ctypes.c_ulonglong()
        status = self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(value))
        return [int(value.value)] if status == 0 else []

    def joules(self, before: list[int], after: list[int]) -> float:
        """Return the energy used between two readings."""
        return (after[0] - before[0]) / 1e3


def find_energy_meter(device: torch.device) -> RaplMeter | NvmlMeter | None:
    """Return the energy meter of a device, or None if there is none that may be read."""
    return _find_nvml(device) if device.type == "cuda" else find_rapl_meter()


def find_rapl_meter(folder: Path = RAPL) -> RaplMeter | None:
    """Return the meter of the processor packages in Linux' powercap folder; reading it often needs root."""
    try:
        # `intel-rapl:0` is a package; `intel-rapl:0:1` a part of it, which would count twice.
        packages = [path for path in sorted(folder.glob("*-rapl:*")) if path.name.count(":") == 1]
        meter = RaplMeter(tuple(path for path in packages if (path / "name").read_text().startswith("package")))
        return meter if meter.read() else None
    except (OSError, ValueError):
        return None


def _resident(field: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    table = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024 * int(table[field].split()[0])


def _find_nvml(device: torch.device) -> NvmlMeter | None:
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
