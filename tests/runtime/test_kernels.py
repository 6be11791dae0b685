"""Single convolutions against torch: every width, kernel, density, and size."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ovstrans.runtime import executor
from ovstrans.runtime.executor import Buffer
from ovstrans.runtime.layout import GRIDS, Change, Layout
from ovstrans.runtime.library import CELL, Kernels, StepStruct, find_kernels
from ovstrans.runtime.packing import PackedConv, pack_conv
from tests.runtime.networks import relative_error

NAN_GUARD = np.float32(np.nan)


def guard(*buffers: Buffer) -> None:
    """Fill the guard zones of buffers with NaN."""
    for buffer in buffers:
        kept = buffer.values.copy()
        buffer.memory[:] = NAN_GUARD
        buffer.values[:] = kept


def check_guards(*buffers: Buffer) -> None:
    """Fail if a kernel wrote into a guard zone."""
    for buffer in buffers:
        buffer.values[:] = 0
        assert np.isnan(buffer.memory).sum() == len(buffer.memory) - len(buffer.values)


def raise_map(layout: Layout, maps: Tensor) -> Buffer:
    """Store maps [B, C, h, w] in a layout; padding holds NaN, which no result may see."""
    batch, channels = maps.shape[:2]
    buffer = Buffer(batch * layout.positions * channels)
    rows, columns, real = layout.pixels
    values = np.where(real, maps.numpy()[:, :, rows, columns], np.nan)
    stored = values.reshape(batch, channels, layout.subtiles, CELL).transpose(0, 2, 1, 3)
    buffer.values[:] = np.ascontiguousarray(stored, dtype=np.float32).reshape(-1)
    return buffer


def lower_map(layout: Layout, buffer: Buffer, batch: int, channels: int) -> Tensor:
    """Read maps back by `index_of`."""
    stored = buffer.values.reshape(batch, layout.subtiles, channels, CELL).transpose(0, 2, 1, 3)
    flat = stored.reshape(batch, channels, -1)
    rows, columns = np.mgrid[: layout.height, : layout.width]
    return torch.from_numpy(np.ascontiguousarray(flat[:, :, layout.index_of(rows, columns)]))


def run_conv(kernels: Kernels, conv: PackedConv, layout: Layout, maps: Tensor, *, relu: bool = True) -> Tensor:
    """Run a packed convolution on maps [B, I, h, w]; with the ReLU, which 3x3 convolutions always have."""
    batch = maps.shape[0]
    struct, alive = layout.struct(batch)
    source, target = raise_map(layout, maps), Buffer(batch * layout.positions * conv.rows)
    scratch = Buffer(max(conv.window_floats, CELL))
    buffers = (source, target, scratch)
    guard(*buffers)
    step = StepStruct(source_layout=ctypes.pointer(struct), elements=batch, threads=1, relu=relu)
    step.scratch, step.next_out = scratch.address, target.address
    if conv.struct.taps == 9:
        step.spatial, step.source = ctypes.pointer(conv.struct), source.address
        kernels.run("spatial", step)
    else:
        step.next, step.residual_in = ctypes.pointer(conv.struct), source.address
        kernels.run("point", step)
    found = lower_map(layout, target, batch, conv.rows)
    check_guards(*buffers)
    assert alive
    return found


def make_weight(rows: int, channels: int, size: int, density: float, blocks: bool, seed: int) -> Tensor:
    """Return a weight [O, I, k, k] with random zeros, one by one or in 4x1 blocks."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, channels, size, size, generator=generator)
    shape = (rows // 4, 1, channels, size, size) if blocks else (rows, channels, size, size)
    kept = torch.rand(shape, generator=generator) < density
    return weight * (kept.expand(-1, 4, -1, -1, -1).reshape(weight.shape) if blocks else kept)


SPECS = st.fixed_dictionaries(
    {
        "rows": st.sampled_from([4, 8, 12, 36]),
        "channels": st.sampled_from([1, 3, 8, 25, 97, 130]),
        "size": st.sampled_from([1, 3]),
        "density": st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0]),
        "blocks": st.booleans(),
        "kernel": st.sampled_from([None, "elements", "blocks"]),
        "height": st.integers(1, 23),
        "width": st.integers(1, 40),
        "dilation": st.sampled_from([1, 1, 2, 4]),
        "grid": st.sampled_from(GRIDS),
        "batch": st.integers(1, 3),
        "seed": st.integers(0, 9),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(spec=SPECS)
def test_a_convolution_equals_torch(spec: dict[str, Any]) -> None:
    weight = make_weight(*(spec[key] for key in ("rows", "channels", "size", "density", "blocks", "seed")))
    weight[spec["seed"] % spec["rows"]] = 0  # an empty row
    bias = torch.linspace(-1, 1, spec["rows"])
    conv = pack_conv(weight.numpy(), bias.numpy(), kernel=spec["kernel"])
    height, width, step = spec["height"], spec["width"], spec["dilation"]
    layout = Layout(max(height, step), max(width, step), spec["grid"], step)
    maps = torch.randn(spec["batch"], spec["channels"], layout.height, layout.width)
    padding, dilation = (step, step) if spec["size"] == 3 else (0, 1)
    expected = F.conv2d(maps, weight, bias, padding=padding, dilation=dilation).relu()
    widths = {kernels.width: kernels for one in (64, 32, 16) if (kernels := find_kernels(one)) is not None}
    for kernels in widths.values():
        found = run_conv(kernels, conv, layout, maps)
        assert relative_error(found, expected) < 1e-5, kernels.width


def test_nan_goes_through_as_in_torch(kernels: Kernels) -> None:
    weight = make_weight(4, 3, 1, 1.0, False, 0)
    maps = torch.randn(1, 3, 4, 4)
    maps[0, 1, 2, 3] = torch.nan
    found = run_conv(kernels, pack_conv(weight.numpy(), np.zeros(4, np.float32)), Layout(4, 4), maps)
    assert torch.equal(found.isnan(), F.conv2d(maps, weight).relu().isnan())


def test_without_relu_negative_values_stay(kernels: Kernels) -> None:
    weight = make_weight(4, 5, 1, 0.5, False, 0)
    maps = torch.randn(1, 5, 4, 9)
    found = run_conv(kernels, pack_conv(weight.numpy(), np.zeros(4, np.float32)), Layout(4, 9), maps, relu=False)
    assert relative_error(found, F.conv2d(maps, weight)) < 1e-5
    assert found.min() < 0


@pytest.mark.parametrize(
    ("density", "blocks", "kernel"),
    [(0.1, False, "elements"), (0.1, True, "blocks"), (0.7, False, "elements"), (0.9, False, "blocks")],
)
def test_the_kernel_follows_from_the_zeros(density: float, blocks: bool, kernel: str) -> None:
    weight = make_weight(64, 32, 3, density, blocks, 0)
    conv = pack_conv(weight.numpy(), np.zeros(64, np.float32))
    assert conv.kernel == kernel
    assert conv.nonzero == int((weight != 0).sum())


def test_rows_that_are_no_multiple_of_four_run_one_by_one() -> None:
    weight = np.ones((6, 8, 1, 1), np.float32)
    assert pack_conv(weight, np.zeros(6, np.float32)).kernel == "elements"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    grid=st.sampled_from(GRIDS),
    dilation=st.sampled_from([1, 2, 4]),
)
def test_every_pixel_has_one_place(height: int, width: int, grid: tuple[int, int], dilation: int) -> None:
    layout = Layout(height, width, grid, dilation)
    rows, columns, real = layout.pixels
    assert real.sum() == height * width
    assert (layout.index_of(rows[real], columns[real]) == np.flatnonzero(real)).all()


