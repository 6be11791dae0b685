"""What a fine-tuning run will do and take: told before it begins, and checked against the memory that is free."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ovstrans.clip.load import Clip
from ovstrans.costs.estimate import DryRun, estimate_step, require_step_memory, time_step
from ovstrans.environment import pick_precision, used_memory
from ovstrans.frameworks.base import Batch, Framework
from ovstrans.masks.mask import Mask
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.distributed import World

BATCH_COPIES = 4.0
"""Copies of the images, in float32, that are held besides: the batch, the next one as bytes and as float, labels."""


def estimate_finetune(
    framework: Framework,
    recipe: FinetuneRecipe,
    world: World,
    *,
    title: str,
    images: int,
    set_mode: Callable[[], None],
    timed: bool = False,
) -> DryRun:
    """Estimate the steps of this process on meta tensors, before anything large is made.

    Args:
        framework: The framework on its device, with the frozen layers of training. Its stage is left as it is.
        recipe: Every setting of the run.
        world: This process.
        title: What is trained, in a few words.
        images: Images of the dataset that are used.
        set_mode: Puts the framework into the modes of training at its stage.
        timed: Whether to run a small step, on a copy of the framework, to estimate the duration too.

    Raises:
        InputError: The steps need more memory than is free.
    """
    batch, size, steps, device = recipe.training.batch, recipe.augment.crop, recipe.training.steps, world.device
    precision, shape = pick_precision(recipe.training.precision, device), (world.share(batch), 3, size, size)
    memory, macs, seconds, stage = 0, 0, 0.0, framework.stage
    for part in framework.training_stages(steps):
        framework.stage = part.name
        set_mode()
        step = estimate_step(framework, shape, _outputs, half=precision.dtype is not None, input_copies=BATCH_COPIES)
        memory, macs = max(memory, step.memory), macs + step.macs * part.steps
        if timed:
            each = time_step(copy.deepcopy(framework), step, shape, _outputs, precision)
            seconds += each * part.steps
    framework.stage = stage
    set_mode()
    drawing = require_step_memory(memory, recipe.data, device, batch=batch, size=size)
    weights = sum(each.numel() * each.element_size() for each in framework.parameters())
    return DryRun(
        command="finetune",
        title=title,
        recipe=recipe.to_table(),
        data=recipe.data.dataset,
        images=images,
        rounds=0,
        steps=steps,
        batch=batch,
        image_size=size,
        device=str(device),
        precision=precision.name,
        macs=macs * world.size // steps,
        memory=memory + drawing + (used_memory() if device.type == "cpu" else weights),
        seconds=seconds,
    )


def describe_run(
    recipe: FinetuneRecipe, clip: Clip, mask: Mask | None, framework: Framework, frozen: Sequence[str]
) -> str:
    """Describe in a few words what is trained: framework, CLIP, mask, and what is frozen.

    Args:
        recipe: Every setting of the run.
        clip: The CLIP.
        mask: The mask, if any.
        framework: The framework, with the gradients of training.
        frozen: Names of the layers that the plan freezes.
    """
    parts = [f"{recipe.model.framework} on {clip.name} ({recipe.run.init} weights)"]
    if mask is None:
        parts.append("no mask")
    else:
        transfer = "" if mask.made_from(clip.weights_sha256) else ", transferred from other weights"
        parts.append(f"mask of {mask.sparsity:.1%} zeros{transfer}")
    trains = any(parameter.requires_grad for parameter in framework.backbone.parameters())
    parts.append(f"{len(frozen) or 'no'} layers frozen" if trains else "backbone frozen")
    return ", ".join(parts)


def _outputs(framework: Framework, images: Tensor) -> Sequence[Tensor]:
    """Return the losses; of a framework that compares segments, which only data have, what they start from."""
    if framework.target_requirements.segments or framework.stage:
        return framework.training_outputs(images)
    labels = torch.zeros(images.shape[0], *images.shape[-2:], dtype=torch.long, device=images.device)
    return list(framework.losses(Batch(images, labels)).values())
