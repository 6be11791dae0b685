"""Tensors as a checkpoint file stores them: read one by one when they are asked for, the masked ones without zeros.

A masked tensor `W` is stored as `W.values`, its kept values in C order, and `W.bitmask`, its mask.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints.compress import BITMASK
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.file import DAMAGED, pack, unpack
from ovstrans.masks.mask import Mask

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by their names in safetensors files."""


class StoredTensors(MutableMapping[str, Tensor]):
    """The tensors of a file by name, as a mapping that can be changed; the file stays as it is.

    A tensor is read each time it is looked up: `pop` leaves nothing behind. The file is not mapped into memory, so
    that what was read and dropped takes no memory. It is open inside a `with` block.

    Args:
        path: A safetensors file.

    Attributes:
        metadata: As `files.read_metadata` gives them.

    Raises:
        InputError: If the file is missing or damaged, or a tensor has a type that checkpoints do not have.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.metadata = files.read_metadata(path)  # checks that header and length agree
        with self.path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header: dict[str, Any] = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        self._start = 8 + length
        ordered = sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
        self._entries: dict[str, Any] = dict(ordered)
        self._handle: BufferedReader | None = None

    def __enter__(self) -> StoredTensors:
        self._handle = self.path.open("rb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._handle is not None:
            self._handle.close()

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        return entry if isinstance(entry, Tensor) else self._read(name, entry)

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._entries[name] = value

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self, name: str, entry: dict[str, Any]) -> Tensor:
        if entry["dtype"] not in _TYPES:
            raise InputError(f"{self.path}: {name} is of type {entry['dtype']}, which no checkpoint has; make it again")
        begin, end = entry["data_offsets"]
        data = torch.empty(end - begin, dtype=torch.uint8)
        assert self._handle is not None, "tensors are read inside the with block"
        self._handle.seek(self._start + begin)
        if self._handle.readinto(data.numpy().data) != len(data):
            raise InputError(f"{self.path}: {name} ends early; the file has changed while it was read")
        return data.view(_TYPES[entry["dtype"]]).reshape(entry["shape"])


BACKBONE = "backbone."
"""Prefix of the image encoder's keys."""

VALUES = ".values"


def to_sparse(state: Mapping[str, Tensor], mask: Mask | None, *, where: str) -> dict[str, Tensor]:
    """Return a framework's state with every masked tensor `W` as `W.values` and `W.bitmask`.

    Raises:
        MismatchError: If a masked tensor is missing, of another shape or not zero where it is masked, or if the
            framework has a tensor whose name is reserved for the sparse format. The message begins with `where`.
    """
    tensors = dict(state)
    for name, kept in {} if mask is None else mask.tensors.items():
        key = BACKBONE + name
        if key not in tensors:
            raise MismatchError(f"{where}: the mask is about {name}, but the state has no {key}; not written")
        weight = tensors.pop(key).detach().cpu()
        if weight.shape != kept.shape:
            raise MismatchError(
                f"{where}: {key} has shape {list(weight.shape)}, its mask {list(kept.shape)}; not written"
            )
        nonzero = int((weight[~kept] != 0).sum())
        if nonzero:
            raise MismatchError(
                f"{where}: {nonzero} masked weights of {key} are not zero, the mask was not in force; "
                "not written (train inside 'with mask.held(optimizer)', or call mask.apply first)"
            )
        for part, value in ((VALUES, weight[kept]), (BITMASK, pack(kept))):
            if key + part in tensors:
                raise MismatchError(f"{where}: {key + part} is a name that the sparse form needs; not written")
            tensors[key + part] = value
    return tensors


def to_dense(
    tensors: MutableMapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, where: str
) -> dict[str, Tensor]:
    """Replace values and bits by dense tensors, in place, one tensor at a time.

    Args:
        tensors: The tensors of a checkpoint.
        shapes: Shapes of the masked tensors, by key.
        where: Beginning of messages.

    Returns:
        Boolean tensors of what is kept, by name in the image encoder.

    Raises:
        InputError: If parts are missing or do not agree.
    """
    kept: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        for part in (VALUES, BITMASK):
            if key + part not in tensors:
                raise InputError(f"{where}: {key + part} is missing; {DAMAGED}")
        if key in tensors or not key.startswith(BACKBONE):
            raise InputError(f"{where}: {key} is listed as masked and cannot be; {DAMAGED}")
        bits = unpack(tensors.pop(key + BITMASK), shape, f"{where}: {key + BITMASK}")
        values = tensors.pop(key + VALUES)
        count = int(np.count_nonzero(bits.numpy()))
        if values.dim() != 1 or len(values) != count:
            raise InputError(f"{where}: {key + VALUES} is {list(values.shape)}, its bitmask keeps {count}; {DAMAGED}")
        tensors[key] = torch.zeros(shape, dtype=values.dtype).masked_scatter_(bits, values)
        kept[key.removeprefix(BACKBONE)] = bits
    for key in tensors:
        if key.endswith(BITMASK):
            raise InputError(f"{where}: {key} has no entry in shapes; {DAMAGED}")
    return kept
