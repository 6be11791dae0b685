"""The counter of multiply-accumulates: runs a module on meta tensors and counts what torch's dispatcher executes.

On meta tensors shapes and operations are real, while arithmetic and memory are not: a count takes neither, whatever
the image size, the batch and the dtype.

Two kinds of work are told apart:

- Products: matrix products, convolutions and fused attention, as torch's own counter knows them, and the products of
  a matrix or vector with a vector that it does not know. Meta tensors never take a fused path that a counter cannot
  look into (`nn.MultiheadAttention` has one on the CPU), and an einsum arrives as the batched products it is made of.
- Resampling: resizing and sampling by interpolation, which no counter of products sees, in closed form. An
  interpolated value is a weighted sum of its neighbours, one MAC each: 4 for bilinear, 16 for bicubic in two
  dimensions. Computing the weights is not counted: it happens once a position, not once a channel. A resize to the
  size that is there already is a copy. Deformable attention (Zhu et al. 2021, eq. 3) samples bilinearly, then weighs
  each sample and adds it up: one MAC more a sample.

Shapes: `B` batch, `C` channels, `H W` image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ovstrans.clip.layers import weight_name
from ovstrans.environment import eval_mode

Forward = Callable[[Tensor], Any]
"""Computes something from images [B, 3, H, W] by the modules that are counted."""


class Use(NamedTuple):
    """One use of a weight by a module that is not its own.

    Attributes:
        start: First row of the weight that is used; all after it are.
        positions: Number of positions that it is multiplied with.
    """

    start: int
    positions: int


@dataclass(frozen=True)
class ModuleMacs:
    """MACs by the module that executes them, those of its inner modules left out.

    Attributes:
        products: Module name to the MACs of its matrix products and convolutions.
        resampling: Module name and operation ("bilinear_resizing", ...) to MACs.
        uses: Layer that is never called to how it is used, see `count_macs`.
    """

    products: dict[str, int]
    resampling: dict[tuple[str, str], int]
    uses: dict[str, list[Use]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """MACs of all products."""
        return sum(self.products.values())


def count_macs(
    module: nn.Module,
    shape: Sequence[int],
    forward: Forward | None = None,
    *,
    uncalled: Mapping[str, Sequence[str]] | None = None,
) -> ModuleMacs:
    """Count the MACs of one forward pass in eval mode.

    Args:
        module: Module to count, with weights of any device and dtype, or on meta. It is left as it was.
        shape: Shape of the images.
        forward: What to run; None for the module itself.
        uncalled: Name of an attention to the layers that it multiplies by itself, see `clip.layers.uncalled_layers`;
            they are counted by their own names, and what is left of the attention are its products of tokens.
    """
    products: dict[str, int] = defaultdict(int)
    resampling: dict[tuple[str, str], int] = defaultdict(int)
    modules = dict(module.named_modules())
    meter = FlopCounterMode(display=False, custom_mapping=_VECTOR_FLOPS)
    counted = 0

    def assign() -> None:
        """Assign what was counted since the last call to the module that was running."""
        nonlocal counted
        now = meter.get_total_flops()
        if now != counted:
            products[running[-1]] += (now - counted) // 2
        counted = now

    def record(operation: str, macs: int) -> None:
        resampling[running[-1], operation] += macs

    multiplied = track_uses(modules, uncalled or {})
    following, resized = track_running(module, assign), ResamplingCounter(record, lambda: modules[running[-1]])
    with multiplied as uses, following as running, meter, resized:
        run_on_meta(module, shape, forward)
        assign()
    split: dict[str, int] = {}
    for name, macs in products.items():
        for layer in (uncalled or {}).get(name, ()):
            if layer in uses:
                split[layer] = split.get(layer, 0) + multiplied_macs(modules[name], layer, uses[layer])
                macs -= multiplied_macs(modules[name], layer, uses[layer])
        split[name] = split.get(name, 0) + macs
    return ModuleMacs(split, dict(resampling), uses)


@contextmanager
def track_uses(
    modules: Mapping[str, nn.Module], uncalled: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, list[Use]]]:
    """Track, while the block runs, how attention uses the weights of layers that are never called.

    An attention that is severed (`clip.severance`) uses the values' rows of its fused weight, the last third, and calls
    its output projection.

    Args:
        modules: All modules by name.
        uncalled: See `count_macs`.

    Yields:
        Layer to its uses so far.
    """
    uses: dict[str, list[Use]] = defaultdict(list)

    def hook(layers: Sequence[str]) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: Any, options: Any) -> None:
            positions = inputs[0].numel() // inputs[0].shape[-1]
            if options.get("severed"):
                uses[layers[0]].append(Use(2 * int(inputs[0].shape[-1]), positions))
                return
            for layer in layers:
                uses[layer].append(Use(0, positions))

        return enter

    handles = [
        modules[name].register_forward_pre_hook(hook(layers), with_kwargs=True) for name, layers in uncalled.items()
    ]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def multiplied_macs(attention: nn.Module, layer: str, uses: Sequence[Use]) -> int:
    """Return the MACs of the uses of a layer's weight.

    Args:
        attention: The attention that uses it.
        layer: Name of the layer.
        uses: Its uses.
    """
    weight = attention.get_parameter(weight_name(layer.rpartition(".")[2]))
    return sum(use.positions * weight[use.start :].numel() for use in uses)


def run_on_meta(module: nn.Module, shape: Sequence[int], forward: Forward | None = None) -> None:
    """Run a module on meta images, in eval mode and without gradients.

    While it runs, its weights are replaced by float32 meta tensors, so that float16 and bfloat16 models run the
    operations that float32 ones do. Module and weights are left as they were.

    Args:
        module: Module of any device and dtype.
        shape: Shape of the images.
        forward: What to run; None for the module itself.
    """
    wrapper = _Wrapper(module, module if forward is None else forward)
    tensors = dict(wrapper.named_parameters()) | dict(wrapper.named_buffers())  # a shared tensor appears once
    stand_ins = {name: _float32_on_meta(value) for name, value in tensors.items()}
    with eval_mode(wrapper), torch.inference_mode(False), torch.no_grad():
        torch.func.functional_call(wrapper, stand_ins, (torch.empty(tuple(shape), device="meta"),))


@contextmanager
def track_running(module: nn.Module, before_change: Callable[[], None] = lambda: None) -> Iterator[list[str]]:
    """Track which inner module is running.

    Args:
        module: Module that runs inside the block.
        before_change: Called before another inner module becomes the running one.

    Yields:
        Names of the modules that are running, the innermost last; "" is `module` itself.
    """
    running = [""]
    handles = []
    for name, inner in module.named_modules():

        def enter(_module: nn.Module, _inputs: Any, name: str = name) -> None:
            before_change()
            running.append(name)

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            before_change()
            running.pop()

        handles += [inner.register_forward_pre_hook(enter), inner.register_forward_hook(leave)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


class Meter:
    """Torch's dispatch counter of products, of a backward pass too, read in portions."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_gradients}
        )
        self._read = 0

    def take(self) -> int:
        """Return the MACs since the last call."""
        before, self._read = self._read, self.counter.get_total_flops() // 2
        return self._read - before


