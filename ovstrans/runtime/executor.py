"""The executor: runs the backbone of a CLIP ResNet by the kernels, for images of any size.

For each size of images it makes a plan once: the layout of every stage, the buffers, and a list of steps, one for each
block. A step is one call of the kernels, which spread its tiles over the threads.

Shapes: `B` batch, `C` channels, `H W` image, `h w` feature map.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ovstrans.clip.backbone import STAGES
from ovstrans.runtime.layout import Layout, StageCost, choose_layouts
from ovstrans.runtime.library import CELL, POOLED, Kernels, StepStruct
from ovstrans.runtime.network import Block, Network
from ovstrans.runtime.packing import PackedConv

SMALLEST = 32
"""Side of the smallest image: a smaller one has no res5."""

_GUARD = 64
"""Floats before and after every buffer: loads at patch borders reach up to 17 floats beyond a vector."""

_PLANS = 2
"""Sizes of images whose plans and buffers are kept."""

_CYCLES = 1.5 / 16
"""Cycles of a multiply-add, by which layouts are chosen."""


class Buffer:
    """Zeroed floats, aligned to cache lines, with guard zones around them.

    Args:
        floats: Their number.

    Attributes:
        memory: All of it.
        values: The floats.
        address: Of the first.
    """

    def __init__(self, floats: int) -> None:
        self.memory = np.zeros(floats + 2 * _GUARD + 16, np.float32)
        start = -self.memory[_GUARD:].ctypes.data % 64 // 4 + _GUARD
        self.values = self.memory[start : start + floats]
        self.address = self.values.ctypes.data


@dataclass
class Plan:
    """The steps and buffers that run images of one size.

    Attributes:
        layouts: Layouts of the stem's maps and of layer1 to layer4.
        padded: Buffer of the images, with a border of zeros.
        steps: Name and argument of each call, up to the end of each of `STAGES`.
        results: For each of `STAGES`, the call that writes the feature map, and its shape.
        nbytes: Size of the buffers.
    """

    layouts: list[Layout]
    padded: Tensor
    steps: dict[str, list[tuple[str, StepStruct]]]
    results: dict[str, tuple[StepStruct, tuple[int, int, int, int]]]
    nbytes: int
    _alive: list[Any] = field(default_factory=list, repr=False)


class SparseBackbone:
    """The backbone of a CLIP ResNet with packed weights, for inference on the CPU in float32.

    Args:
        network: The packed backbone.
        kernels: What runs it.

    Attributes:
        network: The packed backbone.
        kernels: What runs it.
    """

    def __init__(self, network: Network, kernels: Kernels) -> None:
        self.network, self.kernels = network, kernels
        self._plans: OrderedDict[tuple[int, ...], Plan] = OrderedDict()
        self._lock = Lock()

    @property
    def convs(self) -> Iterator[PackedConv]:
        """Every packed convolution, in order."""
        return self.network.convs

    def attach(self, encoder: nn.Module) -> None:
        """Let `encode_stages` run an encoder by the packed weights."""
        cast(Any, encoder).stage_runner = self

    def accepts(self, images: Tensor, stages: Collection[str] = STAGES) -> bool:
        """Return True if the backbone can run images: on the CPU, in float32, without gradients, and not too small."""
        plain = images.device.type == "cpu" and images.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return plain and not torch.is_grad_enabled() and min(images.shape[-2:]) >= SMALLEST

    def __call__(self, images: Tensor, stages: Collection[str] = STAGES) -> dict[str, Tensor]:
        """Run the backbone.

        Args:
            images: Normalised images, float32 [B, 3, H, W] on the CPU, H and W at least 32.
            stages: Which feature maps to return, of `STAGES`.

        Returns:
            Feature maps [B, C, h, w] by name, in order.
        """
        batch, _, height, width = images.shape
        with self._lock:
            plan = self.plan(batch, height, width, torch.get_num_threads())
            plan.padded[..., 1:-1, 1:-1] = images.detach()
            found = {}
            last = max((STAGES.index(name) for name in stages), default=-1)
            for name in STAGES[: last + 1]:
                for call, step in plan.steps[name]:
                    self.kernels.run(call, step)
                if name in stages:
                    lower, shape = plan.results[name]
                    found[name] = torch.empty(shape)
                    lower.output = found[name].data_ptr()
                    self.kernels.run("lower", lower)
        return found

    def plan(self, batch: int, height: int, width: int, threads: int = 1) -> Plan:
        """Return the plan for images [B, 3, H, W]; it is made once and kept."""
        key = (batch, height, width, threads)
        if key not in self._plans:
            while len(self._plans) >= _PLANS:
                self._plans.popitem(last=False)
            self._plans[key] = _Planner(self.network, batch, height, width, threads).make()
        self._plans.move_to_end(key)
        return self._plans[key]

    def __deepcopy__(self, memo: object) -> SparseBackbone:
        return SparseBackbone(self.network, self.kernels)

    def __reduce__(self) -> Any:
        raise TypeError("packed weights hold pointers; pack the backbone again")


class _Planner:
    """Makes a plan."""

    def __init__(self, network: Network, batch: int, height: int, width: int, threads: int) -> None:
        self.network, self.batch, self.threads = network, batch, threads
        self.image = (height, width)
        # The stem's maps, and those of the stages: layer1 has the size of the pooled stem.
        self.layouts = choose_layouts(
            (height - 1) // 2 + 1, (width - 1) // 2 + 1, network.changes, network.dilations, list(self._costs())
        )
        self.alive: list[Any] = []
        self.structs = []
        for layout in self.layouts:
            struct, arrays = layout.struct(batch)
            self.structs.append(struct)
            self.alive += [struct, arrays]
        self.steps: list[tuple[str, StepStruct]] = []
        self._make_scratch()

    def make(self) -> Plan:
        """Return the plan."""
        network, layouts = self.network, self.layouts
        stem_rows = [conv.rows for conv in network.stem]
        blocks = [block for stage in network.stages for block in stage]
        homes = [number + 1 for number, stage in enumerate(network.stages) for _ in stage]
        middles = [self._floats(0, rows) for rows in stem_rows[:2]]
        residuals = [self._floats(0, stem_rows[2]), self._floats(1, stem_rows[2])]
        for block, home in zip(blocks, homes, strict=True):
            middles.append(self._floats(home - (block.change is not None), block.conv2.rows))
            residuals.append(self._floats(home, block.conv3.rows))
            if block.change is not None and block.shortcut is not None:  # what is pooled
                middles.append(self._floats(home, block.conv2.rows))
                residuals.append(self._floats(home, block.shortcut.channels))
        self.middle = [self._buffer(max(middles)) for _ in range(2)]
        # The first residual is the one that holds the latest map.
        self.residual = [self._buffer(max(residuals)) for _ in range(2)]

        self._add_stem(blocks[0])
        plan = Plan(layouts, self.padded, {}, {}, 0, self.alive)
        self._finish(plan, STAGES[0], 1, stem_rows[2])
        for number, (block, home) in enumerate(zip(blocks, homes, strict=True)):
            following = blocks[number + 1] if number + 1 < len(blocks) else None
            self._add_block(block, home, following)
            if following is None or homes[number + 1] != home:
                self._finish(plan, STAGES[home], home, block.conv3.rows)
        plan.nbytes = sum(one.values.nbytes for one in self.alive if isinstance(one, Buffer))
        return plan

    def _add_stem(self, first: Block) -> None:
        (conv1, conv2, conv3), layout = self.network.stem, self.layouts[0]
        height, width = self.image
        rows, columns, _ = layout.pixels
        pitch = width + 2
        places = np.ascontiguousarray(2 * rows.astype(np.int64) * pitch + 2 * columns, dtype=np.int32)
        middle, residual = self.middle, self.residual
        self.padded = torch.zeros(self.batch, conv1.channels // 9, height + 2, pitch)
        self._add(
            "lift",
            image=self.padded.data_ptr(),
            target=0,
            next=conv1,
            next_out=middle[0],
            places=places,
            pitch=pitch,
            plane=pitch * (height + 2),
            channels=conv1.channels // 9,
        )
        self._add("spatial", source_layout=0, spatial=conv2, source=middle[0], next_out=middle[1])
        if self._by_lane(1):
            self._add("spatial", source_layout=0, target=1, spatial=conv3, source=middle[1], next_out=residual[0])
        else:
            self._add("spatial", source_layout=0, spatial=conv3, source=middle[1], next_out=residual[1])
            self._add_pool(1, residual[1], residual[0], conv3.rows)
        self._add("point", source_layout=1, residual_in=residual[0], next=first.conv1, next_out=middle[0], relu=1)

    def _add_block(self, block: Block, home: int, following: Block | None) -> None:
        middle, residual = self.middle, self.residual
        after = None if following is None else following.conv1
        if block.change is None:
            self._add(
                "bottleneck",
                source_layout=home,
                spatial=block.conv2,
                expand=block.conv3,
                shortcut=block.shortcut,
                next=after,
                source=middle[0],
                residual_in=residual[0],
                residual_out=residual[0 if block.shortcut is None else 1],
                next_out=middle[1],
            )
            middle.reverse()
        else:
            by_lane = self._by_lane(home)
            self._add(
                "spatial",
                source_layout=home - 1,
                target=home if by_lane else None,
                spatial=block.conv2,
                source=middle[0],
                next_out=middle[1],
            )
            if not by_lane and block.shortcut is not None:
                self._add_pool(home, middle[1], middle[0], block.conv2.rows)
                self._add_pool(home, residual[0], residual[1], block.shortcut.channels)
                middle.reverse()
                residual.reverse()
            self._add(
                "transition",
                source_layout=home - 1 if by_lane else None,
                target=home,
                expand=block.conv3,
                shortcut=block.shortcut,
                next=after,
                source=middle[1],
                residual_in=residual[0],
                residual_out=residual[1],
                next_out=middle[0],
            )
        if block.shortcut is not None:
            residual.reverse()

    def _add_pool(self, home: int, source: Buffer, target: Buffer, channels: int) -> None:
        """Pool a map into the layout `home`, whose lanes are others."""
        self._add("pool", source_layout=home - 1, target=home, source=source, residual_out=target, channels=channels)

    def _by_lane(self, home: int) -> bool:
        """Return True if a map is pooled lane by lane into the layout `home`."""
        return self.network.changes[home - 1].by_lane(self.layouts[home - 1], self.layouts[home])

    def _finish(self, plan: Plan, name: str, home: int, channels: int) -> None:
        """End a stage, whose map is then in the first residual buffer."""
        layout = self.layouts[home]
        rows, columns, real = layout.pixels
        places = np.ascontiguousarray(np.where(real, rows * layout.width + columns, -1), dtype=np.int32)
        lower = self._step(
            source_layout=home,
            source=self.residual[0],
            places=places,
            plane=layout.height * layout.width,
            channels=channels,
        )
        plan.results[name] = (lower, (self.batch, channels, layout.height, layout.width))
        plan.steps[name], self.steps = self.steps, []

    def _add(self, call: str, **fields: Any) -> None:
        self.steps.append((call, self._step(**fields)))

    def _step(
        self,
        source_layout: int | None = None,
        target: int | None = None,
        places: Any = None,
        **fields: Any,
    ) -> StepStruct:
        step = StepStruct(elements=self.batch, threads=self.threads, scratch=self.scratch.address)
        step.scratch_stride, step.scratch_first = self.scratch_places
        if source_layout is not None:
            step.source_layout = ctypes.pointer(self.structs[source_layout])
        if target is not None:
            step.target_layout = ctypes.pointer(self.structs[target])
        if places is not None:
            step.places = places.ctypes.data
            self.alive.append(places)
        if source_layout is not None and target is not None and not self._by_lane(target):
            change = self.network.changes[target - 1]
            index = np.ascontiguousarray(change.index(self.layouts[source_layout], self.layouts[target]))
            step.index = index.ctypes.data
            self.alive.append(index)
        for name, value in fields.items():
            if isinstance(value, PackedConv):
                value = ctypes.pointer(value.struct)
            elif isinstance(value, Buffer):
                value = value.address
            setattr(step, name, value)
        return step

    def _make_scratch(self) -> None:
        """Allocate what each thread needs: an input window and two tiles, or channels of a map that is pooled."""
        convs = list(self.network.convs)
        window = max(conv.window_floats for conv in convs)
        window = max(window, self.network.stem[0].channels * CELL)
        first = 2 * CELL * max(conv.channels for conv in convs if conv.shape[2] == 1 or conv.shape[2] == 3)
        moved = [self.layouts[home - 1] for home in range(1, len(self.layouts)) if not self._by_lane(home)]
        total = max(window + first + 2 * _GUARD, *(POOLED * layout.positions for layout in moved), 0)
        self.scratch = self._buffer(total * self.threads)
        self.scratch_places = (total, window + _GUARD)

    def _buffer(self, floats: int) -> Buffer:
        buffer = Buffer(floats)
        self.alive.append(buffer)
        return buffer

    def _floats(self, home: int, channels: int) -> int:
        return self.batch * self.layouts[home].positions * channels

    def _costs(self) -> list[StageCost]:
        """Return what a position of the stem and of each stage costs."""
        stem = self.network.stem
        stored = [sum(conv.stored for conv in stem)]
        pooled = [0]
        before = stem[2].rows
        for number, blocks in enumerate(self.network.stages):
            own = 0
            for block in blocks:
                convs = set(block.convs)
                if block.change is not None:  # its conv1 and conv2 work on the map before
                    early = {block.conv1, block.conv2}
                    stored[-1] += sum(conv.stored for conv in early)
                    convs -= early
                own += sum(conv.stored for conv in convs)
            stored.append(own)
            pooled.append(stem[2].rows if number == 0 else before + blocks[0].conv2.rows)
            before = blocks[-1].conv3.rows
        return [StageCost(one * _CYCLES, other) for one, other in zip(stored, pooled, strict=True)]
