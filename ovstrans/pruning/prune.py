"""Pruning a CLIP's image encoder, from settings to mask and pruned weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ovstrans.clip.load import Clip
from ovstrans.clip.text import embed_vocabulary
from ovstrans.datasets.sample import Dataset
from ovstrans.errors import InputError
from ovstrans.masks.mask import Mask, density_rows
from ovstrans.pruning.distill import Distillation
from ovstrans.pruning.images import Images
from ovstrans.pruning.losses import make_distillation
from ovstrans.pruning.methods import make_plan
from ovstrans.pruning.rounds import BatchStream, Round, RoundCallbacks, run_rounds
from ovstrans.recipes.schema import SEGMENT_LOSSES, PruneRecipe
from ovstrans.training.precision import pick_precision
from ovstrans.training.state import seed_step

SCHEMA = "ovstrans.prune/1"


@dataclass(frozen=True)
class Result:
    """What pruning made.

    mask: the mask.  encoder: the pruned image encoder, tuned under the mask (CPU, eval mode).  rounds: one
    entry a round.  seconds: of this call (a resumed run's earlier rounds are in `rounds`).
    """

    mask: Mask
    encoder: nn.Module
    rounds: list[Round]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The JSON report, schema "ovstrans.prune/1"."""
        return {
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


def prune(
    clip: Clip,
    recipe: PruneRecipe,
    dataset: Dataset | None = None,
    *,
    like: Mask | None = None,
    device: torch.device | str = "cpu",
    state: Path | None = None,
    resume: bool = False,
    watch: RoundCallbacks | None = None,
) -> Result:
    """Prune and distil a CLIP's image encoder as `recipe` says; the CLIP itself is left as it is.

    dataset: images, labelled where the distillation loss looks at segments; may be None where
    `recipe.prune.steps` is 0.  like: a mask whose
    layers and densities `random` takes.  state, resume: a file to keep after every round, and whether
    to go on from it, see `run_rounds`. Raises InputError for settings that do not go together, damaged
    weights, a diverging loss, or the state of another run; MismatchError for a `like` of another
    architecture.
    """
    start = time.perf_counter()
    device = torch.device(device)
    _require_finite(clip)
    plan = make_plan(clip.visual, recipe.prune, recipe.run.seed, like)
    seed_step(recipe.run.seed, -1)  # a loss may have a head, which starts at random
    loss, images = _lesson(clip, recipe, dataset if recipe.prune.steps else None, device)
    identity = {
        "model": clip.name,
        "weights_sha256": clip.weights_sha256,
        "like": like.title if like is not None else "",
        "images": images.count if images is not None else 0,
    }
    encoder, masks, rounds = run_rounds(
        clip, plan, loss, images, recipe, device=device, state=state, resume=resume, identity=identity, watch=watch
    )
    recorded = recipe.to_table()
    recorded["rounds"] = len(plan.counts)
    recorded["total_steps"] = recipe.prune.total_steps(len(plan.counts))
    if like is not None:
        recorded["prune"].update(sparsity=like.sparsity, scope="like")
        recorded["like"] = {"path": like.path, "method": like.method, "kept": like.kept, "total": like.total}
    mask = Mask(
        masks,
        model=clip.name,
        pretrained=clip.pretrained,
        weights_sha256=clip.weights_sha256,
        method=recipe.prune.method,
        recipe=recorded,
    )
    return Result(mask, encoder, rounds, time.perf_counter() - start)


def _lesson(
    clip: Clip, recipe: PruneRecipe, dataset: Dataset | None, device: torch.device
) -> tuple[Distillation, BatchStream | None]:
    """The distillation loss and the images it looks at."""
    data, name = recipe.data, recipe.distill.loss
    views: dict[str, Any] = {
        "batch": recipe.training.batch,
        "size": recipe.augment.crop,
        "seed": recipe.run.seed,
        "min_crop": recipe.augment.min_crop,
        "flip": recipe.augment.flip,
        "workers": data.workers,
    }
    if dataset is None:  # not a step will be made
        return Distillation(), None
    if name not in SEGMENT_LOSSES:
        loss = make_distillation(name, clip, recipe.distill.options)
        return loss, Images(dataset, limit=data.images, cache=data.cache, **views)
    from ovstrans.frameworks.registry import with_prompts
    from ovstrans.pruning.labelled import LabelledViews
    from ovstrans.training.batches import Labelled
    from ovstrans.training.teacher_targets import TeacherTargets, warn_of_captions

    labelled = Labelled(dataset, limit=data.images, cache=data.cache)
    vocabulary = with_prompts(labelled.vocabulary, "gkc", recipe.distill.options)  # whose head and losses these are
    loss = make_distillation(name, clip, recipe.distill.options, embed_vocabulary(clip, vocabulary))
    warn_of_captions(labelled, loss.target_requirements, "distill.grounding_weight=0")
    precision = pick_precision(recipe.training.precision, device)
    targets = TeacherTargets(
        clip, loss.target_requirements, vocabulary, device=device, precision=precision, seed=recipe.run.seed
    )
    return loss, LabelledViews(
        labelled,
        requirements=loss.target_requirements,
        region_size=clip.image_size,
        targets=targets,
        device=device,
        **views,
    )


def _require_finite(clip: Clip) -> None:
    for name, value in clip.visual.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            layer = name.rpartition(".")[0]
            raise InputError(
                f"{clip.name} ({clip.pretrained or 'random'}): layer {layer}: {name} holds NaN or infinity"
            )
