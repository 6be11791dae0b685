"""Where and how a module runs: device, precision, memory, eval mode, and the environment that a file was made in.

Weights, gradients and optimizer state stay float32. The precision `auto` is bfloat16 on GPUs and CPUs that compute it
natively, and float32 elsewhere. On such CPUs, with channels-last memory, convolutions run several times faster.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ovstrans.errors import InputError
from ovstrans.version import __version__

if TYPE_CHECKING:
    import torch
    from torch import nn

    _Module = TypeVar("_Module", bound=nn.Module)

SCHEMA = "ovstrans.environment/1"
"""Schema name of a run's `environment.json`."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""Names of precisions, as the recipe value `training.precision` has them."""


_CLEARLY = 1.25
"""An estimate may be wrong by this factor: what is refused is beyond it."""
_GROUPS = Path("/sys/fs/cgroup")

logger = logging.getLogger(__name__)


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


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode while the block runs.

    Afterwards every submodule has the mode that it had before: in a framework some may be in train mode while others,
    a frozen BatchNorm for instance, are not.

    Args:
        module: Any module.
    """
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inner, training in modes:
            inner.training = training


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return the BatchNorms in a module that keep running statistics."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [inner for inner in module.modules() if isinstance(inner, _BatchNorm) and inner.track_running_stats]


@contextlib.contextmanager
def recompute_statistics(module: nn.Module) -> Iterator[None]:
    """Let every BatchNorm average the statistics of what it sees in the block, from the first batch on.

    The mean of the batches replaces the running statistics. Put the module in eval mode first; inside the block its
    BatchNorms are in train mode.

    Args:
        module: Any module.
    """
    norms: list[Any] = batch_norms(module)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def bake_pruning(module: _Module) -> _Module:
    """Return a copy of a module in which the masks of `torch.nn.utils.prune` are permanent; itself without any.

    A module under torch's pruning cannot be copied by `copy.deepcopy`, and its state dict has other names.

    Args:
        module: Any module. It is not changed.
    """
    if not any(name.endswith("_orig") for name, _ in module.named_parameters()):
        return module
    import copy

    from torch import Tensor
    from torch.nn.utils import prune

    remove: Callable[[nn.Module, str], object] = prune.remove
    computed = [value for inner in module.modules() for value in vars(inner).values() if isinstance(value, Tensor)]
    copied = copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})
    for inner in copied.modules():
        for name in [name.removesuffix("_orig") for name, _ in inner.named_parameters(recurse=False)]:
            if hasattr(inner, f"{name}_mask") and hasattr(inner, f"{name}_orig"):
                remove(inner, name)
    return copied


def images_to_device(images: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return images [B, 3, H, W] on a device, in channels-last memory."""
    import torch

    return images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)


def available_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the bytes that can still be allocated on a device; None where the system does not tell.

    On a GPU, what is free on it. Elsewhere the smallest of what the machine has left, what the control groups of this
    process leave (containers and Slurm jobs have a limit of their own), and its address space (`ulimit -v`).
    """
    if str(device).startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    found = [_machine_memory(), *_group_memory(), _address_space()]
    known = [each for each in found if each is not None]
    return min(known) if known else None


def used_memory() -> int:
    """Return the bytes of main memory that this process holds; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def require_memory(needed: int, device: torch.device | str, *, what: str, remedy: str) -> None:
    """Refuse work that does not fit into memory, before it begins. A need that may just not fit is warned of.

    Args:
        needed: Bytes, estimated.
        device: Device that holds them.
        what: Start of the message: what takes the memory.
        remedy: What to do.

    Raises:
        InputError: The device has clearly less.
    """
    free = available_memory(device)
    if free is None or needed <= free:
        return
    text = f"{what} about {format_bytes(needed)} of memory, {format_bytes(free)} is free on {device}; {remedy}"
    if needed > _CLEARLY * free:
        raise InputError(text)
    logger.warning("%s", text)


def format_bytes(number: float) -> str:
    """Return a number of bytes in MB, GB or TB, with three digits at most."""
    for unit in ("MB", "GB"):
        number /= 1000 if unit == "GB" else 1e6
        if number < 999.5:
            break
    else:
        number, unit = number / 1000, "TB"
    return f"{number:.0f} {unit}" if number >= 10 or unit == "MB" else f"{number:.1f} {unit}"


def _machine_memory() -> int | None:
    """Return what the machine can give without swapping: Linux tells, of another system half the memory is assumed."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError):
        return None


def _group_memory() -> list[int]:
    """Return what the memory limits of this process's control groups, version 1 or 2, leave."""
    found: list[int] = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, limit, used = (
            (_GROUPS, "memory.max", "memory.current")
            if not controllers
            else (_GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        folder = root / group.lstrip("/")
        for each in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # no limit is the word "max"
                stat = dict(part.split() for part in (each / "memory.stat").read_text().splitlines())
                cache = int(stat.get("inactive_file", 0))  # given back when memory runs short
                found.append(int((each / limit).read_text()) - int((each / used).read_text()) + cache)
            if each == root:
                break
    return found


def _address_space() -> int | None:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY else max(0, limit - used)


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


def require_open_files(needed: int, where: str) -> None:
    """Allow this process to open a number of files at once, as far as the system does.

    Args:
        needed: How many.
        where: The parameter that they are for.

    Raises:
        InputError: The system allows fewer.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < needed:
        raise InputError(
            f"{where}: takes about {needed} open files, the system allows {hard} (ulimit -Hn); use fewer workers"
        )
