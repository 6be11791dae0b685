"""The half of `ovstrans bench` that runs targets against the clock."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ovstrans.costs.target import Target
    from ovstrans.reports.request import Request


def measure_targets(
    found: Iterable[tuple[Request, Target, dict[str, Any]]],
    image_size: tuple[int, int],
    device: torch.device,
    *,
    rounds: int,
    warmup: int,
) -> None:
    """Fill in `latency` of each (request, target, report); targets without weights get random ones."""
    from ovstrans import console
    from ovstrans.costs.latency import measure_latency

    for request, target, report in found:
        console.say(f"measure {target.name}: {rounds} rounds")
        measured = target if target.checkpoint is not None else request.open(device="cpu")
        latency = measure_latency(
            measured.module,
            image_size,
            batch=request.batch,
            mask=measured.mask,
            device=device,
            rounds=rounds,
            warmup=warmup,
        )
        report["latency"] = latency.to_json()
        load, cores = latency.load or 0.0, os.cpu_count() or 1
        if load > cores:
            console.warn(f"{target.name}: timed while others kept the machine busy (load {load:.1f} on {cores} cores)")
