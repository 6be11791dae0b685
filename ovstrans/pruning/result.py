"""What a pruning run takes and gives: the estimate before it, the result after it, and the files of the result.

An estimate is told before the run begins, and checked against the memory that is free. The files are the mask, the
pruned weights and the density plot.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.clip.load import Clip
from ovstrans.costs.estimate import DryRun, StepEstimate, copy_to_meta, estimate_step, require_step_memory, time_step
from ovstrans.environment import pick_precision, to_device, used_memory
from ovstrans.errors import InputError, counted
from ovstrans.masks.file import load_mask, load_weights, pruned_weights_path, save_mask, save_weights
from ovstrans.masks.mask import Mask, density_rows
from ovstrans.pruning.losses import Distillation
from ovstrans.pruning.methods import Plan
from ovstrans.pruning.rounds import BatchStream, DistillationModel, Round
from ovstrans.recipes.schema import ONE_SHOT_METHODS, PruneRecipe

logger = logging.getLogger(__name__)

SCHEMA = "ovstrans.prune/1"

VIEW_COPIES = 2.75
"""Copies of a batch, in float32, that are held besides: the images, uint8 views, the next batch, a conversion."""


@dataclass
class PruneResult:
    """A mask and the weights that were tuned under it.

    Attributes:
        mask: The mask.
        weights: State dict of the pruned image encoder, on the CPU, without the prefix `visual.`.
        rounds: The rounds, in order; empty for a run that was finished before.
        seconds: Duration of the call. The rounds that an interrupted run finished before are not in it.
        files: Files that were written: mask, weights and, if there is one, plot.
    """

    mask: Mask
    weights: dict[str, Tensor]
    rounds: list[Round]
    seconds: float = 0.0
    files: list[Path] = field(default_factory=list)

    def __repr__(self) -> str:
        mask = self.mask
        lines = [
            f"PruneResult of {mask.model or 'an image encoder'} by {mask.method}: {mask.sparsity:.2%} zeros, "
            f"{mask.kept:,} of {mask.total:,} weights kept in {counted(len(mask.tensors), 'layer')}",
            f"  {self.describe_rounds()}{self.describe_losses()}",
        ]
        if self.files:
            lines.append(f"  files: {', '.join(map(str, self.files))}")
        return "\n".join(lines)

    def describe_rounds(self) -> str:
        """Return how the weights were pruned: "in 22 rounds", or "in one shot" by a method that prunes once."""
        if self.mask.method in ONE_SHOT_METHODS:
            return "in one shot"
        rounds = len(self.rounds) or int(self.mask.recipe.get("rounds", 0))
        return f"in {rounds} round{'' if rounds == 1 else 's'}"

    def describe_macs(self) -> str:
        """Return which share of the MACs is left, "" where they were not counted."""
        macs = self.mask.recipe.get("macs")
        return f", {macs['kept'] / macs['dense']:.2%} of the MACs left" if macs else ""

    def describe_losses(self) -> str:
        """Return the first and the last loss of the distillation, "" without distillation."""
        losses = [each.loss for each in self.rounds if each.losses]
        if not losses:
            return ""
        if len(losses) == 1:
            return f", distillation loss {losses[0]:.3g}"
        return f", distillation loss {losses[0]:.3g} at the start, {losses[-1]:.3g} at the end"

    def summary(self) -> dict[str, Any]:
        """Return the JSON report, schema "ovstrans.prune/1"."""
        report = {
            "schema": SCHEMA,
            "model": self.mask.model,
            "pretrained": self.mask.pretrained,
            "weights_sha256": self.mask.weights_sha256,
            "method": self.mask.method,
            "sparsity": self.mask.sparsity,
            "kept": self.mask.kept,
            "total": self.mask.total,
            "layers": [
                {"name": name, "shape": list(shape), "kept": kept, "weights": weights, "density": density}
                for name, shape, kept, weights, density in density_rows(self.mask)
            ],
            "rounds": [
                {
                    "round": each.number,
                    "kept": each.kept,
                    "loss": each.loss if each.losses else None,
                    "losses": each.losses,
                    "seconds": round(each.seconds, 3),
                }
                for each in self.rounds
            ],
            "seconds": round(self.seconds, 3),
            "recipe": self.mask.recipe,
        }
        return {**report, **dict(zip(("mask", "weights"), map(str, self.files), strict=False))}

    def save(self, path: Path | str, *, plot: bool = True, force: bool = False) -> list[Path]:
        """Write mask, pruned weights and density plot.

        Args:
            path: Mask file, `NAME.safetensors`. The weights go to `NAME.weights.safetensors`, the plot to `NAME.png`.
            plot: Draw the plot.
            force: Replace existing files.

        Returns:
            The files written, which `files` holds from then on.

        Raises:
            InputError: A file exists or cannot be written.
        """
        paths = output_paths(path, plot=plot)
        for each in paths:
            files.check_output(each, force=force)
        # The mask comes after the weights: where finetune finds a mask, its weights are there too.
        save_weights(paths[1], self.weights, self.mask, paths[0].name)
        save_mask(paths[0], self.mask)
        if plot:
            plot_densities(paths[2], self.mask)
        self.files = paths
        return paths


def open_finished(out: Path | str) -> PruneResult:
    """Return the result of a run that is finished, without its rounds.

    Raises:
        InputError: There is none, or a file of it is missing or damaged.
    """
    mask_file, weights_file, *rest = output_paths(out)
    if not mask_file.exists():
        raise InputError(
            f"{mask_file}: no run to resume (neither it nor {state_path(out)} is there); "
            "leave out `resume=True`, or give its `out`"
        )
    logger.info("%s: this run is finished; nothing to resume", mask_file)
    paths = [mask_file, weights_file, *(each for each in rest if each.exists())]
    return PruneResult(load_mask(mask_file), load_weights(weights_file)[0], [], files=paths)


def output_paths(out: Path | str, *, plot: bool = True) -> list[Path]:
    """Return the files of a result: mask, weights and plot.

    Raises:
        InputError: `out` is not the name of a safetensors file.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"`out={out}`: a mask is a .safetensors file; give a name that ends so")
    return [out, pruned_weights_path(out), *([out.with_suffix(".png")] if plot else [])]


