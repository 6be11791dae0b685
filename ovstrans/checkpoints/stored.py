"""Tensors of a safetensors file that are read one by one, when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.errors import InputError

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
