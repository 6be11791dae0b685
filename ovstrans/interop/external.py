"""Reading checkpoints of other programs, without running code from them.

Safetensors files are read, torch files (zipped and older ones) through `weights_only`, and the plain pickles of arrays
in detectron2's model zoo. A dictionary may be the state dict itself, may hold it as "model" or "state_dict" beside an
optimizer and counters, or may hold one state dict per part of a model, as OpenTrans saves them. TorchScript archives,
and pickles that ask for anything but arrays, are refused.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.errors import InputError
from ovstrans.interop.pickles import STAND_INS, Refused, read_pickle, resolve

ORIGIN = "ovstrans"
"""Entry in which a file that we export says what it is, see `interop.origin`."""

_ZIP = b"PK"
_WRAPPERS = ("model", "state_dict")
_PREFIXES = ("module.", "_orig_mod.")
_REPEATED = "first_conv"
"""Entry in which OpenTrans saves the first convolution of its backbone a second time."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that begins a torch file from before the zipped ones, as a pickle of its own."""


@dataclass(frozen=True)
class ExternalFile:
    """The contents of a checkpoint that another program wrote, or that we exported.

    Attributes:
        path: The file.
        state: Its tensors, by the names they have in it.
        origin: What one of our exports says of itself, as JSON text; "" in other files.
        metadata: Metadata of a safetensors file.
        ignored: Entries that are no part of the model, such as an optimizer.
    """

    path: Path
    state: dict[str, Tensor]
    origin: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def read_external(path: Path | str) -> ExternalFile:
    """Read a checkpoint that another program wrote.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If it is truncated, holds no tensors, or asks for code to be run. In the last case the message
            names what it asked for, and nothing of it was run.
    """
    path = files.existing_file(path)
    if path.suffix == ".safetensors":
        tensors, metadata = files.read_tensors(path)
        value: Any = tensors
        origin = metadata.get(ORIGIN, "")
    else:
        value, metadata = _read_object(path), {}
        origin = str(value.get(ORIGIN, "")) if isinstance(value, Mapping) else ""
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: holds a {type(value).__name__}, not a checkpoint; a dictionary of tensors is needed")
    state, ignored = _find_state(value)
    if not state:
        entries = ", ".join(map(str, list(value)[:5])) or "none"
        raise InputError(f"{path}: no tensors in it (its entries: {entries})")
    return ExternalFile(path, _unwrapped(state), origin, metadata, tuple(ignored))


def _read_object(path: Path) -> Any:
    """Read a torch file or a plain pickle."""
    try:
        if zipfile.is_zipfile(path):
            _refuse_torchscript(path)
            return _torch_load(path)
        with path.open("rb") as handle:
            if handle.read(len(_ZIP)) == _ZIP:
                raise ValueError("its end is missing")
            handle.seek(0)
            first = read_pickle(handle)
        return _torch_load(path) if type(first) is int and first == _LEGACY_MAGIC else first
    except Exception as error:  # a damaged file fails in any way: a pickle is a program of stack operations
        name = _refused_name(error)
        if name:
            raise InputError(
                f"{path}: asks for {name}, which could run code; nothing was loaded. Where you trust it, "
                "save its tensors as .safetensors and give that file"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a readable checkpoint ({reason}); copy or download it again") from error


def _torch_load(path: Path) -> Any:
    # Each with its name: torch before 2.7 goes by `__name__` otherwise, which is not numpy's.
    allowed: list[Any] = [(stand_in, f"{module}.{name}") for (module, name), stand_in in STAND_INS.items()]
    with torch.serialization.safe_globals(allowed):
        return resolve(torch.load(path, map_location="cpu", weights_only=True))


def _refused_name(error: Exception) -> str:
    """Return the name that a reader refused, or "" if the file is merely broken."""
    if isinstance(error, Refused):
        return error.name
    found = re.search(r"GLOBAL (\S+)", str(error))  # the words of torch's reader
    return found[1] if found else ""


def _refuse_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise Refused("a TorchScript program")


def _find_state(value: Mapping[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return (tensors of the model by name, names of the other entries) of a checkpoint's dictionary."""
    for wrapper in _WRAPPERS:
        inner = value.get(wrapper)
        if isinstance(inner, Mapping):
            return _find_state(inner)[0], [str(key) for key in value if key not in (wrapper, ORIGIN)]
    state: dict[str, Tensor] = {}
    ignored = []
    for key, entry in value.items():
        if isinstance(entry, Tensor):
            state[str(key)] = entry
        elif (
            isinstance(entry, Mapping) and key != _REPEATED and any(isinstance(each, Tensor) for each in entry.values())
        ):
            state.update((f"{key}.{name}", each) for name, each in entry.items() if isinstance(each, Tensor))
        elif key != ORIGIN:
            ignored.append(str(key))
    return state, ignored


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that DDP and `torch.compile` put before every name."""
    for prefix in (*_PREFIXES, *_PREFIXES):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
