"""Unlabelled images for distillation. The batch of a step depends on seed and step only.

Therefore a resumed run sees the same images as an uninterrupted one, without a replay of earlier steps.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ovstrans.datasets.sample import Dataset
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch
from ovstrans.training.state import derive_seed

_CACHE_BYTES = 512 << 20


class Images:
    """Random views of a dataset's images.

    Args:
        dataset: Images; labels are ignored.
        batch: Images of each step.
        size: Side of the square views, in pixels.
        seed: Seed of order and views.
        min_crop: Least side of a view, as a fraction of the shorter side of the image.
        flip: Chance of a horizontal flip.
        limit: Number of images to use, the first ones; 0 for all.
        cache: Keep images in memory, up to 512 MB.
        workers: Threads that read ahead; 0 reads each image when it is needed.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch: int,
        size: int,
        seed: int,
        min_crop: float = 0.7,
        flip: float = 0.5,
        limit: int = 0,
        cache: bool = True,
        workers: int = 2,
    ) -> None:
        self.dataset, self.batch, self.size, self.seed = dataset, batch, size, seed
        self.min_crop, self.flip, self.workers = min_crop, flip, workers
        self.count = min(limit, len(dataset)) if limit else len(dataset)
        if self.count == 0:
            raise InputError(f"{dataset.name}: holds no image to distil from")
        self._cache: dict[int, Tensor] = {}
        self._free = _CACHE_BYTES if cache else 0
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def indices(self, step: int) -> list[int]:
        """Return the indices of the images of a step. Every image comes once before any comes again."""
        first = step * self.batch
        return [self._index(place) for place in range(first, first + self.batch)]

    def views(self, step: int) -> Tensor:
        """Return the images of a step, float32 [B, 3, size, size] in [0, 1]."""
        return _stack([self._view(step, place, index) for place, index in enumerate(self.indices(step))])

    def stream(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield the batches of steps `start` to `stop` - 1, reading each while the one before is used."""
        if not self.workers:
            yield from (Batch(self.views(step)) for step in range(start, stop))
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="images")

        def submit(step: int) -> list[Future[Tensor]]:
            return [pool.submit(self._view, step, place, index) for place, index in enumerate(self.indices(step))]

        try:
            pending = submit(start) if start < stop else []
            for step in range(start, stop):
                ahead = submit(step + 1) if step + 1 < stop else []
                yield Batch(_stack([future.result() for future in pending]))
                pending = ahead
        finally:
            pool.shutdown(cancel_futures=True)

    def _index(self, place: int) -> int:
        epoch, offset = divmod(place, self.count)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._order = (epoch, torch.randperm(self.count, generator=generator))
        return int(self._order[1][offset])

    def _view(self, step: int, place: int, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "view", step, place))
        draw = torch.rand(4, generator=generator).tolist()
        image = self._image(index)
        height, width = image.shape[-2:]
        side = max(1, round(min(height, width) * (self.min_crop + (1.0 - self.min_crop) * draw[0])))
        top, left = int(draw[1] * (height - side + 1)), int(draw[2] * (width - side + 1))
        view: Tensor = transforms.resized_crop(image, top, left, side, side, [self.size, self.size], antialias=True)
        return view.flip(-1) if draw[3] < self.flip else view

    def _image(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        image = self.dataset[index].image
        # A view never has more pixels than this gives it, so nothing larger is worth keeping.
        shorter = min(image.shape[-2:])
        most = max(self.size, round(self.size / max(self.min_crop, 0.1)))
        if shorter > most:
            shape = [round(length * most / shorter) for length in image.shape[-2:]]
            image = transforms.resize(image, shape, antialias=True)
        if image.numel() <= self._free:
            self._cache[index] = image
            self._free -= image.numel()
        return image


def _stack(views: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(views)).float() / 255.0
