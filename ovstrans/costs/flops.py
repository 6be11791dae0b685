"""Counting multiply-accumulates of a forward pass: dense, and what is left under a mask.

The unit is always the MAC, one multiplication with its addition; FLOPs are twice that. `torch` is the counter
of truth: torch's dispatch counter sees every matrix product and convolution that runs, here on meta tensors,
so that a count takes no memory and no arithmetic, whatever the image size, the batch and the dtype; sampling
and resizing, which it does not see, are counted apart as `other`, in closed form. Norms, activations and
pooling are left out, and so are plain products that nothing adds up. `fvcore` and `thop-rules` are the
literature's counters. Both add norms and miss some attention, thop much more besides; `fvcore` also adds
resizing, and runs the model for real.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ovstrans.costs.dispatch import count_dispatched
from ovstrans.costs.meta import evaluating
from ovstrans.costs.params import component_of, component_prefixes, encoder_prefix, kept_weights
from ovstrans.costs.thop_rules import count_thop
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Framework
from ovstrans.masks.mask import Mask

COUNTERS = ("torch", "fvcore", "thop-rules")

INFERENCE = "inference"
"""The component of what a framework itself computes, after its heads: scores of queries become scores of pixels."""


@dataclass(frozen=True)
class LayerFlops:
    """name: the layer's (trunk layers without prefix).  dense, effective: MACs of the whole batch."""

    name: str
    component: str
    dense: int
    effective: int


@dataclass(frozen=True)
class OtherFlops:
    """MACs of one kind of sampling or resizing, such as "bilinear_resizing", in one module."""

    name: str
    component: str
    operation: str
    macs: int


@dataclass(frozen=True)
class Flops:
    """MACs of one forward pass over `batch` images of `image_size` (height, width).

    layers: matrix products and convolutions.  others: sampling and resizing, in none of the sums; None where
    the counter does not tell them apart.
    """

    image_size: tuple[int, int]
    batch: int
    counter: str
    layers: tuple[LayerFlops, ...]
    others: tuple[OtherFlops, ...] | None = None

    @property
    def dense(self) -> int:
        """MACs with every weight at work."""
        return sum(layer.dense for layer in self.layers)

    @property
    def effective(self) -> int:
        """MACs of the weights the mask keeps: nonzeros x output positions, layer by layer."""
        return sum(layer.effective for layer in self.layers)

    @property
    def other(self) -> int | None:
        """MACs of sampling and resizing; None where the counter does not tell them apart."""
        return None if self.others is None else sum(each.macs for each in self.others)

    def components(self) -> dict[str, dict[str, int]]:
        """{"dense", "effective"} of each component, in order of appearance."""
        parts: dict[str, dict[str, int]] = {}
        for layer in self.layers:
            part = parts.setdefault(layer.component, {"dense": 0, "effective": 0})
            part["dense"] += layer.dense
            part["effective"] += layer.effective
        return parts

    def as_json(self, *, per_layer: bool = False) -> dict[str, Any]:
        """The `flops` entry of a report. All figures are MACs but those under `flops`, which are twice that."""
        entry: dict[str, Any] = {
            "unit": "MAC",
            "image_size": list(self.image_size),
            "batch": self.batch,
            "counter": self.counter,
            "dense": self.dense,
            "effective": self.effective,
            "components": self.components(),
            "other": self._other_json(),
            "flops": {
                "unit": "FLOP",
                "dense": 2 * self.dense,
                "effective": 2 * self.effective,
                "other": None if self.other is None else 2 * self.other,
            },
        }
        if per_layer:
            entry["layers"] = [
                {"name": one.name, "component": one.component, "dense": one.dense, "effective": one.effective}
                for one in self.layers
            ]
            entry["other_layers"] = [
                {"name": one.name, "component": one.component, "operation": one.operation, "macs": one.macs}
                for one in self.others or ()
            ]
        return entry

    def _other_json(self) -> dict[str, Any] | None:
        if self.others is None:
            return None
        operations: dict[str, int] = {}
        components: dict[str, int] = {}
        for each in self.others:
            operations[each.operation] = operations.get(each.operation, 0) + each.macs
            components[each.component] = components.get(each.component, 0) + each.macs
        return {"total": self.other, "operations": operations, "components": components}


def count_flops(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    components: Mapping[str, nn.Module] | None = None,
    mask: Mask | None = None,
    counter: str = "torch",
    batch: int = 1,
) -> Flops:
    """MACs of a framework's `segment(images)`, of any other `module(images)`, in eval mode.

    The literature's counters run `module(images)` whatever it is, `thop-rules` as its released code does.
    images: [batch, 3, *image_size].  module: weights of any device, or meta (`fvcore` runs it for real and
    needs memory and time).  A masked layer's effective MACs are exact: its dense MACs / weights x weights
    kept. Products outside any layer (attention, text similarity) belong to the module that runs them. Raises
    InputError for an unknown counter or an empty image, MismatchError where the mask is of another
    architecture.
    """
    if counter not in COUNTERS:
        raise InputError(f"--counter {counter}: unknown; use {', '.join(COUNTERS[:-1])} or {COUNTERS[-1]}")
    if min(*image_size, batch) < 1:
        raise InputError(f"image size {image_size[0]}x{image_size[1]}, batch {batch}: each must be at least 1")
    shape = (batch, 3, *image_size)
    others: Mapping[tuple[str, str], int] | None = None
    if counter == "torch":
        call = module.segment if isinstance(module, Framework) else None
        macs, others = count_dispatched(module, shape, call)
    elif counter == "fvcore":
        macs = _count_fvcore(module, shape)
    else:
        macs = {layer.name: layer.macs for layer in count_thop(module, image_size, batch=batch).layers}
    places = _Places(module, components or {})
    kept, modules = kept_weights(module, mask), dict(module.named_modules())
    layers = []
    for name, dense in macs.items():
        weight = getattr(modules[name], "weight", None)
        effective = dense
        if f"{name}.weight" in kept and isinstance(weight, torch.Tensor):
            positions, rest = divmod(dense, weight.numel())
            assert rest == 0, f"{name}: {dense} MACs are no multiple of its {weight.numel()} weights"
            effective = positions * kept[f"{name}.weight"]
        layers.append(LayerFlops(*places.of(name), dense, effective))
    if others is None:
        return Flops(image_size, batch, counter, tuple(layers))
    apart = tuple(OtherFlops(*places.of(name), operation, count) for (name, operation), count in others.items())
    return Flops(image_size, batch, counter, tuple(layers), apart)


class _Places:
    """What reports call a module, and the component it is in."""

    def __init__(self, module: nn.Module, components: Mapping[str, nn.Module]) -> None:
        self.module, self.prefix = module, encoder_prefix(module)
        self.prefixes = component_prefixes(module, components)

    def of(self, name: str) -> tuple[str, str]:
        """(shown name, component)."""
        shown = name.removeprefix(self.prefix) or type(self.module).__name__
        if not name and isinstance(self.module, Framework):
            return shown, INFERENCE
        return shown, component_of(name, self.prefixes)


def _count_fvcore(module: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """MACs of `module(images)` by fvcore's rules; it is run on its own device with whatever weights it has."""
    if any(value.is_meta for value in module.parameters()):
        raise InputError("--counter fvcore: runs the model for real and cannot count one without weights")
    device = next(module.parameters()).device
    with warnings.catch_warnings(), torch.no_grad(), evaluating(module):
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
