"""Reference counts: what torch's own counter sees of a real pass, whatever the version of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Run attention as the matrix products it is made of.

    Which fused kernels torch's counter knows depends on its version: that of 2.14 leaves the CPU's out.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def executed_macs(run: Callable[[], object]) -> int:
    """Return the MACs that `run()` executes on real tensors, by torch's dispatch counter."""
    with unfused_attention(), FlopCounterMode(display=False) as meter:
        run()
    return meter.get_total_flops() // 2
