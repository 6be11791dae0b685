"""Lossless compression of a checkpoint's tensors, with zlib alone.

A tensor `T` of n values of s bytes is stored as `T.packed`, uint8 of one dimension: its s byte planes one behind the
other. Plane i holds byte i (little-endian, 0 is the lowest) of every value in C order, as a zlib stream (RFC 1950); a
plane that would not shrink is stored as its n bytes. The high bytes of floats hold their exponents, which take a few
bits each as Huffman codes; the low bytes are noise.

A mask's bits are turned into gaps first: for each weight of the rarer kind, kept or dropped, in C order, the number of
weights skipped since the one before, with 255 for "skip 255 more". A last gap leads to one past the last weight. Gaps
between independent bits are distributed geometrically, for which Huffman codes are within 2 % of the entropy.

The metadata list, for each `T`, its `dtype`, its `shape`, the `planes` (their bytes in the file; as many as values if a
plane is stored as it is) and, for bits turned into gaps, `gaps`: "kept" or "dropped". A tensor that would not shrink is
stored under its own name.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ovstrans.errors import InputError
from ovstrans.masks.file import DAMAGED, pack

PACKED = ".packed"
"""End of the name of a compressed tensor."""

BITMASK = ".bitmask"
"""End of the name of a mask's bits."""

Bytes = NDArray[np.uint8]

_ESCAPE = 255
"""The gap that says: skip 255 weights and go on."""

_LEAST_SAVED = 128
"""Bytes that compressing a tensor has to save: about what its entry in the metadata takes."""

_MOST_EXPANDED = 1032
"""Most bytes that one byte of a zlib stream expands to."""

_PIECE = 2**16
"""Bytes that are worked on at a time."""

_TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


