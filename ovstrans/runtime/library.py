"""The compiled kernels, loaded through ctypes, and the structures that they share with the executor."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_uint8, c_uint16, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ovstrans.runtime.build import WIDTHS, library_name

FOLDER = Path(__file__).parent

WIDTH_VARIABLE = "OVSTRANS_KERNEL_WIDTH"
"""Environment variable that chooses narrower kernels than the CPU could run: 64, 32, 16, or 0 for none."""

LANES, SLOTS, WINDOW = 16, 4, 24
"""Lanes of a vector, vectors of a subtile, input vectors of a 3x3 tile, as in kernels.c."""

CELL = LANES * SLOTS
"""Floats of a channel in a subtile."""

POOLED = 4
"""Channels that are pooled together from lane to lane, as in kernels.c."""

_Fields = list[tuple[str, Any]]


class ConvStruct(Structure):
    """`Conv` of kernels.c: a packed convolution."""

    _fields_: ClassVar[_Fields] = [
        *((name, c_int32) for name in ("rows", "channels", "taps", "group", "blocks", "block_channels")),
        ("bias", POINTER(c_float)),
        ("values", POINTER(c_float)),
        ("offsets", POINTER(c_uint16)),
        ("runs", POINTER(c_uint16)),
        ("run_start", POINTER(c_int64)),
        ("entry_start", POINTER(c_int64)),
    ]


class LayoutStruct(Structure):
    """`Layout` of kernels.c: how a feature map is stored."""

    _fields_: ClassVar[_Fields] = [
        *((name, c_int32) for name in ("images", "dilation", "grid_columns", "patch_rows", "patch_columns", "groups")),
        ("row_masks", POINTER(c_int32)),
        ("column_masks", POINTER(c_int32)),
        ("row_full", POINTER(c_uint8)),
        ("column_full", POINTER(c_uint8)),
    ]


class StepStruct(Structure):
    """`Step` of kernels.c: one call."""

    _fields_: ClassVar[_Fields] = [
        *((name, POINTER(LayoutStruct)) for name in ("source_layout", "target_layout")),
        *((name, POINTER(ConvStruct)) for name in ("spatial", "shortcut", "expand", "next")),
        *((name, c_void_p) for name in ("source", "residual_in", "residual_out", "next_out", "index", "scratch")),
        *((name, c_int64) for name in ("scratch_stride", "scratch_first")),
        *((name, c_int32) for name in ("channels", "elements", "threads", "relu")),
        *((name, c_void_p) for name in ("image", "output", "places")),
        *((name, c_int64) for name in ("plane", "pitch")),
    ]


STEPS = ("lift", "spatial", "bottleneck", "transition", "pool", "point", "rows", "lower")
"""Names of the calls."""


@dataclass(frozen=True)
class Kernels:
    """The kernels of one width.

    Attributes:
        width: Native vector width in bytes.
        path: The library.
    """

    width: int
    path: Path
    _library: ctypes.CDLL

    def run(self, name: str, step: StepStruct) -> None:
        """Run a step, one of `STEPS`."""
        getattr(self._library, f"ovs_{name}")(ctypes.byref(step))

    @property
    def instructions(self) -> str:
        """Name of the instructions, in words."""
        return {64: "AVX-512", 32: "AVX2", 16: "128-bit vectors"}[self.width]


def find_kernels(width: int | None = None) -> Kernels | None:
    """Load the widest kernels that the CPU runs; None if there are none.

    Args:
        width: Vector width in bytes to use at most. None takes the environment variable `OVSTRANS_KERNEL_WIDTH`.
    """
    if width is None:
        asked = os.environ.get(WIDTH_VARIABLE, "")
        width = int(asked) if asked.isdigit() else max(WIDTHS)
    base = _open(FOLDER, 16)
    if base is None or width < 16:
        return None
    limit = min(width, base._library.ovs_widest())
    return next((found for one in sorted(WIDTHS, reverse=True) if one <= limit and (found := _open(FOLDER, one))), None)


def pointer(array: np.ndarray[Any, Any]) -> Any:
    """Return a ctypes pointer to an array, which must outlive it."""
    return array.ctypes.data_as(POINTER(np.ctypeslib.as_ctypes_type(array.dtype)))


@lru_cache
def _open(folder: Path, width: int) -> Kernels | None:
    """Load the library of a width; None if it is missing, broken or from another version of this file."""
    path = folder / library_name(width)
    try:
        library = ctypes.CDLL(str(path))
        sizes = [library.ovs_sizes(which) for which in range(3)]
        if sizes != [ctypes.sizeof(one) for one in (ConvStruct, LayoutStruct, StepStruct)]:
            return None
        if library.ovs_width() != width:
            return None
    except (OSError, AttributeError):
        return None
    for name in STEPS:
        function = getattr(library, f"ovs_{name}")
        function.argtypes, function.restype = [POINTER(StepStruct)], None
    return Kernels(width, path, library)
