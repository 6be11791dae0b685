"""Reading a pickle without running what it names.

A pickle is a small program: loading one may import any module and call what it finds there. Here nothing is imported.
Each name is answered by a stand-in:

- for the names that containers, numpy's arrays and plain values are made of, one that keeps its arguments;
- for any other class, an `Inert` object that keeps its state, as `argparse.Namespace` or a module of torch;
- a call of any other name is refused, because a call is how a pickle runs code.

Nor can a pickle take more memory or time than its length warrants: it has at most `MOST_OPERATIONS`, no length in it
reaches beyond the file, its keys are plain values, and text is not joined out of text again and again. Lists may hold
one another or themselves; whoever walks through them visits each once.

Arrays are made afterwards, from parts that were checked. Files of torch add the stand-ins of `clip.torch_file`.
"""

from __future__ import annotations

import itertools
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

import numpy as np
import torch

_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8")
_ORDERS = {"<": "<", ">": ">", "=": "=", "|": "="}


MOST_OPERATIONS = 2_000_000
"""Most operations in a pickle. A checkpoint of 5,000 tensors with its optimizer has 400,000."""

_MOST_CLASSES = 10_000
_LONGEST_KEY = 1000
_LONGEST_LINE = 1 << 16
_LONGEST_NUMBER = 16
_LONGEST_TEXT = 1000
_PLAIN = (str, bytes, int, float, bool, type(None))


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
    if not isinstance(raw, (str, bytes, bytearray)):
        raise ValueError("an array without its bytes")
    return raw.encode("latin1") if isinstance(raw, str) else bytes(raw)


def _reconstructor(kind: Any, *_: object) -> Any:
    """Stands in for `copyreg._reconstructor`, by which protocols 0 and 1 make an object of a class."""
    if isinstance(kind, type) and issubclass(kind, Inert):
        return kind.__new__(kind)
    raise Refused("copyreg._reconstructor")


def _defaultdict(*_: object) -> dict[Any, Any]:
    return {}


def _counter(counts: Any = (), *_: object) -> dict[Any, Any]:
    return _ordered(counts.items() if isinstance(counts, dict) else counts)


def _ordered(items: Any = (), *_: object) -> OrderedDict[Any, Any]:
    """Stands in for `OrderedDict`, which newer protocols fill afterwards and older ones give its entries."""
    made: OrderedDict[Any, Any] = OrderedDict()
    for key, value in items if isinstance(items, (list, tuple)) else ():
        made[_plain_key(key)] = value
    return made


def _list(values: Any = (), *_: object) -> list[Any]:
    if not isinstance(values, (list, tuple)):
        raise ValueError("a collection of what is no list")
    return list(values)


def _tuple(values: Any = (), *_: object) -> tuple[Any, ...]:
    return tuple(_list(values))


def _path(*parts: str) -> str:
    return _short("/".join(str(part) for part in parts if isinstance(part, str)))


def _text(*values: object) -> str:
    """Stands in for what makes a time, a device or another plain value out of plain values."""
    return _short(" ".join(str(value) for value in values if isinstance(value, _PLAIN)))


def _short(text: str) -> str:
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"a text joined to {len(text):,} characters")
    return text


def _plain_key(key: Any) -> Any:
    """Return the key of a dictionary; ValueError if it is of tuples in tuples, whose hash takes time without bound."""
    waiting, seen = [key], 0
    while waiting:
        part = waiting.pop()
        seen += 1
        if isinstance(part, tuple):
            waiting += part
        if seen + len(waiting) > _LONGEST_KEY:
            raise ValueError("a dictionary whose key is a tuple of tuples")
    return key


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
    **_by_module(("__builtin__", "builtins"), {"bytes": _no_bytes, "set": _list, "frozenset": _tuple, "object": Inert}),
    **_by_module(
        ("collections",),
        {"OrderedDict": _ordered, "defaultdict": _defaultdict, "Counter": _counter, "deque": _list},
    ),
    **_by_module(("pathlib", "pathlib._local"), dict.fromkeys(_PATHS, _path)),
    **_by_module(("datetime",), dict.fromkeys(("datetime", "date", "time", "timedelta", "timezone"), _text)),
}
"""Stand-ins for the names that plain values are made of, by module and name."""


