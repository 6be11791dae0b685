"""Time, memory and energy of a forward pass, measured: dense, and with the mask's zeros skipped where torch can.

    "latency": {"device", "threads", "load", "dtype", "image_size", "batch", "rounds", "warmup",
                "weights_bytes", "energy_meter",
                "arms": {"dense": {"how", median_s, q1_s, q3_s, iqr_s, min_s, max_s, images_per_s,
                                   peak_memory_bytes, energy_per_image_j}, "sparse": {the same}},
                "speedup": median of dense / median of sparse}

Both arms hold the same, masked, weights. Each round runs them one after the other, in turns first, so
that a busy or throttled machine slows both alike; `load` is how many processes wanted to run at the
start (the system's mean of a minute). What could not be measured is null.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ovstrans.costs.csr import sparse_pass, synchronize
from ovstrans.costs.energy import energy_meter
from ovstrans.costs.memory import peak_memory
from ovstrans.costs.params import kept_weights
from ovstrans.masks.mask import Mask

_ENERGY_SECONDS = 1.0
"""How long an arm runs for its energy: counters move on only now and then."""

Arms = Mapping[str, Callable[[], object]]


def measure_latency(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    batch: int = 1,
    mask: Mask | None = None,
    device: torch.device | str = "cpu",
    rounds: int = 10,
    warmup: int = 2,
) -> dict[str, Any]:
    """The `latency` entry of a report, for `module(images)` in eval mode, images [batch, 3, *image_size].

    module: with weights, which are moved to `device` and back, and masked if they are not.  mask: of
    its image encoder; without one there is no sparse arm.  rounds: timed passes of each arm.  warmup:
    passes before them (at least one for the sparse arm, which makes its choices there).
    """
    device, load = torch.device(device), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if mask is not None:
        mask.apply(module)
    came_from = next(module.parameters()).device
    training = module.training
    module.to(device).eval()
    images = torch.rand(batch, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(device)

    def run() -> object:
        return module(images)

    try:
        with torch.inference_mode():
            arms: dict[str, Callable[[], object]] = {"dense": run}
            how = {"dense": "every weight, zeros too, by torch's dense kernels"}
            if mask is not None:
                arms["sparse"], state = sparse_pass(module, kept_weights(module, mask), run)
                arms["sparse"]()
                how["sparse"] = (
                    f"{len(state.used)} of {len(mask.tensors)} masked layers as torch CSR matrices "
                    f"({len(state.tried)} tried), the others dense"
                )
            times = time_arms(arms, device, rounds=rounds, warmup=warmup)
            meter = energy_meter(device)
            entries: dict[str, dict[str, Any]] = {
                name: {
                    "how": how[name],
                    **_statistics(times[name], batch),
                    "peak_memory_bytes": peak_memory(arm, device),
                    "energy_per_image_j": None if meter is None else _energy(meter, arm, device) / batch,
                }
                for name, arm in arms.items()
            }
    finally:
        module.to(came_from).train(training)
    speedup = entries["dense"]["median_s"] / entries["sparse"]["median_s"] if "sparse" in entries else None
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "load": load,
        "dtype": str(images.dtype).removeprefix("torch."),
        "image_size": list(image_size),
        "batch": batch,
        "rounds": rounds,
        "warmup": warmup,
        "weights_bytes": sum(value.numel() * value.element_size() for value in module.state_dict().values()),
        "energy_meter": None if meter is None else meter.name,
        "arms": entries,
        "speedup": speedup,
    }


def time_arms(arms: Arms, device: torch.device, *, rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every pass of each arm, round by round; every second round in the opposite order."""
    for run in arms.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for _ in range(rounds):
        for name in order:
            synchronize(device)
            start = time.perf_counter()
            arms[name]()
            synchronize(device)
            times[name].append(time.perf_counter() - start)
        order.reverse()
    return times


def _statistics(seconds: list[float], batch: int) -> dict[str, float]:
    first, median, third = (float(value) for value in np.quantile(seconds, [0.25, 0.5, 0.75]))
    return {
        "median_s": median,
        "q1_s": first,
        "q3_s": third,
        "iqr_s": third - first,
        "min_s": min(seconds),
        "max_s": max(seconds),
        "images_per_s": batch / median,
    }


def _energy(meter: Any, run: Callable[[], object], device: torch.device) -> float:
    """Joules of a pass, over as many as fill the time that the meter needs."""
    synchronize(device)
    before, start, passes = meter.read(), time.perf_counter(), 0
    while time.perf_counter() - start < _ENERGY_SECONDS:
        run()
        synchronize(device)
        passes += 1
    return meter.joules(before, meter.read()) / passes
