"""Switching torch modules between train and eval mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


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
