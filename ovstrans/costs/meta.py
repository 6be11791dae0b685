"""Running a module on meta tensors: shapes and operations are real, arithmetic and memory are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[Tensor], Any]
"""Something to run on images [B, 3, H, W], by methods of the module that is counted."""


def run_on_meta(module: nn.Module, shape: tuple[int, ...], call: Call | None = None) -> None:
    """`module(images)`, or `call(images)`, on meta images of `shape`, without gradients, in eval mode.

    module: of any device and dtype.  Its weights are stand-ins of float32 while it runs, so that float16
    and bfloat16 run the operations that float32 does; module and weights are left as they were.
    """
    entrance = _Entrance(module, module if call is None else call)
    tensors = dict(entrance.named_parameters()) | dict(entrance.named_buffers())  # one that is shared once
    shadow = {name: _stand_in(value) for name, value in tensors.items()}
    with evaluating(module), torch.inference_mode(False), torch.no_grad():
        torch.func.functional_call(entrance, shadow, (torch.empty(shape, device="meta"),))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode, and back to the mode that each inner module was in."""
    training = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for inner, was in training.items():
            inner.training = was


@contextmanager
def visited(module: nn.Module, visitor: Callable[[str, bool], None]) -> Iterator[None]:
    """`visitor(name, True)` whenever an inner module starts to run, `visitor(name, False)` when it is done."""
    handles = []
    for name, inner in module.named_modules():

        def enter(_module: nn.Module, _inputs: Any, name: str = name) -> None:
            visitor(name, True)

        def leave(_module: nn.Module, _inputs: Any, _output: Any, name: str = name) -> None:
            visitor(name, False)

        handles += [inner.register_forward_pre_hook(enter), inner.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Entrance(nn.Module):
    """A way in for `functional_call`, which runs a module's forward and nothing else."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.inside = module
        object.__setattr__(self, "call", call)  # a module as an attribute would become a second way to its weights

    def forward(self, images: Tensor) -> Any:
        """What the call returns."""
        return self.call(images)  # type: ignore[operator]


def _stand_in(value: Tensor) -> Tensor:
    return torch.empty_like(value, device="meta", dtype=torch.float32 if value.is_floating_point() else None)
