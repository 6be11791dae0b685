"""What a pruning run will do and take: told before it begins, and checked against the memory that is free."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ovstrans.clip.load import Clip
from ovstrans.costs.estimate import DryRun, StepEstimate, copy_to_meta, estimate_step, require_step_memory, time_step
from ovstrans.environment import pick_precision, to_device, used_memory
from ovstrans.pruning.losses import Distillation
from ovstrans.pruning.methods import Plan
from ovstrans.pruning.rounds import BatchStream, DistillationModel
from ovstrans.recipes.schema import ONE_SHOT_METHODS, PruneRecipe

VIEW_COPIES = 2.75
"""Copies of a batch, in float32, that are held besides: the images, uint8 views, the next batch, a conversion."""


def estimate_prune(
    clip: Clip,
    plan: Plan,
    loss: Distillation,
    images: BatchStream | None,
    recipe: PruneRecipe,
    *,
    device: torch.device,
    timed: bool = False,
) -> DryRun:
    """Estimate a run on meta tensors, before anything large is made.

    Args:
        clip: CLIP to prune.
        plan: Rounds of the method.
        loss: Distillation loss.
        images: Images to distil from or, without distillation, to recompute BatchNorm statistics on; None for none.
        recipe: Recipe of the run.
        device: Device to compute on.
        timed: Whether to run a small step to estimate the duration too.

    Raises:
        InputError: The steps need more memory than is free.
    """
    rounds, batch, size = len(plan.counts), recipe.training.batch, recipe.augment.crop
    precision = pick_precision(recipe.training.precision, device)
    weights = sum(each.numel() * each.element_size() for each in clip.visual.state_dict().values())
    steps, step, seconds = recipe.prune.total_steps(rounds), StepEstimate(0, 0, 0), 0.0
    if steps:
        model = DistillationModel(copy_to_meta(clip.visual), copy_to_meta(clip.visual), loss, clip)
        model.prepare(recipe.training.norms)
        shape, half = (batch, 3, size, size), precision.dtype is not None
        step = estimate_step(model, shape, _outputs, half=half, input_copies=VIEW_COPIES)
        drawing = require_step_memory(step.memory + step.weights, recipe.data, device, batch=batch, size=size)
        step = StepEstimate(step.macs, step.memory + drawing, step.weights)
        if timed:
            real = DistillationModel(copy.deepcopy(clip.visual), copy.deepcopy(clip.visual), copy.deepcopy(loss), clip)
            real.prepare(recipe.training.norms)
            seconds = steps * time_step(to_device(real, device), step, shape, _outputs, precision)
    return DryRun(
        command="prune",
        title=_title(clip, recipe),
        recipe=recipe.to_table(),
        data=recipe.data.dataset if images is not None else "",
        images=images.count if images is not None else 0,
        rounds=0 if recipe.prune.method in ONE_SHOT_METHODS else rounds,
        steps=steps,
        batch=batch,
        image_size=size,
        device=str(device),
        precision=precision.name,
        macs=step.macs,
        memory=step.memory + max(step.weights, 2 * weights) + (used_memory() if device.type == "cpu" else 0),
        seconds=seconds,
    )


def _outputs(model: DistillationModel, images: Tensor) -> Sequence[Tensor]:
    return model.loss.training_outputs(model.student, model.teacher, (images - model.mean) / model.std)


def _title(clip: Clip, recipe: PruneRecipe) -> str:
    prune = recipe.prune
    amount = f"{100 * (0.5 if prune.granularity == '2:4' else prune.sparsity):g} % zeros"
    if prune.macs:
        amount = f"{100 * prune.macs:g} % of the MACs"
    how = "" if prune.granularity == "element" else f" in {prune.granularity}"
    how += "" if prune.allocation == "global" or prune.macs else f", allocation {prune.allocation}"
    return f"prune {clip.name or 'a CLIP'} by {prune.method} to {amount}{how}"
