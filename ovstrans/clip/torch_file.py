"""Reading a torch file without running what it names: zipped, from before the zip archives, or a TorchScript archive.

A zipped file holds a pickle (`NAME/data.pkl`) and the bytes of every storage (`NAME/data/KEY`). A TorchScript archive
is one too. Its code is not run; its objects hold their tensors and parts as attributes. A file from before torch 1.6
is a row of pickles (a magic number, a version, the system, the value, the keys of its storages) and then the storages.
"""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from ovstrans import file_kinds
from ovstrans.clip.pickles import BoundedFile, DeferredTensor, Inert, Refused, Unpickler, Unsupported
from ovstrans.clip.torch_tensors import KNOWN, QUANTIZED, Storage, require_proportion, storage_dtype
from ovstrans.clip.weights import ORIGIN
from ovstrans.errors import InputError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that begins a torch file from before the zip archives, as a pickle of its own."""

_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
"""Entries that hold the state dict. Where several are there, the first counts: trained weights before averaged ones."""

_LARGEST_PICKLE = 64 << 20
_LEAST_BYTES, _EXPANSION = 16 << 20, 64
"""Bytes that any archive may unpack to, and how often its own length."""

_MOST_CONTAINERS = 3
_DEEPEST, _MOST_TENSORS = 64, 100_000
"""Most modules inside one another, and most tensors of a model."""

_REPEATED = "first_conv"
"""Entry in which OpenTrans saves the first convolution of its backbone a second time."""

_PACKED = "_packed_params"
"""Name of the weights of a quantized layer of torch."""


@dataclass
class TorchFile:
    """The state dict in a torch file.

    Attributes:
        state: Its tensors.
        origin: Entry `ORIGIN`, as text.
        ignored: Names of the other entries.
        modules: Names of the modules that torch recorded beside the state dict.
        code: Source text of a TorchScript archive.
        run_name: Entry "name", which open_clip's training checkpoints have.
    """

    state: dict[str, Tensor]
    origin: str = ""
    ignored: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    code: str = ""
    run_name: str = ""


def read_torch_file(path: Path) -> TorchFile:
    """Read the state dict in a torch file, or in a plain pickle of arrays.

    Raises:
        InputError: If it is damaged, holds no weights or quantized ones, or calls what could run code.
    """
    kind = file_kinds.recognize(path)
    if kind is not None and kind.format != "torch":
        needed = "a safetensors file" if path.suffix == ".safetensors" else "a file of weights"
        raise InputError(file_kinds.refusal(path, needed))
    try:
        value, code = _read_value(path)
        holder, beside = _find_holder(value)
        entries, ignored = _find_tensors(holder)
        if not entries:
            raise Unsupported(_describe_value(holder))
        require_proportion(entries.values(), path.stat().st_size)
        state = {key: entry.resolve() for key, entry in entries.items()}
    except Refused as error:
        raise InputError(
            f"{path}: asks for {error.name}, which could run code; nothing was loaded. Where you trust it, "
            "save its tensors as .safetensors and give that file"
        ) from error
    except Unsupported as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file fails in any way: a pickle is a program of stack operations
        raise InputError(f"{path}: {_describe_damage(path, error)}; copy or download it again") from error
    outer = value if isinstance(value, Mapping) else {}
    origin, name = (str(outer.get(key, "")) for key in (ORIGIN, "name"))
    return TorchFile(state, origin, (*beside, *ignored), _module_names(holder), code, name)


def check_torch_file(path: Path) -> None:
    """Check that reading a torch file takes no more memory and time than its length warrants.

    Args:
        path: The file. What is in it is not loaded.

    Raises:
        Exception: It would, or is damaged in any way, or asks for what could run code.
    """
    value, _ = _read_value(path)
    require_proportion(_every_tensor(value), path.stat().st_size)


def _every_tensor(value: Any) -> Iterator[DeferredTensor]:
    """Yield each tensor in nested containers once."""
    waiting, seen = [value], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, DeferredTensor):
            yield each
        elif isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, (list, tuple)):
            waiting += each


def _read_value(path: Path) -> tuple[Any, str]:
    """Return the value in a torch file or pickle, and the code of a TorchScript archive."""
    if zipfile.is_zipfile(path):
        return _read_zipped(path)
    with path.open("rb") as handle:
        if handle.read(2) == b"PK":
            raise EOFError("its end is missing")
        handle.seek(0)
        first = Unpickler(handle, {**KNOWN, ("torch.storage", "_load_from_bytes"): _read_nested}).load()
        return (_read_legacy(handle) if type(first) is int and first == _LEGACY_MAGIC else first), ""


def _find_holder(value: Any, depth: int = 0) -> tuple[Any, list[str]]:
    """Return the mapping or module that holds the weights, and the names of the entries beside it."""
    if not isinstance(value, Mapping):
        return value, []
    if depth > _MOST_CONTAINERS:
        raise ValueError("containers of state dicts in one another")
    for name in _CONTAINERS:
        inner = value.get(name)
        if isinstance(inner, (Mapping, Inert)):
            holder, _ = _find_holder(inner, depth + 1)
            if _find_tensors(holder)[0]:
                return holder, [str(key) for key in value if key not in (name, ORIGIN)]
    return value, []


def _find_tensors(holder: Any) -> tuple[dict[str, DeferredTensor], list[str]]:
    """Return (tensors of the model by name, names of the other entries) of a state dict or a module."""
    if isinstance(holder, Inert):
        return _module_state(holder), []
    state: dict[str, DeferredTensor] = {}
    ignored = []
    for key, entry in holder.items() if isinstance(holder, Mapping) else ():
        inner = _module_state(entry) if isinstance(entry, Inert) else entry
        if isinstance(entry, DeferredTensor):
            state[str(key)] = entry
        elif str(key).endswith(_PACKED):
            raise Unsupported(QUANTIZED)
        elif isinstance(inner, Mapping) and key != _REPEATED:
            parts = {f"{key}.{name}": each for name, each in inner.items() if isinstance(each, DeferredTensor)}
            state.update(parts)
            ignored += [] if parts else [str(key)]
        elif key != ORIGIN:
            ignored.append(str(key))
    return state, ignored


def _module_state(module: Inert) -> dict[str, DeferredTensor]:
    """Return the tensors of a module that was saved whole, by their names in its state dict.

    Args:
        module: A module of torch, or of a TorchScript archive.

    Raises:
        ValueError: If it holds itself, or its parts so often that there would be more tensors than a model has.
    """
    found: dict[str, DeferredTensor] = {}
    waiting = [("", module, 0)]
    visited = 0
    while waiting:
        prefix, each, depth = waiting.pop()
        visited += 1
        tensors, parts = _module_parts(each)
        found.update((prefix + name, tensor) for name, tensor in tensors.items())
        if depth > _DEEPEST or len(found) + len(waiting) + visited > _MOST_TENSORS:
            raise ValueError("modules in one another without end")
        waiting += [(f"{prefix}{name}.", part, depth + 1) for name, part in reversed(parts.items())]
    return found


def _module_parts(module: Inert) -> tuple[dict[str, DeferredTensor], dict[str, Inert]]:
    """Return the tensors and the modules that a module itself has, by name."""
    attributes = module.attributes
    tensors = parts = attributes
    if isinstance(attributes.get("_parameters"), dict):
        hidden = attributes.get("_non_persistent_buffers_set") or ()
        every = {**attributes["_parameters"], **(attributes.get("_buffers") or {})}
        tensors = {name: tensor for name, tensor in every.items() if name not in hidden}
        parts = attributes.get("_modules") or {}
    return (
        {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, DeferredTensor)},
        {str(name): part for name, part in parts.items() if isinstance(part, Inert)},
    )


def _module_names(holder: Any) -> tuple[str, ...]:
    """Return the names of the modules that a state dict recorded beside its entries (`_metadata`)."""
    metadata = getattr(holder, "_metadata", None) if isinstance(holder, OrderedDict) else None
    return tuple(map(str, metadata)) if isinstance(metadata, Mapping) else ()


def _describe_value(value: Any) -> str:
    """Return the message about a file without weights."""
    if isinstance(value, Mapping):
        entries = ", ".join(map(str, list(value)[:5])) or "none"
        return f"no tensors in it (its entries: {entries})"
    kind = "tensor" if isinstance(value, DeferredTensor) else type(value).__qualname__
    return f"holds a {kind}, not a checkpoint; a dictionary of tensors is needed"


def _describe_damage(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that could not be read."""
    with path.open("rb") as handle:
        start = handle.read(2)
    if isinstance(error, EOFError) or any(
        word in str(error).lower() for word in ("truncated", "ran out of", "exhausted")
    ):
        return "truncated: its end is missing"
    if start != b"PK" and start[:1] != b"\x80":
        return "not a file of weights (.safetensors, or a torch file), or a damaged one"
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"not a readable checkpoint ({reason})"