class BoundedFile:
    """The rest of an open file, from which nothing is asked that it does not have.

    Args:
        handle: The open file.
    """

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        start = handle.tell()
        self._left = handle.seek(0, 2) - start
        handle.seek(start)

    def read(self, count: int) -> bytes:
        """Read bytes; EOFError if there are fewer."""
        if not 0 <= count <= self._left:
            raise EOFError("its end is missing")
        self._left -= count
        return self._handle.read(count)

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer; EOFError if there are fewer."""
        found = self.read(len(buffer))
        buffer[:] = found
        return len(found)

    def readline(self) -> bytes:
        """Read a line; ValueError if it is longer than a name can be."""
        line = self._handle.readline(_LONGEST_LINE)
        if len(line) == _LONGEST_LINE:
            raise ValueError("a line that does not end")
        self._left -= len(line)
        return line


class Unpickler(pickle._Unpickler):  # the one in Python: that in C takes memory by numbers in the file
    """A reader of pickles that runs nothing of them.

    Args:
        handle: The open file.
        known: Stand-ins by module and name, beside `KNOWN`.
    """

    pop_mark: Callable[[], list[Any]]
    stack: list[Any]
    metastack: list[list[Any]]
    memo: dict[int, Any]
    append: Callable[[Any], None]

    def __init__(self, handle: IO[bytes], known: Mapping[tuple[str, str], Any] | None = None) -> None:
        self._source = BoundedFile(handle)
        super().__init__(self._source, encoding="latin1")
        self._known = {**KNOWN, **(known or {})}
        self._unknown: dict[str, type] = {}

    def load(self) -> Any:
        """Read one value."""
        self._unframer = pickle._Unframer(self._source.read, self._source.readline)  # type: ignore[attr-defined]
        self.read = self._unframer.read
        self.readinto = self._unframer.readinto
        self.readline = self._unframer.readline
        self.metastack, self.stack, self.proto = [], [], 0
        self.append = self.stack.append
        steps = self.dispatch
        try:
            for _ in itertools.repeat(None, MOST_OPERATIONS):
                operation = self.read(1)
                if not operation:
                    raise EOFError("its end is missing")
                steps[operation[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]
            return stop.value
        raise ValueError(f"more than {MOST_OPERATIONS:,} operations")

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name."""
        if (module, name) in self._known:
            return self._known[module, name]
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"  # protocol 2 has Python 2's names
        if full not in self._unknown:
            if len(self._unknown) >= _MOST_CLASSES:
                raise ValueError(f"objects of more than {_MOST_CLASSES:,} classes")
            self._unknown[full] = _Unknown(full, (Inert,), {"__qualname__": full})
        return self._unknown[full]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what refers to data outside the pickle."""
        raise pickle.UnpicklingError("refers to data outside the file")

    def _load_build(self) -> None:
        """Set the state of an object, but never that of a stand-in itself."""
        target = self.stack[-2]
        if isinstance(target, type) or callable(target):
            raise ValueError("it changes a class")
        state = self.stack.pop()
        if isinstance(target, OrderedDict):  # a state dict records its modules so
            vars(target)["_metadata"] = state.get("_metadata") if isinstance(state, dict) else None
        elif hasattr(target, "__setstate__"):
            target.__setstate__(state)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_plain_key(key)] = value

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_plain_key(key)] = value

    def _load_dict(self) -> None:
        items = self.pop_mark()
        made = {_plain_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}
        self.append(made)  # to the stack below the mark

    def _load_additems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].extend(items)

    def _load_empty_set(self) -> None:
        self.append([])

    def _load_frozenset(self) -> None:
        items = tuple(self.pop_mark())
        self.append(items)

    def _load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def _load_long4(self) -> None:
        length = int.from_bytes(self.read(4), "little", signed=True)
        if not 0 <= length <= _LONGEST_NUMBER:
            raise ValueError(f"a number of {length:,} bytes")
        self.append(pickle.decode_long(self.read(length)))

    def _load_int(self) -> None:
        line = self.readline()[:-1]
        known = {b"00": False, b"01": True}
        self.append(known[line] if line in known else _parse_whole(line))

    def _load_long(self) -> None:
        self.append(_parse_whole(self.readline()[:-1].removesuffix(b"L")))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _load_build,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.DICT[0]: _load_dict,
        pickle.ADDITEMS[0]: _load_additems,
        pickle.EMPTY_SET[0]: _load_empty_set,
        pickle.FROZENSET[0]: _load_frozenset,
        pickle.BYTEARRAY8[0]: _load_bytearray8,
        pickle.LONG4[0]: _load_long4,
        pickle.INT[0]: _load_int,
        pickle.LONG[0]: _load_long,
    }


def _parse_whole(digits: bytes) -> int:
    if len(digits) > 3 * _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


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
    """Replace every stand-in in a value by what it stands for; ValueError if its parts do not agree.

    What several parts of the value share, the result shares too.
    """
    return _resolve(value, {})


def _resolve(value: Any, done: dict[int, Any]) -> Any:
    if id(value) in done:
        return done[id(value)]
    made: Any = value
    if isinstance(value, Deferred):
        made = value.resolve()
    elif isinstance(value, dict):
        made = done[id(value)] = {}
        for key, inner in dict.items(value):
            made[_resolve(key, done) if isinstance(key, Deferred) else key] = _resolve(inner, done)
    elif isinstance(value, (list, tuple)):
        made = done[id(value)] = []
        made.extend(_resolve(inner, done) for inner in value)
    done[id(value)] = made
    return made
