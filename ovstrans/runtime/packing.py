"""Weights packed for the kernels: what is not zero, and where its input is.

A layer runs by one of two kernels, whichever is faster for its zeros: weight by weight, or in blocks of 4x1 weights (4
consecutive output channels, one input), which also runs layers that are dense.

Shapes: `O` output channels, `I` input channels, `k` kernel size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovstrans.runtime.library import LANES, SLOTS, WINDOW, ConvStruct, pointer

Floats = NDArray[np.float32]

GROUP = 4
"""Output channels of a block."""

_GROUP_COST = 0.78
"""Time of a weight in the kernel of blocks, over that of a weight by itself (measured on AVX-512)."""

_CHANNELS = {(1, 1): 128, (1, 9): 24, (GROUP, 1): 1024, (GROUP, 9): 64}
"""Input channels of a block by (group, taps): the input stays in the first cache, or the second for blocks of four."""

_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class PackedConv:
    """A convolution, ready to run.

    Attributes:
        name: The layer's name.
        shape: (O, I, k, k).
        kernel: "elements" or "blocks".
        nonzero: Number of weights that are not zero.
        stored: Number of weights that are stored: more than `nonzero` where blocks hold zeros.
        nbytes: Size of the packed arrays.
        struct: What the kernels read.
    """

    name: str
    shape: tuple[int, int, int, int]
    kernel: str
    nonzero: int
    stored: int
    nbytes: int
    struct: ConvStruct
    _arrays: tuple[NDArray[Any], ...]

    @property
    def rows(self) -> int:
        """Output channels."""
        return int(self.struct.rows)

    @property
    def channels(self) -> int:
        """Input channels."""
        return int(self.struct.channels)

    @property
    def window_floats(self) -> int:
        """Scratch of a tile for the input of a 3x3 convolution."""
        return int(self.struct.block_channels) * WINDOW * LANES if self.struct.taps == 9 else 0

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        return self.nonzero / int(np.prod(self.shape))


class PackedLayers(ABC):
    """The packed layers of an image encoder."""

    @property
    @abstractmethod
    def convs(self) -> Iterable[PackedConv]:
        """Every packed layer, in order."""

    @property
    def nbytes(self) -> int:
        """Size of the packed weights."""
        return sum(conv.nbytes for conv in self.convs)

    @property
    def density(self) -> float:
        """Share of the packed layers' weights that are not zero."""
        convs = list(self.convs)
        return sum(conv.nonzero for conv in convs) / sum(int(np.prod(conv.shape)) for conv in convs)


def pack_conv(weight: Floats, bias: Floats, *, name: str = "", kernel: str | None = None) -> PackedConv:
    """Pack a 1x1 or 3x3 convolution.

    Args:
        weight: [O, I, k, k], k 1 or 3.
        bias: [O].
        name: The layer's name.
        kernel: "elements" or "blocks"; None for the faster.
    """
    rows, channels, size, _ = weight.shape
    taps = size * size
    flat = np.ascontiguousarray(weight, dtype=np.float32).reshape(rows, channels * taps)
    kept = flat != 0
    nonzero = int(np.count_nonzero(kept))
    grouped = None
    if rows % GROUP == 0 and kernel != "elements":
        grouped = kept.reshape(rows // GROUP, GROUP, -1).any(axis=1)
        stored = GROUP * int(np.count_nonzero(grouped))
        if kernel is None and _GROUP_COST * stored > nonzero:
            grouped = None
    group = 1 if grouped is None else GROUP
    limit = _CHANNELS[group, taps]
    blocks = -(-channels // limit)
    each = -(-channels // blocks)
    blocks = -(-channels // each)
    arrays = _pack_entries(flat, kept if grouped is None else grouped, group, taps, blocks, each)
    values, offsets, runs, run_start, entry_start = arrays
    kept_bias = np.ascontiguousarray(bias, dtype=np.float32)
    struct = ConvStruct(rows=rows, channels=channels, taps=taps, group=group, blocks=blocks, block_channels=each)
    struct.bias, struct.values = pointer(kept_bias), pointer(values)
    struct.offsets, struct.runs = pointer(offsets), pointer(runs)
    struct.run_start, struct.entry_start = pointer(run_start), pointer(entry_start)
    return PackedConv(
        name,
        (rows, channels, size, size),
        "elements" if group == 1 else "blocks",
        nonzero,
        int(entry_start[-1]) * group,
        kept_bias.nbytes + sum(array.nbytes for array in arrays),
        struct,
        (kept_bias, *arrays),
    )


def _pack_entries(
    flat: Floats, kept: NDArray[np.bool_], group: int, taps: int, blocks: int, each: int
) -> tuple[NDArray[Any], ...]:
    """List the entries of every row, block of channels by block of channels.

    Args:
        flat: Weights [O, I * taps].
        kept: Which entries to store, [O / group, I * taps].
        group: Rows of an entry.
        taps: 1 or 9.
        blocks: Number of blocks.
        each: Channels of a block; the last one has the rest.

    Returns:
        values [entries * group], offsets [entries], runs [*, 2], and the first run and entry of each block.
    """
    columns = np.arange(each * taps)
    vector = columns * SLOTS if taps == 1 else columns // 9 * WINDOW + columns % 9 // 3 * 6 + columns % 3
    offset = (vector if group == GROUP else vector * LANES * 4).astype(np.int64)
    assert offset[-1] < 2**16, "an offset has 16 bits"
    grouped = flat.reshape(kept.shape[0], group, -1)
    values, offsets, runs = [], [], []
    for block in range(blocks):
        part = slice(block * each * taps, (block + 1) * each * taps)
        row, column = np.nonzero(kept[:, part])
        counts = np.bincount(row, minlength=kept.shape[0])
        # The first block starts every row with its bias, the last one ends it with the ReLU.
        present = np.arange(len(counts)) if block in (0, blocks - 1) else np.flatnonzero(counts)
        values.append(grouped[row, :, part.start + column].reshape(-1))
        offsets.append(offset[column].astype(np.uint16))
        runs.append(np.stack([present * group, counts[present]], axis=1).astype(np.uint16))
    starts = [
        np.concatenate([[0], np.cumsum([len(one) for one in parts])]).astype(np.int64) for parts in (runs, offsets)
    ]
    return np.concatenate(values), np.concatenate(offsets), np.concatenate(runs), *starts
