"""Labelled images for distillation losses that compare segments.

As with `pruning.rounds`, the batch of a step depends on seed and step only.
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
    """Random views of a dataset's images with their segments and the targets of the teacher.

    Args:
        dataset: Labelled images.
        batch: Images of each step.
        size: Side of the square views, in pixels.
        seed: Seed of order and views.
        min_crop: Least side of a view, as a fraction of the shorter side of the image.
        flip: Chance of a horizontal flip.
        workers: Processes that read ahead; 0 reads each image when it is needed.
        requirements: Targets that the loss needs.
        uses_names: Whether the loss uses class names. Otherwise segments of novel classes are among its segments.
        region_size: Side of the regions that the teacher sees, in pixels.
        targets: Adds the targets of the teacher to a batch.
        device: Device of the batches.
    """

    def __init__(
        self,
        dataset: Labelled,
        *,
        batch: int,
        size: int,
        seed: int,
        min_crop: float,
        flip: float,
        workers: int,
        requirements: TargetRequirements,
        uses_names: bool,
        region_size: int,
        targets: TeacherTargets,
        device: torch.device,
    ) -> None:
        self.dataset, self.batch, self.seed, self.targets, self.device = dataset, batch, seed, targets, device
        self.count, self.workers = len(dataset), workers
        # A view of a fraction f of the shorter side is a crop of the image scaled to 1 / f times the size of the view.
        augment = Augment(scale=(1.0, 1.0 / min_crop), flip=flip, short_side=size)
        regions = region_size if requirements.teacher or requirements.synonyms else 0
        novel = dataset.vocabulary.novel if uses_names else ()
        self._transform = WithSegments(augment.transform(size, dataset.ignore), dataset.ignore, novel, regions)

    def stream(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield the batches of steps `start` to `stop` - 1, on the device."""
        found = stream_batches(
            self.dataset,
            batch_size=self.batch,
            seed=self.seed,
            start_step=start,
            transform=self._transform,
            workers=self.workers,
            segments=True,
        )
        batches = (
            Batch(each.images, each.labels, self.dataset.ignore, each.segments, each.captions).to(self.device)
            for each in islice(found, stop - start)
        )
        yield from self.targets.attach(batches, start)
