"""What a run will take: multiply-accumulates and memory of a step, by a pass over meta tensors before any is made.

The pass runs the operations of a real step. Every tensor that it makes is noted with its size when it comes and when
it goes, so the largest sum is what a real step holds at once, the activations that wait for the backward pass among
them. Scratch memory inside an operation shows on no meta tensor; `SCRATCH` allows for it.
"""

from __future__ import annotations

import contextlib
import copy
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ovstrans.costs.counter import Meter, ShapeOnlyResampling
from ovstrans.datasets.catalog import GENERATED
from ovstrans.datasets.scenes.dataset import DRAWING_BYTES
from ovstrans.environment import Precision, format_bytes, images_to_device, require_memory
from ovstrans.progress import format_duration
from ovstrans.recipes.schema import Data

Outputs = Callable[[Any, Tensor], Sequence[Tensor]]
"""Computes, from a module and images [B, 3, H, W], the tensors that a backward pass starts from."""

DRY_RUN_SCHEMA = "ovstrans.dry-run/1"

TIMED_SIDE = 128
"""Largest side in pixels of the images of the step that is timed."""
TIMED_BATCH = 4
"""Images of that step."""

CHECKED_PIXELS = 3_000_000
"""Pixels above which the memory of a forward pass is estimated before it."""

SCRATCH = 1.2
"""Memory of a real step over that of the tensors in it, measured; see `tests/costs/test_estimate.py`."""
HALF = 0.6
"""Memory of a step in bfloat16 or float16 over one in float32: norms and losses stay in float32."""


@dataclass(frozen=True)
class StepEstimate:
    """Multiply-accumulates and memory of a training step.

    Attributes:
        macs: Multiply-accumulates of forward and backward pass, for the whole batch; masked weights run dense.
        memory: Bytes that it needs at once, besides weights: activations, gradients, optimizer state, the batch.
        weights: Bytes of the weights and buffers.
    """

    macs: int
    memory: int
    weights: int


@dataclass(frozen=True)
class DryRun:
    """Settings and estimated costs of a run; the result of `prune` and `finetune` with `dry_run=True`.

    Attributes:
        command: "prune" or "finetune".
        title: What would be done, in a few words.
        recipe: Every setting of the run, as a table that a recipe file holds.
        data: Name of the dataset, "" if no image is needed.
        images: Number of its images that are used.
        rounds: Rounds of pruning; 0 for finetune.
        steps: Steps of the run.
        batch: Images of a step.
        image_size: Side of the images in pixels.
        device: Device that it would run on.
        precision: Type of the forward pass: float32, bfloat16 or float16.
        macs: Multiply-accumulates of a step, forward and backward; 0 without steps.
        memory: Largest number of bytes that the process holds, on a GPU those on the device; estimated.
        seconds: Duration of all steps, estimated from a timed step on few small images; reading images is not in it.
    """

    command: str
    title: str
    recipe: Mapping[str, Any]
    data: str
    images: int
    rounds: int
    steps: int
    batch: int
    image_size: int
    device: str
    precision: str
    macs: int
    memory: int
    seconds: float

    def facts(self) -> dict[str, str]:
        """Return what a user wants to know of the run, by name, in words."""
        size = f"{self.image_size}x{self.image_size}"
        found = {"run": self.title, "data": f"{self.data} ({self.images:,} images)" if self.data else "none needed"}
        if self.rounds:
            found["rounds"] = f"{self.rounds}"
        found["steps"] = f"{self.steps:,}" + (f" of {self.batch} images at {size} pixels" if self.steps else "")
        found["device"] = f"{self.device}, {self.precision}"
        if self.steps:
            found["MACs a step"] = f"{self.macs / 1e9:,.1f} G"
        found["memory"] = f"about {format_bytes(self.memory)}"
        if self.steps:
            found["time"] = f"about {format_duration(self.seconds)}, if images are read as fast"
        return found

    def headline(self, start: str = "") -> str:
        """Return the run in one line.

        Args:
            start: What comes first, such as "continues after step 20".
        """
        parts = [self.title]
        if self.rounds:
            parts.append(f"{self.rounds} round{'' if self.rounds == 1 else 's'}")
        if self.steps:
            size = f"{self.image_size}x{self.image_size}"
            parts += [f"{self.data} ({self.images:,} images)", f"{self.steps:,} steps of {self.batch} images at {size}"]
        else:
            parts.append("no distillation")
            if self.data:
                parts.append(f"BatchNorm statistics of {self.data} ({self.images:,} images)")
        parts += [f"{self.device}, {self.precision}", f"about {format_bytes(self.memory)} of memory"]
        return (f"{start}: " if start else "") + "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON report, schema "ovstrans.dry-run/1"."""
        return {"schema": DRY_RUN_SCHEMA, **vars(self), "recipe": dict(self.recipe)}

    def __repr__(self) -> str:
        return "\n".join([f"DryRun of {self.command}", *(f"  {name}: {text}" for name, text in self.facts().items())])


def check_drawing(data: Data) -> int:
    """Return the bytes that drawing generated images takes while they are read ahead; 0 for other data.

    Raises:
        InputError: One image takes more than is free.
    """
    if data.dataset.partition(":")[0] not in GENERATED:
        return 0
    needed = DRAWING_BYTES * data.size**2
    what = f"`image_size={data.size}`: drawing an image takes"
    require_memory(needed, "cpu", what=what, remedy="lower `image_size`, or `data.size` of the recipe")
    return needed * max(1, data.workers)


