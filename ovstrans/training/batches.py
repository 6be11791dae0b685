"""Augmented batches of labelled images, on the device.

The images of a step and their augmentation depend on (seed, step) alone (see `datasets.loading`), so a resumed run sees
the images that an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ovstrans.datasets.augment import Augment, Transform
from ovstrans.datasets.loading import SampleBatch, stream_batches
from ovstrans.datasets.sample import Dataset, Sample
from ovstrans.datasets.segments import WithSegments
from ovstrans.environment import images_to_device
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.distributed import World


class Labelled:
    """A dataset to train on.

    Args:
        dataset: The dataset to read from.
        limit: Use the first images only; 0 for all.
        cache: Keep decoded images in memory.

    Raises:
        InputError: There is no image, the first one cannot be read or has no label map, or all classes are novel. Other
            images are checked when they are read.
    """

    def __init__(self, dataset: Dataset, *, limit: int = 0, cache: bool = False) -> None:
        self.dataset, self.name, self.split = dataset, dataset.name, dataset.split
        self.vocabulary, self.ignore = dataset.vocabulary, dataset.ignore
        self.published_size, self.videos = dataset.published_size, dataset.videos
        self._length = min(limit or len(dataset), len(dataset))
        self._cache: dict[int, Sample] | None = {} if cache else None
        if self._length == 0:
            raise InputError(f"{self.name}:{self.split}: holds no image to train on")
        self[0]
        if not self.vocabulary.base:
            raise InputError(
                f"{self.name}:{self.split}: all {len(self.vocabulary)} classes are novel, which leaves nothing to "
                "train on; take some out of novel"
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self.dataset[index]
        if sample.label is None:
            raise InputError(
                f"{self.name}:{self.split}: {sample.name or index} has no label map; training requires one"
            )
        if self._cache is not None:
            self._cache[index] = sample
        return sample


def training_batches(
    dataset: Labelled,
    recipe: FinetuneRecipe,
    world: World,
    *,
    start: int = 0,
    requirements: TargetRequirements = TargetRequirements(),
    region_size: int = 0,
) -> Iterator[Batch]:
    """Yield the batches of this process, without end, with the targets that come from the data alone.

    Args:
        dataset: The dataset to train on.
        recipe: Every setting of the run.
        world: This process.
        start: Number of the first step, from 0.
        requirements: Targets that the framework needs.
        region_size: Side of the regions that CLIP sees, if `requirements` asks for the teacher or synonyms.
    """
    augment = recipe.augment
    transform: Transform = Augment(augment.scale, augment.flip, augment.jitter, augment.short_side).transform(
        augment.crop, dataset.ignore
    )
    if requirements.segments:
        size = region_size if requirements.teacher or requirements.synonyms else 0
        transform = WithSegments(transform, dataset.ignore, dataset.vocabulary.novel, size)
    batches = stream_batches(
        dataset,
        batch_size=world.share(recipe.training.batch),
        seed=recipe.run.seed,
        start_step=start,
        transform=transform,
        rank=world.rank,
        world_size=world.size,
        workers=recipe.data.workers,
        segments=requirements.segments,
    )
    return (_on_device(batch, dataset.ignore, world.device) for batch in batches)


def _on_device(loaded: SampleBatch, ignore: int, device: torch.device) -> Batch:
    """Return samples as a batch on the device."""
    batch = Batch(loaded.images, loaded.labels, ignore, loaded.segments, loaded.captions).to(device)
    return replace(batch, images=images_to_device(batch.images, device))
