"""Stand-ins for the tensors in a torch file, from which a tensor is made when it is wanted.

So the state of an optimizer beside the weights is never read. Sparse tensors become dense; quantized ones are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans.clip.pickles import Deferred, DeferredTensor, Unsupported

_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_LAYOUTS = ("sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
_LEAST_BYTES, _VIEW_FACTOR, _SPARSE_FACTOR = 64 << 20, 8, 160
"""Bytes that the tensors of any file may take, and how often those of the file: as views of it, and made dense."""
QUANTIZED = "holds quantized weights; give the weights that they were made from"
_QUANTIZED_STORAGES = ("QInt8", "QInt32", "QUInt8", "QUInt4x2", "QUInt2x4")


class Storage:
    """Raw values in a file.

    Args:
        dtype: Their type; None for quantized ones.
        read: Returns their bytes.
    """

    def __init__(self, dtype: torch.dtype | None, read: Callable[[], bytes]) -> None:
        self.dtype, self._read = dtype, read
        self._values: Tensor | None = None

    def values(self, dtype: torch.dtype | None) -> Tensor:
        """Return the values [n]. A storage without a type of its own is read as `dtype`."""
        if self.dtype is None:
            raise Unsupported(QUANTIZED)
        if self._values is None:
            raw = self._read()
            self._values = torch.from_numpy(np.frombuffer(bytearray(raw), np.uint8))
        return self._values.view(dtype or self.dtype)


class LazyTensor(DeferredTensor):
    """A tensor whose values are still in the file.

    Args:
        storage: Where they are.
        offset: First of them.
        size: Shape of the tensor.
        stride: Strides of the tensor, in values.
        dtype: Type, of a storage that has none.
    """

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> None:
        if not isinstance(storage, Storage) or type(offset) is not int:
            raise ValueError("a tensor without its storage")
        self.storage, self.offset, self.dtype = storage, offset, dtype
        self.size, self.stride = tuple(size), tuple(stride)

    def resolve(self) -> Tensor:
        """Read the values."""
        values = self.storage.values(self.dtype)
        _require_sizes((*self.size, *self.stride))
        if len(self.size) != len(self.stride):
            raise ValueError("a tensor of as many strides as dimensions is needed")
        last = sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        if math.prod(self.size) and not 0 <= self.offset <= self.offset + last < len(values):
            raise ValueError("a tensor reaches beyond its storage")
        if not math.prod(self.size):
            return torch.zeros(self.size, dtype=values.dtype)
        return torch.as_strided(values, self.size, self.stride, self.offset)


class _Sparse(DeferredTensor):
    """A sparse tensor (COO, CSR, CSC, BSR or BSC), which becomes dense."""

    def __init__(self, layout: Any, parts: Any) -> None:
        self.layout, self.parts = str(layout).removeprefix("torch."), tuple(parts)
        if self.layout not in _LAYOUTS:
            raise ValueError(f"a tensor of the layout {self.layout!r}")

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of the dense tensor."""
        place = 2 if self.layout == "sparse_coo" else 3
        return tuple(_resolved(self.parts[place]))

    def resolve(self) -> Tensor:
        if self.layout == "sparse_coo":
            indices, values, size = (_resolved(part) for part in self.parts[:3])
            return torch.sparse_coo_tensor(indices, values, tuple(size), check_invariants=True).to_dense()
        compressed, plain, values, size = (_resolved(part) for part in self.parts[:4])
        layout = getattr(torch, self.layout)
        return torch.sparse_compressed_tensor(
            compressed, plain, values, tuple(size), layout=layout, check_invariants=True
        ).to_dense()


class _Quantized(DeferredTensor):
    """A quantized tensor, which cannot be had."""

    def __init__(self, storage: Any, *_: Any) -> None:
        self.storage = storage

    def resolve(self) -> Tensor:
        raise Unsupported(QUANTIZED)


