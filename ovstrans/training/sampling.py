"""The labelled batches of a run, augmented, on the device.

Which images make up a step, and how each is augmented, follows from (seed, step) alone (see
`data.loading`), so a resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ovstrans.data.augment import Augment
from ovstrans.data.loading import infinite_batches
from ovstrans.data.sample import Dataset, Sample
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch
from ovstrans.training.distributed import World
from ovstrans.training.precision import place_images
from ovstrans.training.settings import Settings


class Labelled:
    """A dataset to train on: the first `limit` images of another (0: all), kept in memory if `cache`.

    Raises InputError where the first image does not read or has no label map; others are read when
    their turn comes.
    """

    def __init__(self, dataset: Dataset, *, limit: int = 0, cache: bool = False) -> None:
        self.dataset, self.name, self.split = dataset, dataset.name, dataset.split
        self.vocabulary, self.ignore = dataset.vocabulary, dataset.ignore
        self._length = min(limit or len(dataset), len(dataset))
        self._cache: dict[int, Sample] | None = {} if cache else None
        if self._length == 0:
            raise InputError(f"{self.name}:{self.split}: holds no image to train on")
        self[0]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self.dataset[index]
        if sample.label is None:
            raise InputError(f"{self.name}:{self.split}: {sample.name or index} has no label map; training needs one")
        sample = Sample(sample.image, sample.label, sample.name)
        if self._cache is not None:
            self._cache[index] = sample
        return sample


def stream(dataset: Labelled, settings: Settings, world: World, *, start: int = 0) -> Iterator[Batch]:
    """This process's batches from step `start` on, without end: images [B, 3, H, W] in [0, 1], labels [B, H, W]."""
    augment = settings.augment
    transform = Augment(augment.scale, augment.flip, augment.jitter, augment.short_side)
    batches = infinite_batches(
        dataset,
        batch_size=world.share(settings.training.batch),
        seed=settings.run.seed,
        start_step=start,
        transform=transform.transform(augment.crop, dataset.ignore),
        rank=world.rank,
        world=world.size,
        workers=settings.data.workers,
    )
    return (_placed(batch.images, batch.labels, dataset.ignore, world.device) for batch in batches)


def _placed(images: torch.Tensor, labels: torch.Tensor | None, ignore: int, device: torch.device) -> Batch:
    moved = None if labels is None else labels.to(device, non_blocking=True)
    return Batch(place_images(images, device), moved, ignore)