def compress_tensors(
    tensors: Mapping[str, Tensor], counts: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Compress the tensors that become smaller.

    Args:
        tensors: Tensors of a checkpoint.
        counts: Number of weights of each mask, by the name of its bits.

    Returns:
        The tensors to store, and the entries of the metadata.
    """
    stored: dict[str, Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        packed, entry = _compress(value)
        if name in counts:
            bits = np.unpackbits(value.numpy(), count=counts[name])
            kind = "kept" if 2 * int(bits.sum()) <= len(bits) else "dropped"
            gaps, gap_entry = _compress(torch.from_numpy(_find_gaps(bits == (kind == "kept"))))
            if len(gaps) < len(packed):
                packed, entry = gaps, {**gap_entry, "gaps": kind}
        if len(packed) + _LEAST_SAVED > value.numel() * value.element_size() or name + PACKED in tensors:
            stored[name] = value
            continue
        stored[name + PACKED] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        entries[name] = entry
    return stored, entries


class CompressedTensors(MutableMapping[str, Tensor]):
    """The tensors of a compressed checkpoint as those of a plain one; each is decompressed when it is looked up.

    Args:
        tensors: What is stored.
        entries: The entries of the metadata.
        where: Beginning of messages.

    Raises:
        InputError: If the entries do not agree with what is stored, here or when a tensor is looked up.
    """

    def __init__(self, tensors: MutableMapping[str, Tensor], entries: Mapping[str, Any], where: str) -> None:
        self._tensors, self._entries, self._where = tensors, dict(entries), where
        for name, entry in self._entries.items():
            if name + PACKED not in tensors:
                raise InputError(f"{where}: {name + PACKED} is missing; {DAMAGED}")
            if name in tensors:
                raise InputError(f"{where}: {name} is there twice, compressed and not; {DAMAGED}")
            if not _sound(entry):
                raise InputError(f"{where}: coding says {entry!r} of {name}, which describes no tensor; {DAMAGED}")
        names = {name + PACKED: name for name in self._entries}
        self._names = dict.fromkeys(names.get(name, name) for name in tensors)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._entries:
            return self._tensors[name]
        return decompress(self._tensors[name + PACKED], self._entries[name], f"{self._where}: {name + PACKED}")

    def __setitem__(self, name: str, value: Tensor) -> None:
        if name in self._entries:
            del self[name]
        self._tensors[name] = value
        self._names[name] = None

    def __delitem__(self, name: str) -> None:
        del self._names[name]
        del self._tensors[name + PACKED if self._entries.pop(name, None) else name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def decompress(packed: Tensor, entry: Mapping[str, Any], where: str) -> Tensor:
    """Decompress a tensor.

    Args:
        packed: Its planes, uint8.
        entry: Its sound entry in the metadata.
        where: Beginning of messages.

    Raises:
        InputError: If the planes are damaged, or do not agree with the entry. Nothing larger than what the planes can
            hold is allocated.
    """
    kind, shape, planes = _TYPES[entry["dtype"]], entry["shape"], entry["planes"]
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or len(packed) != sum(planes):
        raise InputError(f"{where}: holds {len(packed)} bytes, planes of {sum(planes)} are needed; {DAMAGED}")
    if any(size > count or count > _MOST_EXPANDED * size for size in planes):
        raise InputError(f"{where}: planes of {planes} bytes cannot hold shape {shape}; {DAMAGED}")
    data = torch.empty(count, len(planes), dtype=torch.uint8)
    start = 0
    for number, size in enumerate(planes):
        plane, target = packed[start : start + size].numpy(), data.numpy()[:, number]
        if size == count:
            target[:] = plane
        else:
            _inflate(plane, target, where)
        start += size
    if kind is torch.bool and bool((data > 1).any()):
        raise InputError(f"{where}: holds bytes that are neither true nor false; {DAMAGED}")
    if "gaps" in entry:
        return pack(torch.from_numpy(_place_gaps(data.reshape(-1).numpy(), entry["gaps"] == "kept", where)))
    return data.reshape(-1).view(kind).reshape(shape)


def _sound(entry: Any) -> bool:
    """Return True if an entry of the metadata has the form that `compress_tensors` gives it."""
    if not isinstance(entry, dict) or set(entry) - {"gaps"} != {"dtype", "shape", "planes"}:
        return False
    kind = _TYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if kind is None or not all(isinstance(entry[key], list) for key in ("shape", "planes")):
        return False
    whole = all(type(size) is int and size > 0 for size in (*entry["shape"], *entry["planes"]))
    gaps = "gaps" not in entry or (entry["gaps"] in ("kept", "dropped") and kind is torch.uint8)
    return whole and gaps and len(entry["planes"]) == kind.itemsize


def _compress(value: Tensor) -> tuple[bytes, dict[str, Any]]:
    size = value.element_size()
    data = value.reshape(-1, 1).view(torch.uint8).numpy()
    planes = [_deflate(np.ascontiguousarray(data[:, number]).tobytes()) for number in range(size)]
    kind = str(value.dtype).removeprefix("torch.")
    return b"".join(planes), {"dtype": kind, "shape": list(value.shape), "planes": [len(plane) for plane in planes]}


def _deflate(data: bytes) -> bytes:
    """Return the shortest form of a plane: Huffman codes, these with repetitions, or as it is."""

    def run(strategy: int) -> bytes:
        stream = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
        return stream.compress(data) + stream.flush()

    shortest = min((run(zlib.Z_HUFFMAN_ONLY), run(zlib.Z_DEFAULT_STRATEGY)), key=len)
    return shortest if len(shortest) < len(data) else data


def _inflate(data: Bytes, target: Bytes, where: str) -> None:
    """Decompress a plane into the bytes of `target`, piece by piece."""
    stream, place = zlib.decompressobj(), 0

    def put(found: bytes) -> int:
        if place + len(found) > len(target):
            raise InputError(f"{where}: a plane holds more than {len(target)} bytes; {DAMAGED}")
        target[place : place + len(found)] = np.frombuffer(found, np.uint8)
        return place + len(found)

    try:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE].tobytes()
            while piece:
                place = put(stream.decompress(piece, _PIECE))
                piece = stream.unconsumed_tail
        place = put(stream.flush())
    except zlib.error as error:
        raise InputError(f"{where}: not a zlib stream ({error}); {DAMAGED}") from error
    if place != len(target) or not stream.eof or stream.unused_data:
        raise InputError(f"{where}: a plane does not hold {len(target)} bytes; {DAMAGED}")


def _find_gaps(marked: NDArray[np.bool_]) -> Bytes:
    """Return the gaps before the marked positions, and before the end."""
    skipped = np.diff(np.append(np.flatnonzero(marked), len(marked)), prepend=-1) - 1
    escapes = skipped // _ESCAPE
    gaps = np.full(len(skipped) + int(escapes.sum()), _ESCAPE, np.uint8)
    gaps[np.arange(len(skipped)) + np.cumsum(escapes)] = skipped % _ESCAPE
    return gaps


def _place_gaps(gaps: Bytes, kept: bool, where: str) -> NDArray[np.bool_]:
    """Return the positions that gaps lead to as True, or as False if `kept` is False."""
    stops = gaps != _ESCAPE
    if not stops[-1]:
        raise InputError(f"{where}: its gaps have no end; {DAMAGED}")
    steps = gaps + stops  # one more than is skipped, or 255
    marked = np.full(int(steps.sum(dtype=np.int64)), not kept)
    end = 0
    for start in range(0, len(steps), _PIECE):
        piece = slice(start, start + _PIECE)
        ends = end + np.cumsum(steps[piece], dtype=np.int64)
        marked[ends[stops[piece]] - 1] = kept
        end = int(ends[-1])
    return marked[:-1]