@pytest.mark.parametrize("size", [(32, 32), (33, 31), (7, 50)])
@pytest.mark.parametrize("grids", [((4, 4), (4, 4)), ((4, 4), (8, 2)), ((2, 8), (2, 8))])
def test_pools_read_the_four_values(size: tuple[int, int], grids: Any) -> None:
    source, change = Layout(*size, grids[0]), Change()
    target = Layout(*change.size(*size), grids[1])
    image = np.arange(size[0] * size[1]).reshape(size)
    stored = image[source.pixels[0], source.pixels[1]]
    found = stored[change.index(source, target)].mean(axis=0)
    rows, columns = np.mgrid[: target.height, : target.width]
    expected = F.avg_pool2d(torch.from_numpy(image)[None].double(), 2)[0].numpy()
    assert np.array_equal(found[target.index_of(rows, columns)], expected)


def test_offsets_fit_sixteen_bits() -> None:
    for size, kernel in ((1, "elements"), (3, "elements"), (1, "blocks"), (3, "blocks")):
        conv = pack_conv(np.ones((4, 5000, size, size), np.float32), np.zeros(4, np.float32), kernel=kernel)
        assert conv.struct.blocks * conv.struct.block_channels >= 5000


def test_buffers_are_aligned_and_guarded() -> None:
    for floats in (1, 64, 1000):
        buffer = Buffer(floats)
        assert buffer.address % 64 == 0
        before = (buffer.address - buffer.memory.ctypes.data) // 4
        assert before >= executor._GUARD
        assert len(buffer.memory) - before - floats >= executor._GUARD - 16