class _Subclass(DeferredTensor):
    """A tensor of a class that keeps its values as attributes: a semi-structured one becomes dense."""

    def __init__(self, kind: Any, dtype: Any = None, size: Any = (), *_: Any) -> None:
        self.kind, self.size = getattr(kind, "__qualname__", str(kind)), tuple(size)
        self.state: dict[str, Any] = {}

    def resolve(self) -> Tensor:
        if "SparseSemiStructured" in self.kind:
            return self._semi_structured()
        if "torchao" in self.kind or "uant" in self.kind:
            raise Unsupported(QUANTIZED)
        raise Unsupported(f"holds a tensor of the class {self.kind}, which is not known here; save plain tensors")

    def _semi_structured(self) -> Tensor:
        from torch.sparse import _semi_structured_conversions as conversions

        to_dense: Callable[[Tensor, Tensor], Tensor] = conversions.sparse_semi_structured_to_dense_cutlass
        parts = {key: _resolved(self.state.get(key)) for key in ("packed", "meta", "packed_t", "meta_t")}
        for packed, meta, size in (("packed", "meta", self.size), ("packed_t", "meta_t", self.size[::-1])):
            values, places = parts[packed], parts[meta]
            if isinstance(values, Tensor) and isinstance(places, Tensor) and values.dim() == 2:
                # As integers: torch moves float32 as pairs of halves, and rounds those that look like NaN.
                bits = to_dense(values.contiguous().view(torch.int16), places.contiguous())
                dense = bits.view(values.dtype)[: size[0], : size[1]]
                return dense if packed == "packed" else dense.T.contiguous()
        raise Unsupported(
            "holds semi-structured weights in the form of cuSPARSELt, which only its library opens; save their "
            "`to_dense()`"
        )


def _resolved(value: Any) -> Any:
    return value.resolve() if isinstance(value, Deferred) else value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> LazyTensor:
    return LazyTensor(storage, offset, size, stride)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    return LazyTensor(storage, offset, size, stride, dtype)


def _first(value: Any, *_: Any) -> Any:
    return value


def _from_type(make: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Stands in for `torch._tensor._rebuild_from_type_v2`."""
    if make not in _TENSORS.values():
        raise ValueError("a tensor of an unknown kind")
    made = make(*arguments)
    if isinstance(made, _Subclass):
        parts = state if isinstance(state, tuple) else (state,)
        made.state = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
    return made


def _no_values(*_: Any) -> Deferred:
    return _Subclass("meta", None, ())


def _nested(*_: Any) -> Deferred:
    return _Subclass("nested", None, ())


def _size(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


_TENSORS: Mapping[str, Any] = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_v3,
    "_rebuild_parameter": _first,
    "_rebuild_parameter_with_state": _first,
    "_rebuild_device_tensor_from_numpy": _first,
    "_rebuild_device_tensor_from_cpu_tensor": _first,
    "_rebuild_sparse_tensor": _Sparse,
    "_rebuild_qtensor": _Quantized,
    "_rebuild_wrapper_subclass": _Subclass,
    "_rebuild_meta_tensor_no_storage": _no_values,
    "_rebuild_nested_tensor": _nested,
}
_TYPES = [torch.storage.UntypedStorage.__name__, *(f"{name}Storage" for name in (*_STORAGES, *_QUANTIZED_STORAGES))]
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_JIT = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
KNOWN: Mapping[tuple[str, str], Any] = {
    **{("torch._utils", name): make for name, make in _TENSORS.items()},
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    **{("torch", name): name for name in _TYPES},
    **{("torch.storage", name): name for name in _TYPES},
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    **{("torch.jit._pickle", name): _first for name in _JIT},
    ("torch.serialization", "_get_layout"): _first,
    ("torch", "device"): _first,
    ("torch", "Size"): _size,
}
"""Stand-ins for the names that a torch file is made of."""


def storage_dtype(storage: str) -> torch.dtype | None:
    """Return the type of a storage's values by its class; None if they are quantized."""
    if storage == "UntypedStorage":
        return torch.uint8
    return _STORAGES.get(storage.removesuffix("Storage"))


def require_proportion(tensors: Iterable[Any], stored: int) -> None:
    """Check, before any is made, that tensors take no more memory than a file warrants.

    A tensor of one stored value may have the size of a million, by strides of zero, or as a sparse one.

    Args:
        tensors: Stand-ins of tensors.
        stored: Length of the file in bytes.

    Raises:
        Unsupported: They would take more.
    """
    views = dense = 0
    for tensor in tensors:
        if isinstance(tensor, (_Sparse, _Subclass)):
            _require_sizes(tensor.size)
            dense += 8 * math.prod(tensor.size)
        elif isinstance(tensor, LazyTensor):
            _require_sizes(tensor.size)
            views += math.prod(tensor.size) * (tensor.dtype or tensor.storage.dtype or torch.float64).itemsize
    for wanted, factor, kind in ((views, _VIEW_FACTOR, "views"), (dense, _SPARSE_FACTOR, "sparse tensors")):
        if wanted > _LEAST_BYTES + factor * stored:
            raise Unsupported(
                f"{stored:,} bytes with {kind} that would take {wanted:,}; save its tensors dense and by themselves"
            )


def _require_sizes(sizes: Iterable[Any]) -> None:
    """Raise ValueError if one of the sizes or strides of a tensor is none."""
    if any(type(size) is not int or not 0 <= size < 1 << 48 for size in sizes):
        raise ValueError("a tensor of a negative size, or of none")
