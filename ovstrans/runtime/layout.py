"""How feature maps are stored, and the tables that lead from one layout to the next.

The lanes of a vector are the same position in each patch of a grid of 16 patches. The grid (4x4, 2x8, ...) is chosen
for each stage, so that few positions are padding. A dilated stage is stored as d^2 images, one for each residue class
of the rows and columns modulo d: its dilated convolutions are ordinary ones there.

An index of a position counts as if the map had one channel: subtile * 64 + slot * 16 + lane.

Shapes: `h w` feature map, `N` positions of a layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovstrans.runtime.library import CELL, LANES, SLOTS, LayoutStruct, pointer

Indices = NDArray[np.int32]

GRIDS = ((4, 4), (2, 8), (8, 2), (1, 16), (16, 1))
"""Rows and columns of the grid of patches."""

_CYCLES_OF_INDEX = 3.0
"""Cycles to pool a value by index. Lane by lane takes a sixteenth of it."""


@dataclass(frozen=True)
class Layout:
    """The layout of one feature map.

    Attributes:
        height: h.
        width: w.
        grid: Rows and columns of patches.
        dilation: d, of the stage's 3x3 convolutions.
    """

    height: int
    width: int
    grid: tuple[int, int] = (4, 4)
    dilation: int = 1

    @property
    def patch(self) -> tuple[int, int]:
        """Rows and columns of a patch."""
        rows, columns = (_ceil(size, self.dilation) for size in (self.height, self.width))
        return _ceil(rows, self.grid[0]), _ceil(columns, self.grid[1])

    @property
    def groups(self) -> int:
        """Groups of four columns of a patch."""
        return _ceil(self.patch[1], SLOTS)

    @property
    def subtiles(self) -> int:
        """Number of subtiles of a map."""
        return self.dilation**2 * self.patch[0] * self.groups

    @property
    def positions(self) -> int:
        """N, padding included."""
        return self.subtiles * CELL

    def index_of(self, rows: NDArray[Any], columns: NDArray[Any]) -> Indices:
        """Return the index of positions."""
        step, (patch_rows, patch_columns) = self.dilation, self.patch
        y, x = rows // step, columns // step
        image = rows % step * step + columns % step
        row, column = y % patch_rows, x % patch_columns
        subtile = (image * patch_rows + row) * self.groups + column // SLOTS
        lane = y // patch_rows * self.grid[1] + x // patch_columns
        index: Indices = (subtile * CELL + column % SLOTS * LANES + lane).astype(np.int32)
        return index

    @cached_property
    def pixels(self) -> tuple[Indices, Indices, NDArray[np.bool_]]:
        """Row and column of every index [N], moved inside the map where it is padding; and where it is not."""
        step, (patch_rows, patch_columns) = self.dilation, self.patch
        index = np.arange(self.positions, dtype=np.int32)
        subtile, slot, lane = index // CELL, index % CELL // LANES, index % LANES
        image, rest = np.divmod(subtile, patch_rows * self.groups)
        column = rest % self.groups * SLOTS + slot
        row = (lane // self.grid[1] * patch_rows + rest // self.groups) * step + image // step
        real = column < patch_columns
        column = (lane % self.grid[1] * patch_columns + column) * step + image % step
        real &= (row < self.height) & (column < self.width)
        return np.minimum(row, self.height - 1), np.minimum(column, self.width - 1), real

    def struct(self, batch: int) -> tuple[LayoutStruct, list[NDArray[Any]]]:
        """Return what the kernels read, and the arrays that must outlive it."""
        patch_rows, patch_columns = self.patch
        rows = self._masks(0, patch_rows + 3, patch_rows)
        columns = self._masks(1, SLOTS * self.groups + 2, patch_columns)
        arrays: list[NDArray[Any]] = [np.where(masks, -1, 0).astype(np.int32) for masks in (rows, columns)]
        arrays += [np.ascontiguousarray(masks.all(axis=-1), dtype=np.uint8) for masks in (rows, columns)]
        return LayoutStruct(
            images=batch * self.dilation**2,
            dilation=self.dilation,
            grid_columns=self.grid[1],
            patch_rows=patch_rows,
            patch_columns=patch_columns,
            groups=self.groups,
            row_masks=pointer(arrays[0]),
            column_masks=pointer(arrays[1]),
            row_full=pointer(arrays[2]),
            column_full=pointer(arrays[3]),
        ), arrays

    def _masks(self, axis: int, count: int, patch: int) -> NDArray[np.bool_]:
        """Return the lanes inside the map [d, count, 16] of the rows or columns of a patch, from -1 on."""
        size = (self.height, self.width)[axis]
        lane = np.arange(LANES)
        patches = lane // self.grid[1] if axis == 0 else lane % self.grid[1]
        position = np.arange(-1, count - 1)
        sizes = -(-(size - np.arange(self.dilation)) // self.dilation)
        at = patches * patch + position[:, None]
        inside: NDArray[np.bool_] = (at >= 0) & (at < sizes[:, None, None]) & (position[:, None] <= patch)
        return inside


@dataclass(frozen=True)
class Change:
    """The pools between two layouts: of 2x2 with stride 2, or with stride 1 as in `DilatedAvgPool2d`.

    Attributes:
        step: Distance of the averaged positions of a pool with stride 1; 0 for stride 2.
    """

    step: int = 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the pooled map."""
        return (height, width) if self.step else (height // 2, width // 2)

    def by_lane(self, source: Layout, target: Layout) -> bool:
        """Return True if all that is averaged lies in the same lane as the result."""
        same = not self.step and source.grid == target.grid and source.dilation == target.dilation == 1
        return same and source.patch == (2 * target.patch[0], 2 * target.patch[1])

    def index(self, source: Layout, target: Layout) -> Indices:
        """Return the indices in `source` of the four values of every position of `target`, [4, N]."""
        rows, columns, _ = target.pixels
        if self.step:
            far_rows = np.minimum(rows + self.step, source.height - 1)
            far_columns = np.minimum(columns + self.step, source.width - 1)
        else:
            rows, columns = 2 * rows, 2 * columns
            far_rows, far_columns = rows + 1, columns + 1
        corners = ((rows, columns), (rows, far_columns), (far_rows, columns), (far_rows, far_columns))
        return np.stack([source.index_of(*corner) for corner in corners])


@dataclass(frozen=True)
class StageCost:
    """The cost of a stage, by which its grid is chosen.

    Attributes:
        cycles: Cycles of a position of its layout.
        pooled: Channels that are pooled on the way into it.
    """

    cycles: float
    pooled: int


def choose_layouts(
    height: int, width: int, changes: Sequence[Change], dilations: Sequence[int], costs: Sequence[StageCost]
) -> list[Layout]:
    """Choose the grid of every stage so that the sum of the stages' and changes' time is least.

    Args:
        height: h of the first stage.
        width: Its w.
        changes: What lies between the stages, one less than there are stages.
        dilations: Dilation of every stage.
        costs: Cost of every stage.
    """
    sizes = [(height, width)]
    for change in changes:
        sizes.append(change.size(*sizes[-1]))
    paths: dict[tuple[int, int], tuple[float, list[Layout]]] = {}
    for number, (size, dilation, cost) in enumerate(zip(sizes, dilations, costs, strict=True)):
        following = {}
        for grid in GRIDS:
            layout = Layout(*size, grid, dilation)
            own = cost.cycles * layout.positions
            options = [(own, [layout])]
            for time, path in paths.values():
                lanes = 16.0 if changes[number - 1].by_lane(path[-1], layout) else 1.0
                moved = cost.pooled * layout.positions * _CYCLES_OF_INDEX / lanes
                options.append((time + own + moved, [*path, layout]))
            following[grid] = min(options[1:] or options, key=lambda option: option[0])
        paths = following
    return min(paths.values(), key=lambda option: option[0])[1]


def _ceil(size: int, parts: int) -> int:
    return -(-size // parts)
