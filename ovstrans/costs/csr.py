"""Masked layers run by torch's own sparse matrices, where that is faster.

A 1x1 convolution or linear layer with a masked weight is a product with a matrix of mostly zeros; torch can hold that
matrix as compressed sparse rows (CSR) and skip the zeros. Whether this gains time depends on the layer, the density
and the machine, so each layer tries both on its first input and keeps the faster. All other masked layers run dense:
torch has no sparse kernel for them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_TRIALS = 3


@dataclass
class SparseLayers:
    """The masked layers of a sparse pass.

    Attributes:
        tried: Names of those that could run as CSR.
        used: Names of those that do, since they are faster so.
    """

    tried: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)


def make_sparse_pass(
    module: nn.Module, masked: Collection[str], run: Callable[[], object]
) -> tuple[Callable[[], object], SparseLayers]:
    """Make a version of `run` in which layers of a module are CSR matrices, if they are faster so.

    Each layer chooses in the first pass. Between passes the module is what it was. For inference only, and only for
    layers that are called as modules.

    Args:
        module: Module that `run` runs.
        masked: Names of its masked parameters.
        run: The dense pass.

    Returns:
        The sparse pass, and the layers that it concerns.
    """
    state = SparseLayers()
    layers = [
        (layer, _make_chooser(name, layer, state))
        for name, layer in module.named_modules()
        if f"{name}.weight" in masked and _is_matrix(layer)
    ]

    def sparse_run() -> object:
        try:
            for layer, forward in layers:
                layer.forward = forward
            return run()
        finally:
            for layer, _ in layers:
                vars(layer).pop("forward", None)

    return sparse_run, state


def make_csr_forward(layer: Any) -> Callable[[Tensor], Tensor]:
    """Make the forward of a 1x1 convolution (NCHW) or linear layer (features last) that uses a CSR matrix."""
    weight, bias = layer.weight.detach(), layer.bias
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR tensors a beta
        matrix = weight.flatten(1).to_sparse_csr()
    channels = 1 if isinstance(layer, nn.Conv2d) else -1

    def forward(inputs: Tensor) -> Tensor:
        flat = inputs.movedim(channels, 0)
        product = matrix @ flat.reshape(flat.shape[0], -1)
        if bias is not None:
            product += bias[:, None]
        shaped: Tensor = product.reshape(-1, *flat.shape[1:]).movedim(0, channels)
        return shaped

    return forward


def synchronize(device: torch.device) -> None:
    """Wait for the work that was started on a GPU; the CPU does not need it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _is_matrix(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)
    return isinstance(layer, nn.Linear)


def _make_chooser(name: str, layer: nn.Module, state: SparseLayers) -> Callable[[Tensor], Tensor]:
    """Make the forward of a layer that tries both ways on its first input, and keeps the faster."""
    dense = type(layer).forward.__get__(layer)
    chosen: list[Callable[[Tensor], Tensor]] = []

    def forward(inputs: Tensor) -> Tensor:
        if not chosen:
            state.tried.append(name)
            sparse = make_csr_forward(layer)
            faster = _seconds(sparse, inputs) < _seconds(dense, inputs)
            chosen.append(sparse if faster else dense)
            if faster:
                state.used.append(name)
        return chosen[0](inputs)

    return forward


def _seconds(run: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    """Return the time of the fastest of some runs, after one to warm up."""
    times = []
    for _ in range(_TRIALS + 1):
        synchronize(inputs.device)
        start = time.perf_counter()
        run(inputs)
        synchronize(inputs.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