def require_step_memory(memory: int, data: Data, device: torch.device, *, batch: int, size: int) -> int:
    """Refuse a step that needs more memory than is free.

    Args:
        memory: Bytes that the step needs.
        data: Dataset of the run; drawing generated images takes memory too.
        device: Device of the step.
        batch: Images of the step, for the message.
        size: Side of the images, for the message.

    Returns:
        Bytes that drawing images takes.

    Raises:
        InputError: The memory does not suffice.
    """
    drawing = check_drawing(data)
    require_memory(
        memory + (drawing if device.type == "cpu" else 0),
        device,
        what=f"a step of `batch={batch}` images with `image_size={size}` takes",
        remedy="lower `image_size` or `batch`",
    )
    return drawing


def estimate_step(
    module: nn.Module, shape: tuple[int, ...], outputs: Outputs, *, half: bool = False, input_copies: float = 1.0
) -> StepEstimate:
    """Estimate a training step with AdamW.

    Args:
        module: Module of any device, in the mode and with the `requires_grad` of training. It is left as it is.
        shape: Shape of the images.
        outputs: Computes what the losses are, or start from.
        half: Whether the forward pass runs in bfloat16 or float16.
        input_copies: Copies of the images, in float32, that are held besides: the batch read ahead, labels.
    """
    twin, meter, counter = copy_to_meta(module), PeakMeter(), Meter()
    with _quiet_pass(), torch.enable_grad(), ShapeOnlyResampling(), counter.counter, meter:
        made = [each for each in outputs(twin, torch.empty(shape, device="meta")) if each.requires_grad]
        forward = meter.live
        if made:
            torch.autograd.backward(made, [torch.empty_like(each) for each in made])
        peak = meter.peak
    trained = sum(_bytes(each) for each in twin.parameters() if each.requires_grad)
    # The gradients of the step before are still there during the forward pass.
    activations = max(peak, forward + trained) * SCRATCH * (HALF if half else 1.0)
    batch = 4 * torch.Size(shape).numel() * input_copies
    weights = sum(_bytes(each) for each in [*twin.parameters(), *twin.buffers()])
    return StepEstimate(counter.take(), int(activations + 2 * trained + batch), weights)


def estimate_forward(module: nn.Module, shape: tuple[int, ...], forward: Callable[[Any, Tensor], Any]) -> int:
    """Estimate the bytes that a forward pass without gradients needs at once, besides weights.

    Args:
        module: Module of any device. It is left as it is.
        shape: Shape of the images.
        forward: What to run on a copy of the module and images; what it returns counts too.
    """
    twin, meter = copy_to_meta(module), PeakMeter()
    with _quiet_pass(), torch.no_grad(), ShapeOnlyResampling(), meter:
        made = forward(twin, torch.empty(shape, device="meta"))
        peak = meter.peak
        del made
    return int(peak * SCRATCH)


def check_forward(
    module: nn.Module,
    shape: tuple[int, ...],
    device: torch.device | str,
    forward: Callable[[Any, Tensor], Any],
    *,
    half: bool = False,
    remedy: str,
) -> None:
    """Refuse a forward pass on large images that needs more memory than is free; small ones are not looked at.

    Args:
        module: As for `estimate_forward`, as are shape and forward. What does not run on meta tensors is not checked.
        shape: Shape of the images.
        device: Device that it runs on.
        forward: What runs.
        half: Whether it runs in bfloat16 or float16.
        remedy: What to lower.

    Raises:
        InputError: The memory does not suffice.
    """
    if shape[0] * shape[-2] * shape[-1] <= CHECKED_PIXELS:
        return
    try:
        needed = estimate_forward(module, shape, forward)
    except (NotImplementedError, RuntimeError):
        return
    what = f"an image of {shape[-1]}x{shape[-2]} pixels takes"
    require_memory(int(needed * (HALF if half else 1.0)), device, what=what, remedy=remedy)


def time_step(
    module: nn.Module, step: StepEstimate, shape: tuple[int, ...], outputs: Outputs, precision: Precision
) -> float:
    """Estimate the seconds of a step from a real one on few small images; the module is changed by it.

    Args:
        module: Module on its device, ready for training.
        step: Estimate of the step.
        shape: Shape of its images [B, 3, H, W].
        outputs: As for `estimate_step`.
        precision: Precision of the forward pass, see `environment.pick_precision`.
    """
    small = (TIMED_BATCH, 3, *(min(side, TIMED_SIDE) for side in shape[2:]))
    device = next(module.parameters()).device
    images = images_to_device(torch.rand(small), device)
    seconds = 0.0
    for _ in range(2):  # the first one sets things up
        start = time.perf_counter()
        with precision.autocast():
            made = [each for each in outputs(module, images) if each.requires_grad]
        if made:
            torch.autograd.backward(made, [torch.ones_like(each) for each in made])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    return seconds * step.macs / max(1, estimate_step(module, small, outputs).macs)


class PeakMeter(TorchDispatchMode):
    """While active, counts the bytes of the tensors that operations make.

    Attributes:
        live: Bytes of those that exist now.
        peak: Largest value of `live` so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it made."""
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._note(each.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known and size:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def copy_to_meta(module: nn.Module) -> Any:
    """Return a copy of a module with float32 meta tensors for its weights, which takes no memory."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta", dtype=torch.float32)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        kind = torch.float32 if buffer.is_floating_point() else None
        memo[id(buffer)] = torch.empty_like(buffer, device="meta", dtype=kind)
    return copy.deepcopy(module, memo)


@contextlib.contextmanager
def _quiet_pass() -> Iterator[None]:
    """Leave the random numbers of the caller as they are, and allow gradients inside `torch.inference_mode`."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        yield


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
