"""The counter `fvcore`: the library itself, and its conventions as rules on meta tensors.

fvcore 0.1.5.post20221221 traces a model for real and has a formula for each operation; on meta tensors it fails, and
some heads take it half a minute. The rules here are its formulas, applied to what torch's dispatcher sees, its blind
spots included: fused products with an addition (`baddbmm`, which carries the masks of `nn.MultiheadAttention`) count
nothing, and of deformable attention only the sampling does. Left out is `scaled_dot_product_attention`: fvcore does
not know it either, but it arrives here as the products it is made of. No head here runs it.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ovstrans.costs.counter import ShapeOnlyResampling, run_on_meta, track_running
from ovstrans.costs.params import LayerNames
from ovstrans.environment import eval_mode
from ovstrans.errors import InputError

Rule = Callable[[Any, Any], int]
"""Computes a number of operations from the arguments of an operator and its result."""

NORM, PLAIN_NORM = 5, 4
"""Operations per input element of a layer or group norm, with scale and shift or without."""
BATCH_NORM, PLAIN_BATCH_NORM = 2, 1
"""The same of a batch norm."""
NEIGHBOURS = 4
"""Operations per output element of bilinear resizing and sampling."""


def run_fvcore(module: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Count `module(images)` with the library.

    Args:
        module: Module to run in eval mode, on its own device with the weights that it has.
        shape: Shape of the images.

    Returns:
        Name of a module to its operations, those of its inner modules left out.

    Raises:
        InputError: If the module is on meta.
    """
    if any(value.is_meta for value in module.parameters()):
        raise InputError("`counter=fvcore`: runs the model for real and cannot count one without weights")
    device = next(module.parameters()).device
    with warnings.catch_warnings(), torch.no_grad(), eval_mode(module):
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


def count_fvcore_rules(
    module: nn.Module, image_size: tuple[int, int], *, components: Mapping[str, nn.Module], batch: int = 1
) -> dict[str, int]:
    """Count `module(images)` by fvcore's rules.

    Args:
        module: Module to run in eval mode, with weights of any device or on meta.
        image_size: Height and width.
        components: Parts of the module to count separately.
        batch: Number of images.

    Returns:
        Component to what fvcore would report of it.
    """
    names = LayerNames(module, components)
    counts: dict[str, int] = defaultdict(int)

    def record(count: int) -> None:
        counts[names.component(running[-1])] += count

    with track_running(module) as running, ShapeOnlyResampling(), _Rules(record):
        run_on_meta(module, (batch, 3, *image_size))
    return dict(counts)


class _Rules(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """While active, report the operations of every operator that has a rule to `record`."""

    def __init__(self, record: Callable[[int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        rule = FVCORE.get(func.overloadpacket)
        if rule is not None:
            self.record(rule(args, result))
        return result


def _product(args: Any, result: Any) -> int:
    return int(result.numel() * args[0].shape[-1])


def _added_product(args: Any, result: Any) -> int:
    return int(result.numel() * args[1].shape[-1])


def _convolution(args: Any, result: Any) -> int:
    images, weight, transposed = args[0], args[1], args[6]
    return int(weight.numel() * (images if transposed else result)[0, 0].numel() * images.shape[0])


def _layer_norm(args: Any, _result: Any) -> int:
    return int(args[0].numel() * (PLAIN_NORM if args[2] is None else NORM))


def _group_norm(args: Any, _result: Any) -> int:
    return int(args[0].numel() * (PLAIN_NORM if args[1] is None else NORM))


def _batch_norm(args: Any, _result: Any) -> int:
    return int(args[0].numel() * (PLAIN_BATCH_NORM if args[1] is None else BATCH_NORM))


def _each_input(args: Any, _result: Any) -> int:
    return int(args[0].numel())


def _resampled(_args: Any, result: Any) -> int:
    return int(NEIGHBOURS * result.numel())


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
"""Operator to fvcore's formula; any other operator costs nothing."""
