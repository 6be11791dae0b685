"""Writing safetensors so that equal contents give equal bytes.

The safetensors writer puts the metadata in an order that changes from call to call. Here they are
sorted, so that a mask made twice from one seed is the same file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ovstrans import files


def write_stable(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata, atomically and reproducibly; InputError where `path` is unwritable.

    Tensors may share memory (each is written whole) and be of any layout; all are written in C order.
    """
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for key, value in tensors.items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        if address in seen or value.numel() * value.element_size() != value.untyped_storage().nbytes():
            value = value.clone()
        seen.add(address)
        own[key] = value
    # A path may hold bytes that are no Unicode; the file must be UTF-8.
    plain = {key: text.encode("utf-8", "backslashreplace").decode() for key, text in metadata.items()}
    with files.atomic_path(path) as temporary:
        save_file(own, temporary, metadata=plain)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Rewrite the header of a safetensors file in place: 8 bytes of length, JSON, spaces to fill up."""
    with path.open("rb+") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise RuntimeError(f"{path}: sorted header does not fit its place")
        handle.seek(8)
        handle.write(text.ljust(length))
