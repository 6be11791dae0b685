"""Torch modules of any program: train and eval mode, BatchNorm statistics, and making torch's pruning permanent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

    _Module = TypeVar("_Module", bound=nn.Module)


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode while the block runs.

    Afterwards every submodule has the mode that it had before: in a framework some may be in train mode while others,
    a frozen BatchNorm for instance, are not.

    Args:
        module: Any module.
    """
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inner, training in modes:
            inner.training = training


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return the BatchNorms in a module that keep running statistics."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [inner for inner in module.modules() if isinstance(inner, _BatchNorm) and inner.track_running_stats]


@contextlib.contextmanager
def recompute_statistics(module: nn.Module) -> Iterator[None]:
    """Let every BatchNorm average the statistics of what it sees in the block, from the first batch on.

    The mean of the batches replaces the running statistics. Put the module in eval mode first; inside the block its
    BatchNorms are in train mode.

    Args:
        module: Any module.
    """
    norms: list[Any] = batch_norms(module)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def bake_pruning(module: _Module) -> _Module:
    """Return a copy of a module in which the masks of `torch.nn.utils.prune` are permanent; itself without any.

    A module under torch's pruning cannot be copied by `copy.deepcopy`, and its state dict has other names.

    Args:
        module: Any module. It is not changed.
    """
    if not any(name.endswith("_orig") for name, _ in module.named_parameters()):
        return module
    import copy

    from torch import Tensor
    from torch.nn.utils import prune

    remove: Callable[[nn.Module, str], object] = prune.remove
    computed = [value for inner in module.modules() for value in vars(inner).values() if isinstance(value, Tensor)]
    copied = copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})
    for inner in copied.modules():
        for name in [name.removesuffix("_orig") for name, _ in inner.named_parameters(recurse=False)]:
            if hasattr(inner, f"{name}_mask") and hasattr(inner, f"{name}_orig"):
                remove(inner, name)
    return copied
