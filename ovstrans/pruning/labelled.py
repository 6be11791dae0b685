"""Labelled images for distillation losses that look at segments.

As with `images`, the batch of a step depends on (seed, step) and on nothing else.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice

import torch

from ovstrans.datasets.augment import Augment
from ovstrans.datasets.loading import stream_batches
from ovstrans.datasets.segments import WithSegments
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.training.batches import Labelled
from ovstrans.training.teacher_targets import TeacherTargets


class LabelledViews:
    """Random views of a dataset's images with their segments, and what a targets makes of them.

    dataset: the images, labelled.  batch: images a step.  size: pixels of a side of the square views.
    crop: least side of a view, as a part of the image's shorter side.  flip: mirror half of them.
    requirements: of the loss.  region_size: pixels of a side of what the teacher sees of a segment.  targets: fills
    in the rest of what the loss requires.
    """

    def __init__(
        self,
        dataset: Labelled,
        *,
        batch: int,
        size: int,
        seed: int,
        crop: float,
        flip: bool,
        requirements: TargetRequirements,
        region_size: int,
        targets: TeacherTargets,
        device: torch.device,
    ) -> None:
        self.dataset, self.batch, self.seed, self.targets, self.device = dataset, batch, seed, targets, device
        self.count = len(dataset)
        # A view that shows the part `crop` of the shorter side is the image at 1 / crop of the view's size.
        augment = Augment(scale=(1.0, 1.0 / crop), flip=0.5 if flip else 0.0, short_side=size)
        regions = region_size if requirements.teacher or requirements.synonyms else 0
        self._transform = WithSegments(
            augment.transform(size, dataset.ignore), dataset.ignore, dataset.vocabulary.novel, regions
        )

    def stream(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of steps `start` to `stop` - 1, on the device."""
        found = stream_batches(
            self.dataset,
            batch_size=self.batch,
            seed=self.seed,
            start_step=start,
            transform=self._transform,
            segments=True,
        )
        batches = (
            Batch(each.images, each.labels, self.dataset.ignore, each.segments, each.captions).to(self.device)
            for each in islice(found, stop - start)
        )
        yield from self.targets.attach(batches, start)
