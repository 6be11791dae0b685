"""Masks of 2:4 on NVIDIA's sparse tensor cores, by torch's semi-structured tensors.

A matrix [O, I] of which two of every four consecutive inputs are zero is stored as half the values and their places,
and multiplied by kernels of cuSPARSELt or CUTLASS. Linear layers run by it as they are, 1x1 convolutions as linear
layers over their positions. Other convolutions stay dense, and so do weights that an attention multiplies by itself.

Shapes: `O` outputs, `I` inputs, `B` batch, `H W` map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.layers import uncalled_layers
from ovstrans.errors import InputError
from ovstrans.masks.granularity import Groups

ROWS, COLUMNS = 32, 64
"""Outputs and inputs must be multiples of these: what both of torch's backends take in half precision."""

DTYPES = (torch.float16, torch.bfloat16)

CAPABILITY = (8, 0)
"""Least compute capability with sparse tensor cores (Ampere)."""


@dataclass(frozen=True)
class SemiStructured:
    """Which layers of a module `to_semi_structured` converted, and which stay dense.

    Attributes:
        sparse: Names of the layers that run by sparse kernels.
        dense: Names of the other linear layers and convolutions, each with the reason.
    """

    sparse: list[str] = field(default_factory=list)
    dense: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"SemiStructured({len(self.sparse)} layers sparse, {len(self.dense)} dense)"


class PointwiseLinear(nn.Module):
    """A 1x1 convolution as a linear layer over its positions.

    Args:
        weight: Matrix [O, I], dense or semi-structured.
        bias: [O], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Map [B, I, H, W] to [B, O, H, W]."""
        rows = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
        out = F.linear(rows, self.weight, self.bias)
        return out.reshape(maps.shape[0], *maps.shape[2:], -1).permute(0, 3, 1, 2)


def to_semi_structured(module: nn.Module) -> SemiStructured:
    """Let the layers of a module that hold 2:4 run on sparse tensor cores, in place and for inference alone.

        encoder = clip.visual.half().cuda().eval()     # pruned by `granularity="2:4"`
        print(ovstrans.to_semi_structured(encoder).dense)

    Args:
        module: An image encoder, or any module, in float16 or bfloat16 on an NVIDIA GPU from Ampere on, whose weights
            are pruned by 2:4.

    Returns:
        Which layers run sparse, and why the others do not.

    Raises:
        InputError: The module is elsewhere or in another dtype, the GPU has no sparse tensor cores, or no layer can run
            on them.
    """
    check_place(next(module.parameters()))
    found = convert_layers(module, torch.sparse.to_sparse_semi_structured)
    if not found.sparse:
        reasons = ", ".join(f"{name}: {reason}" for name, reason in list(found.dense.items())[:3])
        raise InputError(f"no layer can run on sparse tensor cores ({reasons}); prune by `granularity=2:4`")
    return found


def check_place(weight: Tensor) -> None:
    """Raise InputError if a weight is not where, or not in the dtype that, the sparse kernels run."""
    if weight.device.type != "cuda":
        raise InputError(f"semi-structured layers run on NVIDIA GPUs, the module is on {weight.device}; move it first")
    if weight.dtype not in DTYPES:
        kind = str(weight.dtype).removeprefix("torch.")
        raise InputError(
            f"semi-structured layers run in float16 or bfloat16, the module is in {kind}; convert it first"
        )
    if torch.cuda.is_available() and torch.cuda.get_device_capability(weight.device) < CAPABILITY:
        name = torch.cuda.get_device_name(weight.device)
        raise InputError(f"{name}: has no sparse tensor cores; an NVIDIA GPU from Ampere on is needed")


def convert_layers(module: nn.Module, compress: Callable[[Tensor], Tensor]) -> SemiStructured:
    """Replace the weights that hold 2:4 by compressed ones, and the 1x1 convolutions among them by `PointwiseLinear`.

    Args:
        module: Module to change.
        compress: Compresses a contiguous matrix [O, I].
    """
    found = SemiStructured()
    uncalled = {name for names in uncalled_layers(module).values() for name in names}
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        reason = "an attention multiplies by it itself" if name in uncalled else dense_reason(layer)
        if reason:
            found.dense[name] = reason
            continue
        matrix = compress(layer.weight.detach().flatten(1).contiguous())
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(matrix, requires_grad=False)
        else:
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, PointwiseLinear(matrix, layer.bias))
        found.sparse.append(name)
    return found


def dense_reason(layer: nn.Linear | nn.Conv2d) -> str:
    """Return why a layer cannot run by sparse kernels, "" if it can."""
    if isinstance(layer, nn.Conv2d):
        plain = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1
        if not plain or layer.padding not in ((0, 0), "valid", "same"):
            return "a convolution other than 1x1 with stride 1"
    outputs, inputs = layer.weight.shape[:2]
    if outputs % ROWS or inputs % COLUMNS:
        return f"size {outputs}x{inputs}: multiples of {ROWS} and {COLUMNS} are needed"
    if not Groups((outputs, inputs), "2:4").fits(layer.weight.detach().flatten(1) != 0):
        return "its weights are not pruned by 2:4"
    return ""
