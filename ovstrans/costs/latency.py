"""Time, memory and energy of a forward pass, measured: dense, and with the mask's zeros skipped.

Zeros are skipped by the sparse runtime (`runtime/`), or by torch's CSR matrices where that cannot run.

Both arms hold the same masked weights. Each round runs them one after the other, in turns first, so that a busy or
throttled machine slows both alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ovstrans.clip.backbone import encode_stages, find_image_encoder
from ovstrans.clip.layers import weight_name
from ovstrans.costs.csr import make_sparse_pass, synchronize
from ovstrans.costs.estimate import check_forward
from ovstrans.costs.meters import NvmlMeter, RaplMeter, find_energy_meter, measure_peak_memory
from ovstrans.costs.params import kept_weights
from ovstrans.environment import eval_mode
from ovstrans.masks.mask import Mask
from ovstrans.runtime.choose import RuntimeChoice, attach_runtime, check_runtime, choose_runtime

_BACKBONE = "backbone of "

_ENERGY_SECONDS = 1.0
"""Time that an arm runs for its energy: counters advance only now and then."""

Passes = Mapping[str, Callable[[], object]]
"""Name of an arm to its forward pass."""


@dataclass(frozen=True)
class ArmLatency:
    """Figures of one arm.

    Attributes:
        how: How the arm runs, in words.
        median_s: Median time of a batch, in seconds.
        q1_s: First quartile.
        q3_s: Third quartile.
        iqr_s: Interquartile range.
        min_s: Fastest.
        max_s: Slowest.
        images_per_s: Throughput at the median.
        peak_memory_bytes: Peak memory beyond the weights; None if it could not be measured.
        energy_per_image_j: Energy in joules; None if it could not be measured.
        sparse_layers: Number of layers that ran on sparse kernels; None in reports of before.
        backbone_share: Median time of the image encoder's backbone alone over that of the whole, 0 to 1; None if the
            module has none, or was not told apart.
    """

    how: str
    median_s: float
    q1_s: float
    q3_s: float
    iqr_s: float
    min_s: float
    max_s: float
    images_per_s: float
    peak_memory_bytes: int | None
    energy_per_image_j: float | None
    sparse_layers: int | None = None
    backbone_share: float | None = None


@dataclass(frozen=True)
class Latency:
    """Measured time, memory and energy of a forward pass.

    Attributes:
        device: Name of the device.
        threads: Threads of torch on the CPU.
        load: Processes that wanted to run at the start (the system's mean of a minute); None if unknown.
        dtype: Type of images and weights.
        image_size: Height and width.
        batch: Number of images.
        rounds: Timed passes of each arm.
        warmup: Passes of each arm before them.
        weights_bytes: Size of the weights and buffers.
        energy_meter: Name of the energy meter; None if there is none.
        arms: "dense" and, under a mask, "sparse": on sparse kernels the layers that gain by it, on dense ones the
            others, which may be all; see `ArmLatency.sparse_layers`.
        speedup: Median of dense / median of sparse; None without a mask.
    """

    device: str
    threads: int
    load: float | None
    dtype: str
    image_size: tuple[int, int]
    batch: int
    rounds: int
    warmup: int
    weights_bytes: int
    energy_meter: str | None
    arms: Mapping[str, ArmLatency]
    speedup: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the entry `latency` of a report."""
        return {**asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Latency:
        """Read the entry `latency` of a report."""
        height, width = value["image_size"]
        arms = {name: ArmLatency(**arm) for name, arm in value["arms"].items()}
        return cls(**{**value, "image_size": (height, width), "arms": arms})

    def __repr__(self) -> str:
        arms = ", ".join(f"{name} {1e3 * arm.median_s:.4g} ms" for name, arm in self.arms.items())
        height, width = self.image_size
        return f"Latency({arms}; {self.batch} x {height}x{width} on {self.device})"


def measure_latency(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    batch: int = 1,
    mask: Mask | None = None,
    device: torch.device | str = "cpu",
    rounds: int = 10,
    warmup: int = 2,
    runtime: str = "auto",
) -> Latency:
    """Measure `module(images)` in eval mode.

    Args:
        module: Module with weights. It is moved to `device` and back, and masked if it is not.
        image_size: Height and width.
        batch: Number of images.
        mask: Mask of its image encoder; without one there is no sparse arm.
        device: Where to run.
        rounds: Timed passes of each arm.
        warmup: Passes before them. The sparse arm has at least one, in which its layers choose.
        runtime: What skips the zeros: "auto", the sparse runtime where it runs, else torch's CSR matrices; "sparse" or
            "csr" for one of them; "dense" for no sparse arm.

    Raises:
        InputError: If there is no such runtime.
    """
    if runtime != "csr":
        check_runtime(runtime)
    device, load = torch.device(device), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if mask is not None:
        mask.apply(module)
    came_from = next(module.parameters()).device
    module.to(device)
    shape = (batch, 3, *image_size)
    check_forward(module, shape, device, lambda twin, images: twin(images), remedy="lower `image_size`")
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(device)

    def run() -> object:
        return module(images)

    try:
        with torch.inference_mode(), eval_mode(module):
            passes: dict[str, Callable[[], object]] = {"dense": run}
            how = {"dense": "every weight, zeros too, by torch's dense kernels"}
            sparse_layers = {"dense": 0}
            backbone = record_backbone(module, run)
            choice: RuntimeChoice | None = None
            if mask is not None and runtime in ("auto", "sparse"):
                choice = choose_runtime(find_image_encoder(module), runtime, device=device)
            if mask is not None and choice is not None and choice.backbone is not None:
                convs = {weight_name(conv.name) for conv in choice.backbone.convs}
                passes["sparse"] = with_runtime(find_image_encoder(module), choice, run)
                sparse_layers["sparse"] = len(convs & set(mask.tensors))
                how["sparse"] = f"backbone by the sparse runtime: {choice.reason}; the rest by torch"
            elif mask is not None and runtime in ("auto", "csr"):
                passes["sparse"], layers = make_sparse_pass(module, kept_weights(module, mask), run)
                passes["sparse"]()
                sparse_layers["sparse"] = len(layers.used)
                how["sparse"] = (
                    f"{len(layers.used)} of {len(mask.tensors)} masked layers as torch CSR matrices "
                    f"({len(layers.tried)} tried), the others dense"
                )
                if choice is not None and choice.notable:
                    how["sparse"] += f"; {choice.reason}"
            elif choice is not None:
                how["dense"] += f"; sparse runtime: {choice.reason}"
            timed = dict(passes)
            if backbone is not None:
                timed[_BACKBONE + "dense"] = backbone
                if choice is not None and choice.backbone is not None:
                    timed[_BACKBONE + "sparse"] = with_runtime(find_image_encoder(module), choice, backbone)
            times = time_passes(timed, device, rounds=rounds, warmup=warmup)
            meter = find_energy_meter(device)
            arms = {
                name: ArmLatency(
                    how[name],
                    **_statistics(times[name], batch),
                    peak_memory_bytes=measure_peak_memory(one, device),
                    energy_per_image_j=None if meter is None else _measure_energy(meter, one, device) / batch,
                    sparse_layers=sparse_layers[name],
                    backbone_share=_share(times, name),
                )
                for name, one in passes.items()
            }
    finally:
        module.to(came_from)
    return Latency(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        load=load,
        dtype=str(images.dtype).removeprefix("torch."),
        image_size=image_size,
        batch=batch,
        rounds=rounds,
        warmup=warmup,
        weights_bytes=sum(value.numel() * value.element_size() for value in module.state_dict().values()),
        energy_meter=None if meter is None else meter.name,
        arms=arms,
        speedup=arms["dense"].median_s / arms["sparse"].median_s if "sparse" in arms else None,
    )


class _Recorder:
    """Takes the place of a runtime and notes what the backbone is run on."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Collection[str]]] = []

    def accepts(self, images: Tensor, stages: Collection[str]) -> bool:
        self.calls.append((images, stages))
        return False


def record_backbone(module: nn.Module, run: Callable[[], object]) -> Callable[[], object] | None:
    """Return a pass of a module's backbone alone, on what it is run on in a pass of the module.

    Args:
        module: A framework or image encoder in eval mode.
        run: The pass of the module.

    Returns:
        The pass; None if the module does not run its backbone by `encode_stages`.
    """
    encoder: Any = find_image_encoder(module)
    recorder = encoder.stage_runner = _Recorder()
    try:
        run()
    finally:
        del encoder.stage_runner
    calls = recorder.calls
    return (lambda: [encode_stages(encoder, *call) for call in calls]) if calls else None


def with_runtime(encoder: nn.Module, choice: RuntimeChoice, run: Callable[[], object]) -> Callable[[], object]:
    """Make a version of a pass in which a runtime runs the image encoder; between passes the encoder is what it was."""

    def sparse_run() -> object:
        attach_runtime(encoder, choice)
        try:
            return run()
        finally:
            attach_runtime(encoder, RuntimeChoice("dense", ""))

    return sparse_run


def _share(times: Mapping[str, list[float]], arm: str) -> float | None:
    alone = times.get(_BACKBONE + arm)
    return None if alone is None else min(1.0, float(np.median(alone) / np.median(times[arm])))


def time_passes(passes: Passes, device: torch.device, *, rounds: int, warmup: int) -> dict[str, list[float]]:
    """Time the passes of several arms round by round, every second round in the opposite order.

    Returns:
        Name of an arm to the seconds of each of its passes.
    """
    for run in passes.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in passes}
    order = list(passes)
    for _ in range(rounds):
        for name in order:
            synchronize(device)
            start = time.perf_counter()
            passes[name]()
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


def _measure_energy(meter: RaplMeter | NvmlMeter, run: Callable[[], object], device: torch.device) -> float:
    """Return the joules of a pass, the mean over as many as fill the time that the meter needs."""
    synchronize(device)
    before, start, passes = meter.read(), time.perf_counter(), 0
    while time.perf_counter() - start < _ENERGY_SECONDS:
        run()
        synchronize(device)
        passes += 1
    return meter.joules(before, meter.read()) / passes
