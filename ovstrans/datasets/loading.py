"""Endless batches, in an order that depends on the seed and the step alone.

Epochs follow each other in one sequence of positions. Position p is sample p mod n of the permutation of epoch p div n.
Step t of R ranks with batches of B takes positions t B R to (t + 1) B R, and each rank every R-th of them. Hence no
sample repeats within an epoch on any rank, all ranks have the same number of batches, no sample is dropped, and
resuming needs nothing but the step.

Shapes: `B` batch of one rank, `H W` image, `n` samples, `R` ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovstrans.datasets.augment import Transform
from ovstrans.datasets.sample import Dataset, Sample
from ovstrans.datasets.segments import Segments, make_segments
from ovstrans.environment import require_open_files
from ovstrans.errors import InputError, OvstransError

Item = tuple[int, int]
"""(epoch, index): the sample to read; its augmentation differs from epoch to epoch."""


@dataclass
class SampleBatch:
    """A batch of samples.

    Attributes:
        images: float32 [B, 3, H, W], RGB in [0, 1].
        labels: int64 [B, H, W], or None if any sample has no label map.
        names: Name of each sample.
        captions: Caption of each sample.
        segments: Panoptic targets of each sample, or None if they were not asked for.
    """

    images: Tensor
    labels: Tensor | None
    names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    segments: tuple[Segments, ...] | None = None


@lru_cache(maxsize=4)
def draw_epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Draw the permutation of 0 to n - 1 that an epoch follows, int64 [n], read-only."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.setflags(write=False)
    return order


def step_items(step: int, *, n: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> list[Item]:
    """Return the B items that a rank reads at a step, counted from 0."""
    first = step * batch_size * world_size + rank
    positions = range(first, first + batch_size * world_size, world_size)
    return [(p // n, int(draw_epoch_order(n, seed, p // n)[p % n])) for p in positions]


def make_generator(seed: int, item: Item) -> torch.Generator:
    """Return the generator for the augmentation of an item, seeded by (seed, epoch, index)."""
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
    world_size: int = 1,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    segments: bool = False,
) -> Iterator[SampleBatch]:
    """Return an endless iterator over batches.

    Args:
        dataset: The samples.
        batch_size: Samples per batch of this rank.
        seed: Seed of the order and the augmentation.
        start_step: Step of the first batch.
        transform: Augments a sample with the generator of its item. Without one, all images must have the same size.
        rank: Rank of this process.
        world_size: Number of ranks.
        workers: Processes that read ahead; with 0 a batch is read when it is asked for. The batches are the same.
        indices: Samples to use; all by default.
        segments: Whether to collect panoptic targets; `transform` must then be a `WithSegments`.

    Raises:
        InputError: The dataset is empty, images have different sizes, or a sample cannot be read.
    """
    selected = range(len(dataset)) if indices is None else indices
    if len(selected) == 0:
        raise InputError(f"{dataset.name}:{dataset.split}: no image to load; choose another split")
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}")
    reader = _Reader(dataset, transform, seed, selected)
    batches = _read_batches(reader, batch_size, start_step, rank, world_size, workers)
    return (collate(samples, segments=segments) for samples in batches)


def collate(samples: Sequence[Sample], *, segments: bool = False) -> SampleBatch:
    """Stack samples of the same size into a batch.

    Args:
        samples: The samples.
        segments: Whether to collect their panoptic targets; the samples must come from `WithSegments`.

    Raises:
        InputError: The images have different sizes.
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
    """Reads and augments one item; a map-style dataset for torch's DataLoader."""

    dataset: Dataset
    transform: Transform | None
    seed: int
    selected: Sequence[int]

    def read(self, item: Item) -> Sample:
        epoch, number = item
        index = self.selected[number]
        sample = self.dataset[index]
        if self.transform is None:
            return sample
        return self.transform(sample, make_generator(self.seed, (epoch, index)))

    def __getitem__(self, item: Item) -> Sample | OvstransError:
        try:
            return self.read(item)
        except OvstransError as error:  # raised in a worker, it would arrive wrapped in a traceback
            return error


_FIELDS = ("image", "label", "segment_map", "regions")
"""Tensors of a sample."""
_FILES, _FILES_A_WORKER = 48, 8
"""Open files of a process that trains, and further ones for each worker."""


def _pack_all(samples: Sequence[Sample | OvstransError]) -> list[Sample | OvstransError]:
    """Replace the tensors of samples by arrays of numpy, which are sent by value."""
    return [each if isinstance(each, OvstransError) else _convert(each, Tensor.numpy) for each in samples]


def _unpack(sample: Sample) -> Sample:
    return _convert(sample, torch.from_numpy)


def _convert(sample: Sample, change: Callable[[Any], Any]) -> Sample:
    found = {name: getattr(sample, name) for name in _FIELDS}
    return replace(sample, **{name: change(value) for name, value in found.items() if value is not None})


def _read_batches(
    reader: _Reader, batch_size: int, start_step: int, rank: int, world_size: int, workers: int
) -> Iterator[list[Sample]]:
    def iterate_steps() -> Iterator[list[Item]]:
        n = len(reader.selected)
        for step in count(start_step):
            yield step_items(step, n=n, batch_size=batch_size, seed=reader.seed, rank=rank, world_size=world_size)

    if workers == 0:
        for items in iterate_steps():
            yield [reader.read(item) for item in items]
    for packed in _read_ahead(reader, iterate_steps(), workers):
        samples = []
        for each in packed:
            if isinstance(each, OvstransError):
                raise each
            samples.append(_unpack(each))
        yield samples


def _read_ahead(reader: _Reader, steps: Iterator[list[Item]], workers: int) -> Any:
    """Read the items of each step in worker processes.

    They answer through their pipes. Tensors would come through /dev/shm, of which a container has 64 MB by default, and
    each would hold a file descriptor open.
    """
    from torch.utils.data import DataLoader

    require_open_files(_FILES + _FILES_A_WORKER * workers, f"`data.workers={workers}`")
    with warnings.catch_warnings():  # torch advises as many workers as cores; the recipe's number is the user's to set
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        return DataLoader(
            reader,  # type: ignore[arg-type]  # needs only __getitem__, as the sampler yields the items
            batch_sampler=steps,
            num_workers=workers,
            collate_fn=_pack_all,
            generator=torch.Generator(),  # the default would draw from the global generator
        )
