"""Parts that compute in float32 under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """No autocast for what runs on this tensor's device (meta tensors know none)."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
