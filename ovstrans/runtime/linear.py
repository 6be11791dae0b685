"""Linear layers that skip zeros, of ViTs and ConvNeXts: their tokens or positions are the pixels of 1x1 convolutions.

MLPs, projections and pointwise convolutions run by the kernels; attention itself, norms and layers that are not sparse
stay with torch. A layer is changed where it is: its module becomes an instance of a subclass that runs packed weights,
so whoever calls the module, or a block that holds it, gets the same result.

Shapes: `B` batch, `N` tokens or positions, `I` inputs, `O` outputs, `D` width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.layers import backbone_layers
from ovstrans.runtime.library import CELL, Kernels, StepStruct
from ovstrans.runtime.packing import PackedConv, PackedLayers, pack_conv

MOST_DENSE = 0.5
"""Density of a linear layer above which it is left to torch, which is as fast there."""

_BARE = "in_proj_weight"
_ELEMENTWISE = ("GELU", "QuickGELU", "GELUTanh", "ReLU", "SiLU")
"""Names of the activations that may be applied to values in any order."""


class PackedLinear:
    """The packed weight of a linear layer.

    Args:
        packed: The layer as a 1x1 convolution.
        kernels: What runs it.

    Attributes:
        packed: The layer as a 1x1 convolution.
    """

    def __init__(self, packed: PackedConv, kernels: Kernels) -> None:
        self.packed, self.kernels = packed, kernels

    def __deepcopy__(self, memo: object) -> PackedLinear:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("packed weights hold pointers; pack the layer again")

    def __call__(self, rows: Tensor) -> Tensor:
        """Map rows [..., I] to [..., O]."""
        return self.from_rows(rows, lowered=True).reshape(*rows.shape[:-1], self.packed.rows)

    def from_rows(self, rows: Tensor, *, lowered: bool) -> Tensor:
        """Map rows [..., I] to rows [N, O], or to the kernels' layout [N / 64, O, 64] with N rounded up."""
        rows = rows.reshape(-1, self.packed.channels).contiguous()
        return self._run(len(rows), lowered, image=rows.data_ptr())

    def from_layout(self, values: Tensor, count: int) -> Tensor:
        """Map the kernels' layout of N = `count` rows [N / 64, I, 64] to rows [N, O]."""
        return self._run(count, True, source=values.contiguous().data_ptr())

    def _run(self, count: int, lowered: bool, **source: int) -> Tensor:
        packed, threads = self.packed, torch.get_num_threads()
        tiles = -(-count // CELL)
        found = torch.empty((count, packed.rows) if lowered else (tiles, packed.rows, CELL))
        first = CELL * packed.channels
        scratch = torch.empty((first + CELL * packed.rows) * threads)
        target = {"output" if lowered else "next_out": found.data_ptr()}
        step = StepStruct(elements=count, threads=threads, scratch=scratch.data_ptr(), **source, **target)
        step.scratch_stride, step.scratch_first = first + CELL * packed.rows, first
        step.next = ctypes.pointer(packed.struct)
        if count:
            self.kernels.run("rows", step)
        return found


class SparseLinears(PackedLayers):
    """The packed linear layers of an image encoder.

    Args:
        layers: Packed layers by name.
        dense: Names of the linear layers that stay dense.

    Attributes:
        layers: Packed layers by name.
        dense: Names of the linear layers that stay dense.
    """

    def __init__(self, layers: dict[str, PackedLinear], dense: list[str]) -> None:
        self.layers, self.dense = layers, dense

    @property
    def convs(self) -> Iterator[PackedConv]:
        """Every packed layer as a 1x1 convolution, in order."""
        return (layer.packed for layer in self.layers.values())

    def attach(self, encoder: nn.Module) -> None:
        """Let the layers of an encoder run by the packed weights, where gradients are off."""
        modules = dict(encoder.named_modules())
        for name, layer in self.layers.items():
            bare = name.endswith(_BARE)
            module = modules[name.removesuffix(f".{_BARE}") if bare else name]
            _become(module, _Attention if bare else _Linear if isinstance(module, nn.Linear) else _Pointwise)
            module.__dict__["packed_layer"] = layer
        for module in modules.values():
            found = _mlp_layers(module)
            if found is not None:
                _become(module, _Mlp)
                module.__dict__["packed_layer"] = found


def detach_linears(encoder: nn.Module) -> None:
    """Let every layer of an encoder run by torch again."""
    for module in encoder.modules():
        if isinstance(module, _Sparse):
            del module.__dict__["packed_layer"]
            module.__class__ = type(module).__bases__[1]


def pack_linears(encoder: nn.Module, kernels: Kernels) -> SparseLinears:
    """Pack the linear layers of the backbone of a ViT or ConvNeXt that are sparse enough to gain.

    Args:
        encoder: The image encoder.
        kernels: What is to run them.
    """
    modules = dict(encoder.named_modules())
    layers: dict[str, PackedLinear] = {}
    dense: list[str] = []
    for name, weight in backbone_layers(encoder).items():
        if name.endswith(_BARE):
            attention = cast(Any, modules[name.removesuffix(f".{_BARE}")])
            plain = type(attention) is nn.MultiheadAttention and attention.batch_first and attention.bias_k is None
            bias = attention.in_proj_bias
        else:
            module = cast(Any, modules[name])
            plain, bias = _is_linear(module), module.bias
        if not plain:
            continue
        if weight.is_meta or int(torch.count_nonzero(weight.detach())) > MOST_DENSE * weight.numel():
            dense.append(name)
            continue
        matrix = weight.detach().float().cpu().numpy().reshape(len(weight), -1, 1, 1)
        added = np.zeros(len(weight), np.float32) if bias is None else bias.detach().float().cpu().numpy()
        layers[name] = PackedLinear(pack_conv(matrix, added, name=name), kernels)
    return SparseLinears(layers, dense)


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        found = (module.kernel_size, module.stride, module.padding, module.groups)
        return found == ((1, 1), (1, 1), (0, 0), 1)
    return isinstance(module, nn.Linear) and type(module).__name__ in ("Linear", "NonDynamicallyQuantizableLinear")


def _accepts(rows: Tensor) -> bool:
    plain = rows.device.type == "cpu" and rows.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and not torch.is_grad_enabled()


class _Sparse:
    """Runs a module by its packed weights where they serve, else as the class that it is mixed into."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inner = cast(Any, self)
        if not inner.training and _accepts(args[0]):
            found = self.run_packed(inner.packed_layer, *args, **kwargs)
            if found is not None:
                return found
        return cast(Any, super()).forward(*args, **kwargs)

    def run_packed(self, layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the output; None if the packed weights do not serve."""
        raise NotImplementedError


class _Linear(_Sparse):
    def run_packed(self, layer: PackedLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return layer(x)


class _Pointwise(_Sparse):
    def run_packed(self, layer: PackedLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Mlp(_Sparse):
    def run_packed(
        self, layer: tuple[PackedLinear, nn.Module, PackedLinear], x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        first, activation, second = layer
        hidden = activation(first.from_rows(x, lowered=False))
        count = x.numel() // first.packed.channels
        return second.from_layout(hidden, count).reshape(*x.shape[:-1], second.packed.rows)


class _Attention(_Sparse):
    def run_packed(self, layer: PackedLinear, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None] | None:
        own = cast(nn.MultiheadAttention, self)
        names = ("key", "value", "key_padding_mask", "need_weights", "attn_mask")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        same = x.dim() == 3 and given.pop("key", None) is x and given.pop("value", None) is x
        # Anything else but the weights of attention, which must be declined, goes to torch.
        if not same or given.pop("need_weights", True) or any(value is not None for value in given.values()):
            return None
        batch, tokens, width = x.shape
        parts = layer(x).reshape(batch, tokens, 3, own.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return own.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width)), None


def _mlp_layers(module: nn.Module) -> tuple[PackedLinear, nn.Module, PackedLinear] | None:
    """Return the layers and the activation of an MLP, open_clip's or timm's, that can stay in the kernels' layout."""
    inner = cast(Any, module)
    if isinstance(module, nn.Sequential) and [name for name, _ in module.named_children()] == [
        "c_fc",
        "gelu",
        "c_proj",
    ]:
        parts = tuple(module.children())
    elif type(module).__name__ == "Mlp" and isinstance(getattr(inner, "norm", None), nn.Identity):
        parts = (inner.fc1, inner.act, inner.fc2)
    else:
        return None
    first, activation, second = parts
    if not (isinstance(first, _Linear) and isinstance(second, _Linear)):
        return None
    if type(activation).__name__ not in _ELEMENTWISE:
        return None
    return cast(Any, first).packed_layer, activation, cast(Any, second).packed_layer


_subclasses: dict[tuple[type, type], type[nn.Module]] = {}


def _become(module: nn.Module, kind: type[_Sparse]) -> None:
    if not isinstance(module, _Sparse):
        base = type(module)
        if (kind, base) not in _subclasses:
            _subclasses[kind, base] = type(f"Sparse{base.__name__}", (kind, base), {})
        module.__class__ = _subclasses[kind, base]
