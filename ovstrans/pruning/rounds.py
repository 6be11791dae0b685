"""The rounds of pruning and distillation, without rewinding (OpenTrans Alg. 1), and the images that they distil from.

The student starts as a copy of the teacher and keeps its weights and its optimizer state from round to round. Masked
weights are exactly zero from the first step to the last. The head of the image encoder is neither pruned nor trained:
it projects features into the space of the text embeddings.

The batch of a step depends on seed and step only. Therefore a resumed run sees the same images as an uninterrupted one,
without a replay of earlier steps.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from ovstrans.clip.backbone import head_parts
from ovstrans.clip.load import Clip
from ovstrans.datasets.sample import Dataset
from ovstrans.environment import images_to_device, pick_precision, to_device
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch
from ovstrans.masks.mask import Mask
from ovstrans.progress import Forecast, ProgressCallback, ProgressReporter
from ovstrans.pruning.losses import Distillation
from ovstrans.pruning.methods import Masks, Plan, weights_of
from ovstrans.pruning.severed import sever_encoders
from ovstrans.recipes.load import differences
from ovstrans.recipes.schema import PruneRecipe
from ovstrans.training.distributed import World
from ovstrans.training.loop import Step, derive_seed, load_state, make_optimizer, save_state, train

_CACHE_BYTES = 512 << 20
"""Most memory that kept images take."""


class BatchStream(Protocol):
    """Images to distil from: `count` of them, in batches of images [B, 3, H, W] in [0, 1]."""

    count: int

    def stream(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield the batches of steps `start` to `stop` - 1."""
        ...


@dataclass(frozen=True)
class Round:
    """A finished round.

    Attributes:
        number: Number of the round, from 1.
        kept: Number of weights kept.
        losses: Mean over the steps of the round, by name; empty without distillation.
        seconds: Duration.
    """

    number: int
    kept: int
    losses: dict[str, float]
    seconds: float

    @property
    def loss(self) -> float:
        """Sum of the losses."""
        return sum(self.losses.values())


