"""Reading checkpoints of other programs, without running code from them.

What is read: safetensors; torch files (zipped and older ones), through `weights_only`; the plain pickles
of arrays that detectron2's zoo has. A dictionary may be the state itself, may hold it as "model" or
"state_dict" beside an optimizer and counters, or may hold one state per part of a model, as OpenTrans
saves them. TorchScript archives, and pickles that ask for anything but arrays, are refused.
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
from ovstrans.errors import InputError, MismatchError
from ovstrans.interop.pickles import STAND_INS, Refused, read_pickle, resolve

ABOUT = "ovstrans"
"""The entry in which a file that we export says what it is."""

ORIGINAL, MASK = "_orig", "_mask"
"""How torch's pruning calls a weight before its mask, and the mask."""

_ZIP = b"PK"
_WRAPPERS = ("model", "state_dict")
_PREFIXES = ("module.", "_orig_mod.")
_REPEATED = "first_conv"
"""OpenTrans saves the first convolution of its backbone a second time, under this name."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that a torch file from before the zipped ones begins with, as a pickle of its own."""


@dataclass(frozen=True)
class Foreign:
    """What a file holds.

    state: its tensors, by the names they have there.  about: the text that our exports leave, or "".
    metadata: of a safetensors file.  ignored: entries that are no part of the model (an optimizer).
    """

    path: Path
    state: dict[str, Tensor]
    about: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def read_foreign(path: Path | str) -> Foreign:
    """Read a checkpoint that another program wrote.

    Raises InputError where it is missing, truncated, holds no tensors, or asks for code to be run: then
    the message names what it asked for, and nothing of it was run.
    """
    path = files.existing_file(path)
    if path.suffix == ".safetensors":
        tensors, metadata = files.read_tensors(path)
        value: Any = tensors
        about = metadata.get(ABOUT, "")
    else:
        value, metadata = _read_object(path), {}
        about = str(value.get(ABOUT, "")) if isinstance(value, Mapping) else ""
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: holds a {type(value).__name__}, not a checkpoint; a dictionary of tensors is needed")
    state, ignored = _find_state(value)
    if not state:
        entries = ", ".join(map(str, list(value)[:5])) or "none"
        raise InputError(f"{path}: no tensors in it (its entries: {entries})")
    return Foreign(path, _unwrapped(state), about, metadata, tuple(ignored))


def bake(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A state that torch's pruning wrote, with its masks applied for good.

    `W_orig` and `W_mask` become `W`, exactly zero where the mask is; masks that have no weight stay. Raises
    InputError, beginning with `where`, for a weight without its mask, MismatchError where their shapes differ.
    """
    baked = dict(state)
    for key, weight in state.items():
        if not key.endswith(f".weight{ORIGINAL}"):
            continue
        name = key.removesuffix(ORIGINAL)
        if name + MASK not in state:
            raise InputError(f"{where}: {key} has no {name + MASK} beside it; save both, or the pruned weight itself")
        kept = state[name + MASK]
        if kept.shape != weight.shape:
            raise MismatchError(f"{where}: {key} has shape {list(weight.shape)}, its mask {list(kept.shape)}")
        del baked[key], baked[name + MASK]
        baked[name] = weight.masked_fill(kept == 0, 0)
    return baked


def _read_object(path: Path) -> Any:
    """What a torch file or a plain pickle holds."""
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
    except Exception as error:  # what is damaged fails in any way: a pickle runs as a program of stack operations
        name = _asked_for(error)
        if name:
            raise InputError(
                f"{path}: asks for {name}, which could run code; nothing was loaded. Where you trust it, "
                "save its tensors as .safetensors and give that file"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a readable checkpoint ({reason}); copy or download it again") from error


def _torch_load(path: Path) -> Any:
    with torch.serialization.safe_globals(list(STAND_INS.values())):
        return resolve(torch.load(path, map_location="cpu", weights_only=True))


def _asked_for(error: Exception) -> str:
    """The name that a reader refused, or "" where the file is merely broken."""
    if isinstance(error, Refused):
        return error.name
    found = re.search(r"GLOBAL (\S+)", str(error))  # how torch's reader says it
    return found[1] if found else ""


def _refuse_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise Refused("a TorchScript program")


def _find_state(value: Mapping[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors of the model by name, other entries) of a checkpoint's dictionary."""
    for wrapper in _WRAPPERS:
        inner = value.get(wrapper)
        if isinstance(inner, Mapping):
            return _find_state(inner)[0], [str(key) for key in value if key not in (wrapper, ABOUT)]
    state: dict[str, Tensor] = {}
    ignored = []
    for key, entry in value.items():
        if isinstance(entry, Tensor):
            state[str(key)] = entry
        elif (
            isinstance(entry, Mapping) and key != _REPEATED and any(isinstance(each, Tensor) for each in entry.values())
        ):
            state.update((f"{key}.{name}", each) for name, each in entry.items() if isinstance(each, Tensor))
        elif key != ABOUT:
            ignored.append(str(key))
    return state, ignored


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what DDP and torch.compile put before every name."""
    for prefix in (*_PREFIXES, *_PREFIXES):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
