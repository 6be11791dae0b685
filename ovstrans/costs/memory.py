"""The most memory that running something takes at a time, beyond what was held before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5): written to clear_refs, it resets VmHWM to what is resident now


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes at the peak of `run()` above those before it.

    On a GPU by torch's allocator; on the CPU by the kernel's count of resident memory, to the page,
    which Linux alone can reset: None elsewhere.
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
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, so that it counts when used anew
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _resident(field: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    table = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024 * int(table[field].split()[0])
