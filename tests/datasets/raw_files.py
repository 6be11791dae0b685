"""Image files written byte by byte, for what pillow cannot write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Chunk = tuple[bytes, bytes]
"""Type and content of a PNG chunk."""


def png_bytes(
    width: int,
    height: int,
    rows: bytes,
    *,
    bits: int = 8,
    color: int = 0,
    before: Sequence[Chunk] = (),
    after: Sequence[Chunk] = (),
) -> bytes:
    """A PNG with packed `rows`, and other chunks before and after the pixels."""
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[row * stride : (row + 1) * stride] for row in range(height))
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    chunks = (header, *before, (b"IDAT", zlib.compress(raw)), *after, (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def put_png(path: Path, width: int, height: int, rows: bytes, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(width, height, rows, **options))  # type: ignore[arg-type]
    return path


def put_tiff(path: Path, values: np.ndarray, *, bits: int = 0, sample_format: int = 0, rows: bytes = b"") -> Path:
    """A TIFF of one strip, of the array's own type; or of the `bits` and the packed `rows` given."""
    height, width, bands = (*values.shape, 1)[:3]
    kinds = {"u": 1, "b": 1, "i": 2, "f": 3}
    content = rows or values.astype(values.dtype.newbyteorder("<")).tobytes()
    bits = bits or values.dtype.itemsize * 8
    sample_format = sample_format or kinds[values.dtype.kind]
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 1 if bands == 1 else 2),
        (273, 4, 1, 8),
        (277, 3, 1, bands),
        (278, 4, 1, height),
        (279, 4, 1, len(content)),
        (339, 3, 1, sample_format),
    ]
    if bands == 3:
        tail = 8 + len(content) + 2 + 12 * len(tags) + 4
        tags[2], tags[9] = (258, 3, 3, tail), (339, 3, 3, tail + 6)
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    extra = struct.pack("<6H", *[bits] * 3, *[sample_format] * 3) if bands == 3 else b""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(content)) + content + directory + extra)
    return path