class ShapeOnlyResampling(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """While active, resizing and sampling of meta tensors only compute the shape of their result.

    Torch's own implementation for meta tensors takes half the time of a count. Enter this mode before others, which
    then see these operations as usual.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RESIZING:
            return self._resize(*_RESIZING[func], *args[:2])
        if func in _SAMPLING:
            return self._sample(_SAMPLING[func][args[2]], *args[:2])
        return func(*args, **(kwargs or {}))

    def _resize(self, _operation: str, _neighbours: int, images: Tensor, size: Sequence[int]) -> Tensor:
        return images.new_empty([*images.shape[:2], *size])

    def _sample(self, _neighbours: int, images: Tensor, positions: Tensor) -> Tensor:
        return images.new_empty([*images.shape[:2], *positions.shape[1:-1]])


class ResamplingCounter(ShapeOnlyResampling):  # type: ignore[no-untyped-call]
    """While active, report the MACs of every resizing and sampling of meta tensors.

    Args:
        record: Called with the name of the operation and its MACs.
        running: Returns the module that is running.
    """

    def __init__(self, record: Callable[[str, int], None], running: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.record, self.running = record, running

    def _resize(self, operation: str, neighbours: int, images: Tensor, size: Sequence[int]) -> Tensor:
        resized = super()._resize(operation, neighbours, images, size)
        if resized.shape != images.shape:
            self.record(operation, neighbours * resized.numel())
        return resized

    def _sample(self, neighbours: int, images: Tensor, positions: Tensor) -> Tensor:
        sampled = super()._sample(neighbours, images, positions)
        if is_deformable_attention(self.running()):
            self.record("deformable_sampling", neighbours * sampled.numel())
            self.record("deformable_weighting", sampled.numel())
        elif neighbours:
            self.record("grid_sampling", neighbours * sampled.numel())
        return sampled


def is_deformable_attention(module: nn.Module) -> bool:
    """Return whether a module is deformable attention, by the layer names that all implementations share."""
    return hasattr(module, "sampling_offsets") and hasattr(module, "attention_weights")


_RESIZING = {
    torch.ops.aten.upsample_linear1d.default: ("linear_resizing", 2),
    torch.ops.aten.upsample_bilinear2d.default: ("bilinear_resizing", 4),
    torch.ops.aten.upsample_bicubic2d.default: ("bicubic_resizing", 16),
    torch.ops.aten.upsample_trilinear3d.default: ("trilinear_resizing", 8),
}
"""Operators that resize (images, size, ...): name of the operation, and neighbours of a value."""

_SAMPLING = {
    torch.ops.aten.grid_sampler_2d.default: (4, 0, 16),
    torch.ops.aten.grid_sampler_3d.default: (8, 0),
}
"""Operators that sample (images, positions, mode, ...): neighbours of a value, by mode (linear, nearest, cubic)."""


class _Wrapper(nn.Module):
    """A module around the counted one: `functional_call` runs `forward` and nothing else."""

    def __init__(self, module: nn.Module, run: Forward) -> None:
        super().__init__()
        self.inside = module
        object.__setattr__(self, "run", run)  # a module as an attribute would become a second path to its weights

    def forward(self, images: Tensor) -> Any:
        return self.run(images)  # type: ignore[operator]


def _float32_on_meta(value: Tensor) -> Tensor:
    return torch.empty_like(value, device="meta", dtype=torch.float32 if value.is_floating_point() else None)


def _convolution_gradients(
    gradient: Any,
    images: Any,
    weight: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    needed: Sequence[bool],
    *_: Any,
    **__: Any,
) -> int:
    """Return the FLOPs of a convolution's gradients: each costs what the convolution does.

    Torch's own formula overstates the weight gradient of g groups by a factor of g.
    """
    positions = (images if transposed else gradient)[2:]
    once = 2 * _numel(weight) * _numel(positions) * int(images[0])
    return once * sum(needed[:2])


def _vector_product(matrix: Any, _vector: Any, *_: Any, **__: Any) -> int:
    return 2 * _numel(matrix)


def _added_vector_product(_bias: Any, matrix: Any, *_: Any, **__: Any) -> int:
    return 2 * _numel(matrix)


def _added_batch_product(_bias: Any, first: Any, second: Any, *_: Any, **__: Any) -> int:
    return 2 * _numel(first) * int(second[-1])


def _numel(shape: Any) -> int:
    return int(torch.Size(shape).numel())


_VECTOR_FLOPS = {
    torch.ops.aten.mv: _vector_product,
    torch.ops.aten.dot: _vector_product,
    torch.ops.aten.vdot: _vector_product,
    torch.ops.aten.addmv: _added_vector_product,
    torch.ops.aten.addbmm: _added_batch_product,
}
"""FLOPs (two a MAC, as torch's counter has them) of products that torch's counter does not know."""
