"""Reading a pickle without running what it names.

A pickle is a small program: loading one may import any module and call what it finds there. Here nothing is imported.
Each name is answered by a stand-in:

- for the names that containers, numpy's arrays and plain values are made of, one that keeps its arguments;
- for any other class, an `Inert` object that keeps its state, as `argparse.Namespace` or a module of torch;
- a call of any other name is refused, because a call is how a pickle runs code.

Arrays are made afterwards, from parts that were checked. Files of torch add the stand-ins of `clip.torch_file`.
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


class _Unknown(type):
    """Type of the stand-ins for names that are not known here. Objects of a class can be made, calls are refused."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise Refused(cls.__qualname__)


class Inert(metaclass=_Unknown):
    """Stands in for an object of any class: keeps its state and does nothing.

    Attributes:
        state: What the pickle restores the object with, mostly its attributes; None without it.
        items: Entries of an object that is a dictionary or a list too.
    """

    state: Any
    items: list[Any]

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Make an object without state."""
        made = object.__new__(cls)
        made.state, made.items = None, []
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """Add an entry of a list."""
        self.items.append(value)

    def extend(self, values: Any) -> None:
        """Add entries of a list."""
        self.items.extend(values)

    def add(self, value: Any) -> None:
        """Add an entry of a set."""
        self.items.append(value)

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the object, as far as the pickle holds them."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {str(key): value for part in parts if isinstance(part, dict) for key, value in part.items()}


class Deferred:
    """A value that is made from a pickle's parts once it is wanted."""

    def resolve(self) -> Any:
        """Make the value; ValueError or RuntimeError if its parts do not agree."""
        raise NotImplementedError


class DeferredTensor(Deferred):
    """A tensor that is made from a pickle's parts once it is wanted."""

    def resolve(self) -> torch.Tensor:
        """Make the tensor; ValueError or RuntimeError if its parts do not agree."""
        raise NotImplementedError


class Unsupported(ValueError):
    """Raised when a file is as its writer meant it, and yet cannot be used. The message says why."""


class _Dtype(Deferred):
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def resolve(self) -> str:
        return str(self.code)

    def numpy(self) -> np.dtype:
        """Return the type; ValueError if it is not one of numbers."""
        if self.code not in _TYPES or self.order not in _ORDERS:
            raise ValueError(f"an array of type {self.order!r}{self.code!r}; numbers are needed")
        return np.dtype(f"{_ORDERS[self.order]}{self.code}")


class Array(DeferredTensor):
    """Stands in for `numpy.ndarray`."""

    def __init__(self, raw: Any = None, dtype: Any = None, shape: Any = None, order: Any = "C") -> None:
        self.parts = (shape, dtype, order, raw)

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, raw = state[-4:]  # newer ones begin with a version number
        self.parts = (shape, dtype, "F" if fortran else "C", raw)

    def resolve(self) -> torch.Tensor:
        """Make the tensor."""
        shape, dtype, order, raw = self.parts
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or order not in ("C", "F"):
            raise ValueError("an array without its type or shape")
        flat = np.frombuffer(_bytes(raw), dtype.numpy())
        return torch.from_numpy(flat.reshape(shape, order=order).astype(flat.dtype.newbyteorder("="), order="C"))


class _Scalar(Deferred):
    """Stands in for one of numpy's numbers."""

    def __init__(self, dtype: Any = None, raw: Any = None) -> None:
        self.dtype, self.raw = dtype, raw

    def resolve(self) -> int | float | bool:
        if not isinstance(self.dtype, _Dtype):
            raise ValueError("a number without its type")
        number: int | float | bool = np.frombuffer(_bytes(self.raw), self.dtype.numpy(), count=1)[0].item()
        return number


def _reconstruct(*_: object) -> Array:
    return Array()


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


def _reconstructor(kind: Any, *_: object) -> Any:
    """Stands in for `copyreg._reconstructor`, by which protocols 0 and 1 make an object of a class."""
    if isinstance(kind, type) and issubclass(kind, Inert):
        return kind.__new__(kind)
    raise Refused("copyreg._reconstructor")


def _defaultdict(*_: object) -> dict[Any, Any]:
    return {}


def _counter(counts: Any = ()) -> dict[Any, Any]:
    return dict(counts)


def _list(values: Any = (), *_: object) -> list[Any]:
    return list(values)


def _path(*parts: str) -> str:
    return "/".join(parts)


def _text(*values: object) -> str:
    """Stands in for what makes a time, a device or another plain value out of plain values."""
    return " ".join(map(str, values))


def _by_module(modules: tuple[str, ...], calls: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    return {(module, name): call for module in modules for name, call in calls.items()}


_ARRAYS: Mapping[tuple[str, str], Any] = {
    **_by_module(("numpy",), {"dtype": _Dtype, "ndarray": Array}),
    **_by_module(
        ("numpy.core.multiarray", "numpy._core.multiarray"), {"_reconstruct": _reconstruct, "scalar": _Scalar}
    ),
    **_by_module(("numpy.core.numeric", "numpy._core.numeric"), {"_frombuffer": Array}),
}
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
KNOWN: Mapping[tuple[str, str], Any] = {
    **_ARRAYS,
    ("_codecs", "encode"): _encode,
    **_by_module(("copyreg", "copy_reg"), {"_reconstructor": _reconstructor}),
    **_by_module(("__builtin__", "builtins"), {"bytes": _no_bytes, "set": _list, "frozenset": _list, "object": Inert}),
    **_by_module(
        ("collections",),
        {"OrderedDict": OrderedDict, "defaultdict": _defaultdict, "Counter": _counter, "deque": _list},
    ),
    **_by_module(("pathlib", "pathlib._local"), dict.fromkeys(_PATHS, _path)),
    **_by_module(("datetime",), dict.fromkeys(("datetime", "date", "time", "timedelta", "timezone"), _text)),
}
"""Stand-ins for the names that plain values are made of, by module and name."""


class Unpickler(pickle.Unpickler):
    """A reader of pickles that runs nothing of them.

    Args:
        handle: The open file.
        known: Stand-ins by module and name, beside `KNOWN`.
    """

    def __init__(self, handle: IO[bytes], known: Mapping[tuple[str, str], Any] | None = None) -> None:
        super().__init__(handle, encoding="latin1")
        self._known = {**KNOWN, **(known or {})}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name."""
        if (module, name) in self._known:
            return self._known[module, name]
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"  # protocol 2 has Python 2's names
        return _Unknown(full, (Inert,), {"__qualname__": full})

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what refers to data outside the pickle."""
        raise pickle.UnpicklingError("refers to data outside the file")


def read_pickle(handle: IO[bytes]) -> Any:
    """Read one pickle of plain containers, numbers, strings and arrays. Arrays come back as tensors.

    Raises:
        Refused: If it calls anything else, which the error names.
        pickle.UnpicklingError: If it is broken.
    """
    try:
        return resolve(Unpickler(handle).load())
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a broken pickle fails in any way: it is a program of stack operations
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


def resolve(value: Any) -> Any:
    """Replace every stand-in in a value by what it stands for; ValueError if its parts do not agree."""
    if isinstance(value, Deferred):
        return value.resolve()
    if isinstance(value, dict):
        return {resolve(key): resolve(inner) for key, inner in dict.items(value)}
    if isinstance(value, (list, tuple)):
        return [resolve(inner) for inner in value]
    return value
