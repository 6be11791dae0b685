"""The counter of truth: what torch's dispatcher executes, on meta tensors, by the module that runs it.

torch's own counter knows matrix products, convolutions and fused attention. Products of a matrix or vector
with a vector are added here. Meta tensors never take a fused path that a counter cannot look into
(`nn.MultiheadAttention` has one on the CPU), and an einsum arrives as the batched products it is made of.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ovstrans.costs.interpolation_macs import OtherOperations
from ovstrans.costs.meta import Call, run_on_meta, visited

Macs = dict[str, int]
"""Module name to the MACs that run in it but in none of its inner modules."""


def count_dispatched(
    module: nn.Module, shape: tuple[int, ...], call: Call | None = None
) -> tuple[Macs, dict[tuple[str, str], int]]:
    """(products, others) of `module(images)`, or `call(images)`, on images of `shape`, in eval mode.

    products: MACs of matrix products and convolutions by module.  others: of sampling and resizing (see
    `other`), by module and operation.
    """
    products: Macs = defaultdict(int)
    others: dict[tuple[str, str], int] = defaultdict(int)
    modules = dict(module.named_modules())
    stack, counted = [""], 0
    meter = FlopCounterMode(display=False, custom_mapping=_VECTORS)

    def settle() -> None:
        nonlocal counted
        now = meter.get_total_flops()
        if now != counted:
            products[stack[-1]] += (now - counted) // 2
        counted = now

    def visit(name: str, starts: bool) -> None:
        settle()
        if starts:
            stack.append(name)
        else:
            stack.pop()

    def record(operation: str, macs: int) -> None:
        others[stack[-1], operation] += macs

    with visited(module, visit), meter, OtherOperations(record, lambda: modules[stack[-1]]):
        run_on_meta(module, shape, call)
        settle()
    return products, others


def _vector_product(matrix: Any, _vector: Any, *_: Any, **__: Any) -> int:
    return 2 * _numel(matrix)


def _added_vector_product(_bias: Any, matrix: Any, *_: Any, **__: Any) -> int:
    return 2 * _numel(matrix)


def _added_batch_product(_bias: Any, first: Any, second: Any, *_: Any, **__: Any) -> int:
    return 2 * _numel(first) * int(second[-1])


def _numel(shape: Any) -> int:
    return int(torch.Size(shape).numel())


_VECTORS = {
    torch.ops.aten.mv: _vector_product,
    torch.ops.aten.dot: _vector_product,
    torch.ops.aten.vdot: _vector_product,
    torch.ops.aten.addmv: _added_vector_product,
    torch.ops.aten.addbmm: _added_batch_product,
}
"""FLOPs, two a MAC as torch's counter has them, of products that it does not know."""
