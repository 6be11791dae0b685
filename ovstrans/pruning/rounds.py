"""The rounds of pruning and distillation, without rewinding (OpenTrans Alg. 1).

The student starts as a copy of the teacher and keeps its weights and its optimizer state from round to round. Masked
weights are exactly zero from the first step to the last. The head of the image encoder is neither pruned nor trained:
it projects features into the space of the text embeddings.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ovstrans.clip.backbone import head_parts
from ovstrans.clip.load import Clip
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
from ovstrans.training.loop import Step, make_optimizer, train
from ovstrans.training.state import load_state, save_state


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