class _TorchUnpickler(Unpickler):
    """A reader of the pickle in a torch file.

    Args:
        handle: The open file.
        storage: Returns the storage of a type, by its key.
    """

    def __init__(self, handle: IO[bytes], storage: Callable[[str, str], Storage]) -> None:
        super().__init__(handle, KNOWN)
        self._storage = storage
        self._found: dict[str, Storage] = {}

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that a tensor refers to."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], str):
            return super().persistent_load(pid)
        key = str(pid[2])
        if key not in self._found:
            self._found[key] = self._storage(pid[1], key)
        return self._found[key]


def _read_zipped(path: Path) -> tuple[Any, str]:
    archive = zipfile.ZipFile(path)  # stays open while a storage refers to it
    names = set(archive.namelist())
    unpacked, stored = sum(max(0, each.file_size) for each in archive.infolist()), path.stat().st_size
    if unpacked > _LEAST_BYTES + _EXPANSION * stored:
        raise Unsupported(
            f"an archive of {stored:,} bytes that unpacks to {unpacked:,}; save it without compression, as torch does"
        )
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if not pickles:
        raise Unsupported("a zip archive, but not a torch file (no data.pkl in it); unpack it and give what is inside")
    root = pickles[0].removesuffix("data.pkl")
    if archive.getinfo(pickles[0]).file_size > _LARGEST_PICKLE:
        raise Unsupported(f"the pickle in it is larger than {_LARGEST_PICKLE:,} bytes")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise Unsupported("was written on a big-endian machine; save it again on another")

    def storage(kind: str, key: str) -> Storage:
        name = f"{root}data/{key}"
        if name not in names:
            raise ValueError(f"the values of storage {key} are missing")
        return Storage(storage_dtype(kind), lambda: archive.read(name))  # which checks the CRC

    value = _TorchUnpickler(io.BytesIO(archive.read(pickles[0])), storage).load()
    code = sorted(name for name in names if name.startswith(f"{root}code/") and name.endswith(".py"))
    return value, "\n".join(archive.read(name).decode(errors="replace") for name in code)


def _read_nested(raw: bytes) -> Any:
    """Read the storage of a tensor in a plain pickle, which is a torch file of its own."""
    handle = io.BytesIO(raw)
    if Unpickler(handle).load() != _LEGACY_MAGIC:
        raise ValueError("a storage without its magic number")
    return _read_legacy(handle)


def _read_legacy(handle: IO[bytes]) -> Any:
    """Read what follows the magic number of a torch file from before the zip archives."""
    Unpickler(handle).load()  # the version of the format
    system = Unpickler(handle).load()
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Unsupported("was written on a big-endian machine; save it again on another")
    raw: dict[str, bytes] = {}
    sizes: dict[str, int] = {}

    def storage(kind: str, key: str) -> Storage:
        dtype = storage_dtype(kind)
        sizes[key] = 1 if dtype is None else dtype.itemsize
        return Storage(dtype, lambda: raw[key])

    value = _TorchUnpickler(handle, storage).load()
    keys = Unpickler(handle).load()
    rest = BoundedFile(handle)
    for key in map(str, keys if isinstance(keys, list) else ()):
        raw[key] = rest.read(int.from_bytes(rest.read(8), "little") * sizes[key])
    return value
