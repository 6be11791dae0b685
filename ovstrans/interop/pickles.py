"""Reading a pickle of arrays without running what it names.

A pickle is a small program: loading one may import any module and call what it finds there. Dictionaries, numpy's
arrays and numbers need only a few names. These are answered by stand-ins that keep their arguments and do nothing. Any
other name is refused before anything is imported. Arrays are made afterwards, from parts that were checked.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import torch

_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8")
_ORDERS = {"<": "<", ">": ">", "=": "=", "|": "="}


class Refused(pickle.UnpicklingError):
    """Raised when a pickle asks for something that could run code.

    Args:
        name: What it asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name}, which could run code")
        self.name = name


class _Dtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def resolve(self) -> np.dtype:
        if self.code not in _TYPES or self.order not in _ORDERS:
            raise ValueError(f"an array of type {self.order!r}{self.code!r}; numbers are needed")
        return np.dtype(f"{_ORDERS[self.order]}{self.code}")


class _Array:
    """Stands in for `numpy.ndarray`."""

    def __init__(self, raw: Any = None, dtype: Any = None, shape: Any = None, order: Any = "C") -> None:
        self.parts = (shape, dtype, order, raw)

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, raw = state[-4:]  # newer ones begin with a version number
        self.parts = (shape, dtype, "F" if fortran else "C", raw)

    def resolve(self) -> torch.Tensor:
        shape, dtype, order, raw = self.parts
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or order not in ("C", "F"):
            raise ValueError("an array without its type or shape")
        flat = np.frombuffer(_bytes(raw), dtype.resolve())
        return torch.from_numpy(flat.reshape(shape, order=order).astype(flat.dtype.newbyteorder("="), order="C"))


class _Scalar:
    """Stands in for one of numpy's numbers."""

    def __init__(self, dtype: Any = None, raw: Any = None) -> None:
        self.dtype, self.raw = dtype, raw

    def resolve(self) -> int | float | bool:
        if not isinstance(self.dtype, _Dtype):
            raise ValueError("a number without its type")
        number: int | float | bool = np.frombuffer(_bytes(self.raw), self.dtype.resolve(), count=1)[0].item()
        return number


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise Refused(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stands in for `bytes`, which older protocols call to make empty bytes."""
    return b""


def _bytes(raw: Any) -> bytes:
    """Return the raw bytes of an array, which Python 2 left as text."""
    return raw.encode("latin1") if isinstance(raw, str) else bytes(raw)


STAND_INS: Mapping[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    **{
        (f"numpy.{core}.{module}", name): call
        for core in ("core", "_core")
        for module, name, call in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _Array),
        )
    },
}
"""Stand-ins for the names that arrays and numbers are made of, by module and name."""

_ALLOWED = {
    **STAND_INS,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise Refused(f"{module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refers to data outside the file")


def read_pickle(handle: IO[bytes]) -> Any:
    """Read one pickle of plain containers, numbers, strings and arrays. Arrays come back as tensors.

    Raises:
        Refused: If it asks for anything else, which the error names.
        pickle.UnpicklingError: If it is broken.
    """
    try:
        return resolve(_Unpickler(handle, encoding="latin1").load())
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a broken pickle fails in any way: it is a program of stack operations
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


def resolve(value: Any) -> Any:
    """Replace every stand-in in a value by what it stands for; ValueError if its parts do not agree."""
    if isinstance(value, (_Array, _Scalar)):
        return value.resolve()
    if isinstance(value, _Dtype):
        return str(value.code)
    if isinstance(value, dict):
        return {resolve(key): resolve(inner) for key, inner in dict.items(value)}
    if isinstance(value, (list, tuple)):
        return [resolve(inner) for inner in value]
    return value
