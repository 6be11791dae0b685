"""Batches without end, in an order that is a pure function of the seed and the step.

Epochs follow each other in one stream of sample positions: position p is place p mod n of the
permutation of epoch p div n. Step t of R ranks with batches of B takes positions t B R to (t+1) B R, and
each rank every R-th of them. So within an epoch nothing repeats over all ranks, every rank has
equally many batches, nothing is dropped, and resuming at a step needs the step alone.

Shapes: `B` batch of one rank, `H W` image, `n` samples, `R` ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans.datasets.augment import Transform
from ovstrans.datasets.sample import Dataset, Sample
from ovstrans.datasets.segments import Segments, make_segments
from ovstrans.errors import InputError, OvstransError

Item = tuple[int, int]
"""(epoch, index): which sample, and with which augmentation."""


@dataclass
class SampleBatch:
    """images: float32 [B, 3, H, W], RGB in [0, 1].  labels: int64 [B, H, W], or None.
    names, captions: of the samples.  segments: of the samples, where the transform worked them out."""

    images: Tensor
    labels: Tensor | None
    names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    segments: tuple[Segments, ...] | None = None


@lru_cache(maxsize=4)
def draw_epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of 0..n-1 that an epoch goes through, int64 [n], read only."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.setflags(write=False)
    return order


def step_items(step: int, *, n: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> list[Item]:
    """The B samples of a rank at a step (counted from 0), as (epoch, index)."""
    first = step * batch_size * world + rank
    positions = range(first, first + batch_size * world, world)
    return [(p // n, int(draw_epoch_order(n, seed, p // n)[p % n])) for p in positions]


def make_generator(seed: int, item: Item) -> torch.Generator:
    """The generator of one sample's augmentation, a function of (seed, epoch, index)."""
    state = np.random.SeedSequence([seed, *item]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def stream_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int = 0,
    start_step: int = 0,
    transform: Transform | None = None,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    segments: bool = False,
) -> Iterator[SampleBatch]:
    """Batches from `start_step` on, without end.

    batch_size: of this rank.  transform: called with each sample and its own generator; without one all
    images must be of one size.  workers: processes that read ahead; 0 reads when asked. The batches do
    not depend on it.  indices: the samples to use, all by default.  segments: see `collate`.

    Raises InputError for an empty dataset, images of different sizes, and whatever reading raises.
    """
    chosen = range(len(dataset)) if indices is None else indices
    if len(chosen) == 0:
        raise InputError(f"{dataset.name}:{dataset.split}: no image to load; choose another split")
    if batch_size < 1 or not 0 <= rank < world:
        raise ValueError(f"batch_size {batch_size}, rank {rank} of {world}")
    reader = _Reader(dataset, transform, seed, chosen)
    batches = _batches(reader, batch_size, start_step, rank, world, workers)
    return (collate(samples, segments=segments) for samples in batches)


def collate(samples: Sequence[Sample], *, segments: bool = False) -> SampleBatch:
    """Samples of one size as a batch; labels are None where any sample has none.

    segments: whether the samples come from `WithSegments` and the batch is to have them.
    """
    shapes = {tuple(sample.image.shape) for sample in samples}
    if len(shapes) > 1:
        sizes = ", ".join(sorted(f"{shape[-1]}x{shape[-2]}" for shape in shapes))
        raise InputError(f"images of different sizes ({sizes}) do not fit one batch; give a crop size")
    labels = [sample.label for sample in samples if sample.label is not None]
    return SampleBatch(
        images=torch.stack([sample.image for sample in samples]).float().div_(255),
        labels=torch.stack(labels).long() if len(labels) == len(samples) else None,
        names=tuple(sample.name for sample in samples),
        captions=tuple(sample.caption for sample in samples),
        segments=tuple(make_segments(sample) for sample in samples) if segments else None,
    )


@dataclass
class _Reader:
    """Reads and transforms one item; a map-style dataset for torch's DataLoader."""

    dataset: Dataset
    transform: Transform | None
    seed: int
    chosen: Sequence[int]

    def read(self, item: Item) -> Sample:
        epoch, number = item
        index = self.chosen[number]
        sample = self.dataset[index]
        if self.transform is None:
            return sample
        return self.transform(sample, make_generator(self.seed, (epoch, index)))

    def __getitem__(self, item: Item) -> Sample | OvstransError:
        try:
            return self.read(item)
        except OvstransError as error:  # a worker would wrap it in its traceback
            return error


def _batches(
    reader: _Reader, batch_size: int, start_step: int, rank: int, world: int, workers: int
) -> Iterator[list[Sample]]:
    def steps() -> Iterator[list[Item]]:
        step = start_step
        while True:
            n = len(reader.chosen)
            yield step_items(step, n=n, batch_size=batch_size, seed=reader.seed, rank=rank, world=world)
            step += 1

    if workers == 0:
        for items in steps():
            yield [reader.read(item) for item in items]
    for samples in _read_ahead(reader, steps(), workers):
        for sample in samples:
            if isinstance(sample, OvstransError):
                raise sample
        yield samples


def _read_ahead(reader: _Reader, steps: Iterator[list[Item]], workers: int) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(
        reader,  # type: ignore[arg-type]
        batch_sampler=steps,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # the default would draw from the global one, which a resume restores
    )
