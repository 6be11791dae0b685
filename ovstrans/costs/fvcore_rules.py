"""The conventions of `fvcore` as rules on meta tensors, for heads that it would take half a minute to trace.

fvcore 0.1.5.post20221221 traces a model for real and has a formula for each operation; on meta tensors it fails.
The rules here are its formulas, applied to what torch's dispatcher sees. Its blind spots are part of them: fused
products with an addition (`baddbmm`, which carries the masks of `nn.MultiheadAttention`) count nothing, and of
deformable attention only the sampling does. Left out: `scaled_dot_product_attention`, which fvcore does not
know either, but which arrives here as the products it is made of; no head of ours runs it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ovstrans.costs.interpolation_macs import ShapesOnly
from ovstrans.costs.meta import run_on_meta, visited
from ovstrans.costs.params import component_of, component_prefixes

Rule = Callable[[Any, Any], int]
"""(arguments of an operation, its result) to operations."""

NORM, PLAIN_NORM = 5, 4
"""Operations of an input element of a layer or group norm, with scale and shift or without."""
BATCH_NORM, PLAIN_BATCH_NORM = 2, 1
NEIGHBOURS = 4
"""Operations of an output element of bilinear resizing and sampling."""


def _product(given: Any, made: Any) -> int:
    return int(made.numel() * given[0].shape[-1])


def _added_product(given: Any, made: Any) -> int:
    return int(made.numel() * given[1].shape[-1])


def _convolution(given: Any, made: Any) -> int:
    images, weight, transposed = given[0], given[1], given[6]
    return int(weight.numel() * (images if transposed else made)[0, 0].numel() * images.shape[0])


def _layer_norm(given: Any, _made: Any) -> int:
    return int(given[0].numel() * (PLAIN_NORM if given[2] is None else NORM))


def _group_norm(given: Any, _made: Any) -> int:
    return int(given[0].numel() * (PLAIN_NORM if given[1] is None else NORM))


def _batch_norm(given: Any, _made: Any) -> int:
    return int(given[0].numel() * (PLAIN_BATCH_NORM if given[1] is None else BATCH_NORM))


def _each_input(given: Any, _made: Any) -> int:
    return int(given[0].numel())


def _resampled(_given: Any, made: Any) -> int:
    return int(NEIGHBOURS * made.numel())


_ATEN = torch.ops.aten

FVCORE: Mapping[Any, Rule] = {
    _ATEN.mm: _product,
    _ATEN.bmm: _product,
    _ATEN.addmm: _added_product,
    _ATEN.convolution: _convolution,
    _ATEN.native_layer_norm: _layer_norm,
    _ATEN.native_group_norm: _group_norm,
    _ATEN._native_batch_norm_legit_no_training: _batch_norm,
    _ATEN.native_batch_norm: _batch_norm,
    _ATEN._adaptive_avg_pool2d: _each_input,
    _ATEN.upsample_bilinear2d: _resampled,
    _ATEN.grid_sampler: _resampled,
    _ATEN.grid_sampler_2d: _resampled,
}
"""Operation to fvcore's formula; what is not here costs nothing."""


def count_fvcore_rules(
    module: nn.Module, image_size: tuple[int, int], *, components: Mapping[str, nn.Module], batch: int = 1
) -> dict[str, int]:
    """Component to what fvcore would report of it in `module(images)`, images [batch, 3, *image_size].

    module: weights of any device, or meta; in eval mode.  components: its parts, by name.
    """
    prefixes = component_prefixes(module, components)
    running = [""]
    counts: dict[str, int] = defaultdict(int)

    def visit(name: str, starts: bool) -> None:
        if starts:
            running.append(name)
        else:
            running.pop()

    def record(count: int) -> None:
        counts[component_of(running[-1], prefixes)] += count

    with visited(module, visit), ShapesOnly(), _Rules(record):
        run_on_meta(module, (batch, 3, *image_size))
    return dict(counts)


class _Rules(TorchDispatchMode):
    """While it is on, `record(operations)` hears of every operation that has a rule."""

    def __init__(self, record: Callable[[int], None]) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        rule = FVCORE.get(func.overloadpacket)
        if rule is not None:
            self.record(rule(args, made))
        return made