def state_path(out: Path | str) -> Path:
    """Return the file that keeps the state of an unfinished run: `mask.resume.pt` for `mask.safetensors`."""
    out = Path(out)
    return out.with_name(f"{out.stem}.resume.pt")


def check_outputs(out: Path | str, *, plot: bool, force: bool, resume: bool) -> None:
    """Refuse, before any work, what could not be written after it.

    Raises:
        InputError: A file exists and may not be replaced, its folder cannot be written, its name is not that of a
            safetensors file, or an interrupted run left a state and neither `resume` nor `force` is given.
    """
    paths, state = output_paths(out, plot=plot), state_path(out)
    if state.exists() and not resume and not force:
        raise InputError(f"{state}: is of an interrupted run; `resume=True` goes on with it, `force=True` starts anew")
    # A run that left a state has passed this check, so it may replace what is there.
    force = force or (resume and state.exists())
    for path in paths:
        files.check_output(path, force=force)


def plot_densities(path: Path | str, mask: Mask) -> Path:
    """Draw the density of every layer of a mask as a bar, in one color for each stage; return the path."""
    from ovstrans import figures
    from ovstrans.clip.layers import stage_name

    rows = density_rows(mask)
    stages: Sequence[str] = list(dict.fromkeys(stage_name(name) for name, *_ in rows))
    figure = figures.new_figure(max(5.0, 1.6 + 0.2 * len(rows)), 4.2)
    axes = figure.add_subplot()
    for number, stage in enumerate(stages):
        bars = [(place, row[4]) for place, row in enumerate(rows) if stage_name(row[0]) == stage]
        color = figures.COLORS[number % len(figures.COLORS)]
        axes.bar([place for place, _ in bars], [100 * density for _, density in bars], color=color, width=0.78)
    axes.axhline(100 * mask.density, color=figures.INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    axes.set_xticks(range(len(rows)), [name for name, *_ in rows], rotation=90)
    axes.set_xlim(-0.7, len(rows) - 0.3)
    axes.set_ylabel("weights kept (%)", fontsize=9)
    kept = f"{mask.kept:,} of {mask.total:,} weights kept ({100 * mask.density:.4g} %, dashed)"
    axes.set_title(f"{mask.model or 'mask'}, {mask.method}: {kept}", fontsize=10, loc="left")
    figures.tidy(axes)
    axes.tick_params(axis="x", labelsize=7, length=0)
    return figures.save_figure(figure, path)


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