class DistillationModel(nn.Module):
    """Student, teacher and loss as one module that maps a batch with images in [0, 1] to losses by name."""

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: Distillation, clip: Clip) -> None:
        super().__init__()
        self.student, self.teacher, self.loss = student, teacher, loss
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(clip.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(clip.std).view(1, 3, 1, 1))

    def prepare(self, norms: str) -> None:
        """Freeze the teacher and the student's head, and set the modes.

        The student is put in train mode, its BatchNorms only if `norms` is "train", and the teacher in eval mode.
        """
        self.teacher.requires_grad_(False)
        for part in head_parts(self.student):
            part.requires_grad_(False)
        self.train()
        self.teacher.eval()
        if norms == "frozen":
            for module in self.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a batch with images float32 [B, 3, H, W] in [0, 1]."""
        normalised = replace(batch, images=(batch.images - self.mean) / self.std)
        losses: dict[str, Tensor] = self.loss(self.student, self.teacher, normalised)
        for name, value in ((name, float(loss.detach())) for name, loss in losses.items()):
            if not math.isfinite(value):
                raise InputError(f"distillation: the loss {name} is {value}; lower `lr`, or use `precision=fp32`")
        return losses


def run_rounds(
    clip: Clip,
    plan: Plan,
    loss: Distillation,
    images: BatchStream | None,
    recipe: PruneRecipe,
    *,
    device: torch.device,
    state: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[dict[str, Tensor], Masks, list[Round]]:
    """Run the rounds of a plan.

    Args:
        clip: CLIP to prune; it is left as it is.
        plan: Rounds of the method.
        loss: Distillation loss.
        images: Images to distil from; None without distillation.
        recipe: Recipe of the run.
        device: Device to compute on.
        state: File that is kept up to date after every round.
        resume: Continue from `state` if it exists. On a CPU with the same number of threads the result equals that of
            an uninterrupted run to the last bit.
        identity: What else must be equal in the state, besides the recipe.
        progress: Receives the progress of the steps.

    Returns:
        State dict of the pruned image encoder on the CPU, masks, rounds.

    Raises:
        InputError: The state is of another run, images are missing, or distillation diverges.
    """
    total = recipe.prune.total_steps(len(plan.counts))
    if total and images is None:
        raise InputError("distillation needs images; give `data`, or `steps=0`")
    teacher, student = copy.deepcopy(clip.visual), copy.deepcopy(clip.visual)
    if recipe.prune.severed:
        sever_encoders(recipe.prune.severed, teacher, student)
    distillation = DistillationModel(student, teacher, loss, clip)
    to_device(distillation, device)
    distillation.prepare(recipe.training.norms)
    rate = recipe.optimizer.backbone_rate * loss.backbone_rate
    optimizer = make_optimizer(distillation, replace(recipe.optimizer, backbone_rate=rate), backbone="student")
    signature = {**recipe.to_table(), "made_from": dict(identity or {})}

    masks: Masks | None = None
    finished: list[Round] = []
    if resume and state is not None and state.exists():
        masks, finished = _load(state, signature, distillation, optimizer, device)

    first = recipe.prune.steps_of(len(finished), len(plan.counts)).start if len(finished) < len(plan.counts) else total
    task = f"prune {clip.name}".strip()
    reporter, forecast = ProgressReporter(progress, task, total, done=first), Forecast(task, total - first)
    with contextlib.ExitStack() as stack:
        views: Iterator[Batch] = iter(())
        if images is not None and total:
            views = stack.enter_context(contextlib.closing(images.stream(first, total)))
        for number in range(len(finished), len(plan.counts)):
            start = time.perf_counter()
            masks = plan.choose(number, weights_of(student, plan.names), masks)
            mask = Mask(masks, model=clip.name)
            mask.apply(student)
            losses: dict[str, float] = {}
            steps = recipe.prune.steps_of(number, len(plan.counts))
            if steps:
                with mask.held(optimizer, student):
                    for step in _distil(distillation, views, optimizer, mask, recipe, steps, total, device):
                        losses = {
                            name: losses.get(name, 0.0) + value / len(steps) for name, value in step.losses.items()
                        }
                        reporter.advance(loss=step.loss)
                        forecast.note()
            finished.append(Round(number + 1, mask.kept, losses, time.perf_counter() - start))
            if total and state is not None:
                _save(state, signature, distillation, optimizer, masks, finished)
    assert masks is not None  # a plan has at least one round
    weights = {key: value.detach().cpu().contiguous() for key, value in student.state_dict().items()}
    return weights, masks, finished


def _distil(
    distillation: DistillationModel,
    views: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    mask: Mask,
    recipe: PruneRecipe,
    steps: range,
    total: int,
    device: torch.device,
) -> Iterator[Step]:
    precision = pick_precision(recipe.training.precision, device)
    return train(
        distillation,
        (replace(batch, images=images_to_device(batch.images, device)) for batch in views),
        optimizer,
        steps=steps,
        rate=lambda step: recipe.schedule.factor(step, total),
        precision=precision,
        scaler=precision.scaler(),
        clip_norm=recipe.optimizer.clip_norm,
        mask=mask,
        world=World(0, 1, device),
        seed=recipe.run.seed,
    )


def _save(
    path: Path,
    signature: Mapping[str, Any],
    distillation: DistillationModel,
    optimizer: torch.optim.Optimizer,
    masks: Masks,
    finished: list[Round],
) -> None:
    save_state(
        path,
        {
            "recipe": signature,
            "student": distillation.student.state_dict(),
            "loss": distillation.loss.state_dict(),
            "optimizer": optimizer.state_dict(),
            "masks": masks,
            "rounds": [asdict(each) for each in finished],
        },
    )


def _load(
    path: Path,
    signature: Mapping[str, Any],
    distillation: DistillationModel,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> tuple[Masks, list[Round]]:
    state = load_state(path, device)
    if not {"recipe", "student", "loss", "optimizer", "masks", "rounds"} <= state.keys():
        raise InputError(f"{path}: is not the state of a pruning run; start anew with `force=True`")
    changed = differences(state["recipe"], signature)
    if changed:
        raise InputError(
            f"{path}: cannot resume, its {changed[0]}; give the same options, or start anew with `force=True`"
        )
    distillation.student.load_state_dict(state["student"])
    distillation.loss.load_state_dict(state["loss"])
    optimizer.load_state_dict(state["optimizer"])
    return {name: kept.cpu() for name, kept in state["masks"].items()}, [Round(**each) for each in state["rounds"]]


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
