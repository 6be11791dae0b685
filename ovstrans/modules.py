"""Torch modules of any program: switching train and eval mode, and making torch's pruning permanent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

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
