"""Counting multiply-accumulates of a forward pass: dense, and what is left under a mask.

The unit is always the MAC, one multiplication with its addition; FLOPs are twice that. `torch` is
the counter of truth: torch's dispatch counter sees every matrix product and convolution that runs,
here on meta tensors, so that a count takes no memory and no arithmetic. It leaves out what the field
leaves out too: norms, activations, pooling, resizing. `fvcore` is the literature's counter: it adds
norms and resizing, misses some kinds of attention, and runs the model for real.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ovstrans.cost.params import component_of, component_prefixes, kept_weights, tower_prefix
from ovstrans.errors import InputError
from ovstrans.masks.mask import Mask

COUNTERS = ("torch", "fvcore")


@dataclass(frozen=True)
class LayerFlops:
    """name: the layer's (trunk layers without prefix).  dense, effective: MACs of the whole batch."""

    name: str
    component: str
    dense: int
    effective: int


@dataclass(frozen=True)
class Flops:
    """MACs of one forward pass over `batch` images of `image_size` (height, width)."""

    image_size: tuple[int, int]
    batch: int
    counter: str
    layers: tuple[LayerFlops, ...]

    @property
    def dense(self) -> int:
        """MACs with every weight at work."""
        return sum(layer.dense for layer in self.layers)

    @property
    def effective(self) -> int:
        """MACs of the weights the mask keeps: nonzeros x output positions, layer by layer."""
        return sum(layer.effective for layer in self.layers)

    def components(self) -> dict[str, dict[str, int]]:
        """{"dense", "effective"} of each component, in order of appearance."""
        parts: dict[str, dict[str, int]] = {}
        for layer in self.layers:
            part = parts.setdefault(layer.component, {"dense": 0, "effective": 0})
            part["dense"] += layer.dense
            part["effective"] += layer.effective
        return parts

    def as_json(self, *, per_layer: bool = False) -> dict[str, Any]:
        """The `flops` entry of a report."""
        entry: dict[str, Any] = {
            "unit": "MAC",
            "image_size": list(self.image_size),
            "batch": self.batch,
            "counter": self.counter,
            "dense": self.dense,
            "effective": self.effective,
            "components": self.components(),
        }
        if per_layer:
            entry["layers"] = [
                {"name": one.name, "component": one.component, "dense": one.dense, "effective": one.effective}
                for one in self.layers
            ]
        return entry


def count_flops(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    components: Mapping[str, nn.Module] | None = None,
    mask: Mask | None = None,
    counter: str = "torch",
    batch: int = 1,
) -> Flops:
    """MACs of `module(images)`, images [batch, 3, *image_size], in eval mode.

    module: weights of any device, or meta (`fvcore` runs it for real and needs memory and time).  A
    masked layer's effective MACs are exact: its dense MACs / weights x weights kept. Products outside
    any layer (attention, text similarity) belong to the module that runs them. Raises InputError for an
    unknown counter or an empty image, MismatchError where the mask is of another architecture.
    """
    if counter not in COUNTERS:
        raise InputError(f"--counter {counter}: unknown; use {' or '.join(COUNTERS)}")
    if min(*image_size, batch) < 1:
        raise InputError(f"image size {image_size[0]}x{image_size[1]}, batch {batch}: each must be at least 1")
    with _evaluating(module):
        count = _count_torch if counter == "torch" else _count_fvcore
        macs = count(module, (batch, 3, *image_size))
    kept, prefix = kept_weights(module, mask), tower_prefix(module)
    prefixes = component_prefixes(module, components or {})
    modules = dict(module.named_modules())
    layers = []
    for name, dense in macs.items():
        weight = getattr(modules[name], "weight", None)
        effective = dense
        if f"{name}.weight" in kept and isinstance(weight, torch.Tensor):
            positions, rest = divmod(dense, weight.numel())
            assert rest == 0, f"{name}: {dense} MACs are no multiple of its {weight.numel()} weights"
            effective = positions * kept[f"{name}.weight"]
        component = component_of(name, prefixes)
        shown = name.removeprefix(prefix) or type(module).__name__
        layers.append(LayerFlops(shown, component, dense, effective))
    return Flops(image_size, batch, counter, tuple(layers))


def _count_torch(module: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Module name to the MACs that run in it but in none of its children."""
    macs: dict[str, int] = defaultdict(int)
    stack, counted = [""], 0
    meter = FlopCounterMode(display=False)

    def settle() -> None:
        nonlocal counted
        now = meter.get_total_flops()
        if now != counted:
            macs[stack[-1]] += (now - counted) // 2
        counted = now

    handles = []
    for name, inner in module.named_modules():

        def enter(_module: nn.Module, _inputs: Any, name: str = name) -> None:
            settle()
            stack.append(name)

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            settle()
            stack.pop()

        handles += [inner.register_forward_pre_hook(enter), inner.register_forward_hook(leave)]
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    shadow = {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}
    try:
        with torch.no_grad(), meter:
            torch.func.functional_call(module, shadow, (torch.empty(shape, device="meta"),))
            settle()
    finally:
        for handle in handles:
            handle.remove()
    return macs


def _count_fvcore(module: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """The same by fvcore's rules; the module is run on the CPU with whatever weights it has."""
    if any(value.is_meta for value in module.parameters()):
        raise InputError("--counter fvcore: runs the model for real and cannot count one without weights")
    device = next(module.parameters()).device
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis  # warns where torch deprecates what it imports

        analysis = FlopCountAnalysis(module, torch.zeros(shape, device=device))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        inclusive = {name: int(value) for name, value in analysis.by_module().items()}
    exclusive = dict(inclusive)
    for name, value in inclusive.items():
        if name:
            exclusive[name.rpartition(".")[0]] -= value
    return {name: value for name, value in exclusive.items() if value}


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, was in training.items():
            inner.training = was
