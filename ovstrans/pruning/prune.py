"""Pruning the image encoder of a CLIP into a mask and the weights that were tuned under it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ovstrans.clip.backbone import recalibrate_norms
from ovstrans.clip.load import Clip, load_clip
from ovstrans.clip.models import BUNDLED_MODELS, DEFAULT_MODEL, model_config
from ovstrans.clip.text import embed_vocabulary
from ovstrans.costs.estimate import DryRun, check_drawing
from ovstrans.datasets.catalog import GENERATED, open_dataset
from ovstrans.datasets.sample import Dataset
from ovstrans.environment import bake_pruning, batch_norms, images_to_device, pick_device, pick_precision, to_device
from ovstrans.errors import InputError, did_you_mean
from ovstrans.frameworks import registry
from ovstrans.masks.file import load_mask
from ovstrans.masks.mask import Mask
from ovstrans.masks.origin import choose_clip
from ovstrans.progress import ProgressCallback
from ovstrans.pruning.losses import LOSSES, REGION_OPTIONS, Distillation, make_distillation
from ovstrans.pruning.methods import Plan, make_plan
from ovstrans.pruning.result import PruneResult, check_outputs, estimate_prune, open_finished, state_path
from ovstrans.pruning.rounds import BatchStream, Images, run_rounds
from ovstrans.pruning.severed import describe_blocks, sever_encoders
from ovstrans.recipes.load import Settings, explain_recorded, load_recipe, read_settings, resolve
from ovstrans.recipes.options import accepts_options
from ovstrans.recipes.schema import FEATURES, ONE_SHOT_METHODS, SEGMENT_LOSSES, PruneRecipe
from ovstrans.training.loop import seed_step

logger = logging.getLogger(__name__)


@overload
def prune(clip: Clip | str | None = ..., *, dry_run: Literal[True], **options: Any) -> DryRun: ...


@overload
def prune(
    clip: Clip | str | None = ...,
    *,
    pretrained: str | Path | None = ...,
    data: str | Dataset | None = ...,
    data_root: Path | str | None = ...,
    like: Mask | Path | str | None = ...,
    recipe: str | Path | PruneRecipe | None = ...,
    settings: Settings = ...,
    out: Path | str | None = ...,
    plot: bool = ...,
    resume: bool = ...,
    force: bool = ...,
    dry_run: Literal[False] = ...,
    device: torch.device | str = ...,
    progress: ProgressCallback | None = ...,
    **options: Any,
) -> PruneResult: ...


@accepts_options(PruneRecipe)
def prune(
    clip: Clip | str | None = None,
    *,
    pretrained: str | Path | None = None,
    data: str | Dataset | None = None,
    data_root: Path | str | None = None,
    like: Mask | Path | str | None = None,
    recipe: str | Path | PruneRecipe | None = None,
    settings: Settings = (),
    out: Path | str | None = None,
    plot: bool = True,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    device: torch.device | str = "auto",
    progress: ProgressCallback | None = None,
    **options: Any,
) -> PruneResult | DryRun:
    """Prune the image encoder of a CLIP and distil it from the dense one; the CLIP itself is left as it is.

    Args:
        clip: A CLIP, or the open_clip name of one. Default the model of `like`, or RN-mini.
        pretrained: open_clip tag or file of weights, if `clip` is a name. Default those that `like` was made from if it
            is of this model.
        data: Images to distil from, `NAME[:SPLIT]` or `folder:PATH[:SPLIT]`, or a dataset. They must be labelled if the
            distillation loss compares segments. Default: those of the recipe. Every model but a bundled one needs them,
            if it is distilled, as it learns nothing from generated scenes.
        data_root: Folder of published datasets.
        like: Mask, or mask file, whose layers and densities `method="random"` takes.
        recipe: Name of a shipped recipe, path of a file, or a recipe. Default: the one for the model and the loss.
        settings: Changes to the recipe: `["optimizer.lr=0.001"]` or `{"optimizer.lr": 0.001}`.
        out: Mask file to write; the weights and the plot go beside it. While the run is unfinished, a state to resume
            from is kept there too. Without it nothing is written.
        plot: Draw the density of every layer.
        resume: Go on with the interrupted run at `out`. If that is finished, its result is returned as it is, without
            its rounds; if there is none, that is an error.
        force: Replace existing files.
        dry_run: Prune nothing and write nothing; return what the run would do and take.
        device: auto, cpu, cuda or cuda:N.
        progress: Receives the progress of the distillation steps.
        **options: Values of the recipe by the names of the options: method, sparsity, rate, scope, granularity,
            allocation, macs, severed, steps, distill, lr, batch, image_size, precision, seed. The one-shot methods
            `magnitude` and `random` take no steps unless `steps` asks for them or the model is a bundled one.

    Returns:
        The mask and the pruned weights; of a dry run its settings, MACs, memory and time.

    Raises:
        InputError: An argument is wrong, two contradict each other, files are in the way, the weights hold NaN or
            infinity, a step needs more memory than is free, or distillation diverges.
        MismatchError: `like` is of another architecture.
    """
    start = time.perf_counter()
    if dry_run and resume:
        raise InputError("`dry_run=True`: tells of a run from its start; leave out `resume=True`")
    pattern = load_mask(like) if isinstance(like, (str, Path)) else like
    if not isinstance(clip, Clip) and pattern is not None:
        named = choose_clip(pattern, clip, pretrained)
        clip, pretrained = named.model, named.pretrained
    clip = clip or DEFAULT_MODEL
    chosen = _choose(clip, data, like, recipe, settings, options)
    if dry_run:
        out = None
    elif resume and out is not None and not state_path(out).exists():
        return open_finished(out)
    elif out is not None:
        check_outputs(out, plot=plot, force=force, resume=resume)
    elif resume:
        raise InputError("`resume=True`: goes on with the run at `out`, which is not given")
    place = pick_device(device)
    if isinstance(clip, str):
        loaded = load_clip(clip, None if pretrained is None else str(pretrained))
    else:
        loaded = dataclasses.replace(clip, model=bake_pruning(clip.model))
    where = str(recipe) if isinstance(recipe, (str, Path)) and data is None and Path(recipe).is_file() else ""
    own_images = data is not None or "data.dataset" in read_settings(settings)
    dataset = None
    if chosen.prune.steps or _recalibrates(loaded, chosen, own_images):
        with explain_recorded(where, "data.dataset", "data"):
            dataset = _open_data(chosen, data, data_root)
    job = _prepare(loaded, chosen, dataset, pattern, place)
    run = estimate_prune(loaded, job.plan, job.loss, job.images, chosen, device=place, timed=dry_run)
    if dry_run:
        return run
    state = None if out is None else state_path(out)
    if state is not None and not resume:
        state.unlink(missing_ok=True)  # of an earlier run
    logger.info("%s", run.headline())
    try:
        result = _prune(loaded, job, pattern, place, state, resume=resume, progress=progress)
    except BaseException as stop:
        if state is not None and state.exists() and not isinstance(stop, Exception):
            logger.warning("%s keeps the last finished round; the same call with `resume=True` goes on from it", state)
        raise
    result.seconds = time.perf_counter() - start
    if out is not None and state is not None:
        result.save(out, plot=plot, force=True)  # check_outputs has asked before
        state.unlink(missing_ok=True)
    return result


def choose_recipe(
    model: str = DEFAULT_MODEL,
    *,
    recipe: str | Path | PruneRecipe | None = None,
    settings: Settings = (),
    **options: Any,
) -> PruneRecipe:
    """Return the recipe of a run: a recipe file, settings over it, and options over both.

    Args:
        model: open_clip name of the model to prune.
        recipe: Name of a shipped recipe, path of a file, or a recipe. By default `prune-mini` for a mini CLIP and
            `prune-rn50` for every other model, with `-regions` appended for a loss that compares segments.
        settings: Changes by key.
        **options: Changes by name of the option; None stands for an option that was not given.

    Raises:
        InputError: A recipe, key or loss is unknown, the recipe is for another kind of loss, or a value does not fit.
    """
    if isinstance(recipe, PruneRecipe):
        table, name = recipe.to_table(), "given"
    else:
        table, name = _load_table(model, recipe, settings, options.get("distill"))
    given = {key for key, value in options.items() if value is not None} | set(read_settings(settings))
    options = _check_amount(options, read_settings(settings))
    chosen = resolve(PruneRecipe, table, name, settings=settings, options=options)
    chosen = _leave_out_steps(chosen, model, table, given)
    if chosen.distill.loss == FEATURES:  # its options are the weights of its terms
        for key, value in chosen.distill.options.items():
            if type(value) not in (int, float) or value < 0:
                raise InputError(f"recipe {name}: distill.{key} = {value!r}: a number of at least 0 is needed")
    return chosen


def _check_amount(options: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, with the allocation that a budget of MACs implies.

    Raises:
        InputError: Two of them say how much is pruned.
    """
    given = {
        name: settings[f"prune.{name}"] for name in ("macs", "sparsity", "granularity") if f"prune.{name}" in settings
    }
    given |= {name: value for name, value in options.items() if value is not None}
    macs, sparsity = given.get("macs"), given.get("sparsity")
    if options.get("macs") == 0:
        raise InputError("`macs=0`: must be above 0 and at most 1 (0.1 keeps 10 % of the MACs)")
    if macs and sparsity is not None:
        raise InputError(f"`macs={macs}`: says how much is pruned, and so does `sparsity={sparsity}`; leave one out")
    if given.get("granularity") == "2:4" and sparsity not in (None, 0.5):
        raise InputError(f"`sparsity={sparsity}`: `granularity=2:4` prunes half of the weights; leave one out")
    implied = macs and options.get("allocation") is None and "prune.allocation" not in settings
    return {**options, "allocation": "macs"} if implied else dict(options)


def _load_table(
    model: str, recipe: str | Path | None, settings: Settings, distill: str | None
) -> tuple[dict[str, Any], str]:
    """Return the table of the recipe that is named, or else fits the model and the loss, and its name."""
    default = "prune-mini" if model in BUNDLED_MODELS else "prune-rn50"
    wanted = distill or read_settings(settings).get("distill.loss")
    if wanted is not None and wanted not in LOSSES:
        hint = did_you_mean(str(wanted), LOSSES)
        raise InputError(f"`distill={wanted}`: unknown; {hint}losses are {', '.join(LOSSES)}")
    name = str(recipe) if recipe else f"{default}-regions" if wanted in SEGMENT_LOSSES else default
    table = load_recipe(name)
    if isinstance(table.get("distill"), dict):
        own = table["distill"].get("loss")
        if wanted in (FEATURES, *SEGMENT_LOSSES) and (wanted in SEGMENT_LOSSES) != (own in SEGMENT_LOSSES):
            other = f"{default}-regions" if wanted in SEGMENT_LOSSES else default
            raise InputError(f"recipe {name}: is for the distillation loss {own}, not {wanted}; {other} is for that")
        if (wanted or own) == "semantic":  # every option of GKC can be set, and the mask records it
            own_options = {key: value for key, value in table["distill"].items() if key not in REGION_OPTIONS}
            table["distill"] = {**registry.default_options("gkc"), **own_options}
    return table, name


def _leave_out_steps(chosen: PruneRecipe, model: str, table: Mapping[str, Any], given: set[str]) -> PruneRecipe:
    """Return the recipe without distillation if a one-shot method replaced the recipe's own and nobody asked for steps.

    The steps of a recipe for rounds are meant for rounds: 22,000 for a CLIP of full size. The bundled models keep
    theirs, which take a minute, and so does a recipe whose own method is a one-shot one.
    """
    asked = bool(given & {"steps", "prune.steps"}) or table["prune"].get("method") in ONE_SHOT_METHODS
    if model in BUNDLED_MODELS or chosen.prune.method not in ONE_SHOT_METHODS or asked or not chosen.prune.steps:
        return chosen
    idle = ("distill", "lr") if chosen.training.bn_recalibrate else ("data", "distill", "lr", "batch")
    unused = ", ".join(f"`{name}`" for name in idle if name in given)
    logger.info(
        "%s prunes %s in one shot, without distillation%s; `steps=N` asks for N steps a round",
        chosen.prune.method,
        model or "the image encoder",
        f" (not used: {unused})" if unused else "",
    )
    return replace(chosen, prune=replace(chosen.prune, steps=0, final_steps=0))


def _require_images(chosen: PruneRecipe, model: str) -> None:
    """Refuse to distil a CLIP that knows photographs on generated scenes, which a recipe may name but nobody asked for.

    Raises:
        InputError: The recipe names no data or generated ones.
    """
    steps, name = chosen.prune.steps, chosen.data.dataset.partition(":")[0]
    if not steps or (name and (model in BUNDLED_MODELS or name not in GENERATED)):
        return
    raise InputError(
        f"`data`: {model or 'a CLIP'} learns from images in {steps} steps a round, so give a folder of photographs, "
        "`data=folder:PATH`, or a dataset; `steps=0` prunes without distillation"
    )


def _choose(
    clip: Clip | str,
    data: str | Dataset | None,
    like: Mask | Path | str | None,
    recipe: str | Path | PruneRecipe | None,
    settings: Settings,
    options: dict[str, Any],
) -> PruneRecipe:
    """Return the recipe of the arguments of `prune`."""
    options = {**options, "data": data if data is None or isinstance(data, str) else f"{data.name}:{data.split}"}
    if like is not None:
        if options.get("sparsity") is not None or options.get("scope") is not None:
            raise InputError("`like`: takes sparsity and scope from its mask; leave `sparsity` and `scope` out")
        options["method"] = options.get("method") or "random"
    if isinstance(clip, str):
        model_config(clip)  # an unknown model is the clearer message
    model = clip if isinstance(clip, str) else clip.name
    chosen = choose_recipe(model, recipe=recipe, settings=settings, **options)
    if data is None and "data.dataset" not in read_settings(settings):
        _require_images(chosen, model)
    return chosen


def _recalibrates(clip: Clip, recipe: PruneRecipe, named: bool) -> bool:
    """Return whether BatchNorm statistics are recomputed: no step is taken, and there are images to see.

    A model that knows photographs sees those that the caller names; the bundled ones have the images of their recipe.
    """
    if recipe.prune.steps or not recipe.training.bn_recalibrate or not (named or clip.name in BUNDLED_MODELS):
        return False
    if batch_norms(clip.visual):
        return True
    if named:
        logger.info("%s has no BatchNorm to recalibrate; `data` is not used", clip.name or "the image encoder")
    return False


def _open_data(recipe: PruneRecipe, data: str | Dataset | None, data_root: Path | str | None) -> Dataset:
    """Return the dataset to distil from, or to recompute BatchNorm statistics on."""
    if data is not None and not isinstance(data, str):
        return data
    spec, labelled = recipe.data.dataset, bool(recipe.prune.steps) and recipe.distill.loss in SEGMENT_LOSSES
    # A described folder has a train split; images without labels are a split of their own.
    split = "train" if labelled or spec.startswith("folder:") else "unlabelled"
    return open_dataset(spec, split=split, size=recipe.data.size, labels=labelled, data_root=data_root)


@dataclass(frozen=True)
class _Job:
    """The parts of a run: its recipe, the rounds, the loss, and the images that it sees, if any.

    Without steps the images are those to recompute BatchNorm statistics on.
    """

    recipe: PruneRecipe
    plan: Plan
    loss: Distillation
    images: BatchStream | None


def _prepare(clip: Clip, recipe: PruneRecipe, dataset: Dataset | None, like: Mask | None, device: torch.device) -> _Job:
    _require_finite(clip)
    if dataset is not None:
        check_drawing(recipe.data)
    plan = make_plan(clip.visual, recipe.prune, recipe.run.seed, like, image_size=recipe.augment.crop)
    seed_step(recipe.run.seed, -1)  # a loss may have a head, which starts at random
    return _Job(recipe, plan, *_make_loss(clip, recipe, dataset, device))


def _prune(
    clip: Clip,
    job: _Job,
    like: Mask | None,
    device: torch.device,
    state: Path | None,
    *,
    resume: bool,
    progress: ProgressCallback | None,
) -> PruneResult:
    """Run the rounds and make the mask."""
    recipe = job.recipe
    identity = {
        "model": clip.name,
        "weights_sha256": clip.weights_sha256,
        "like": like.title if like is not None else "",
        "images": job.images.count if job.images is not None else 0,
    }
    weights, masks, rounds = run_rounds(
        clip,
        job.plan,
        job.loss,
        job.images,
        recipe,
        device=device,
        state=state,
        resume=resume,
        identity=identity,
        progress=progress,
    )
    recorded = recipe.to_table()
    if job.images is not None and not recipe.prune.steps:
        weights = _recalibrate(clip, weights, job.images, recipe, device)
        recorded["recalibrated"] = {"batches": recipe.training.bn_recalibrate, "images": job.images.count}
    recorded["rounds"] = len(job.plan.counts)
    recorded["total_steps"] = recipe.prune.total_steps(len(job.plan.counts))
    if recipe.prune.severed:
        recorded["prune"]["severed"] = describe_blocks(clip.visual, recipe.prune.severed)
    if like is not None:
        recorded["prune"].update(sparsity=like.sparsity, scope="like")
        recorded["like"] = {"path": like.path, "method": like.method, "kept": like.kept, "total": like.total}
    if recipe.prune.macs or recipe.prune.granularity == "2:4":  # the sparsity follows from them
        kept, total = sum(int(each.sum()) for each in masks.values()), sum(each.numel() for each in masks.values())
        recorded["prune"]["sparsity"] = (total - kept) / total
    if job.plan.dense_macs:
        left = sum(positions * int(masks[name].sum()) for name, positions in job.plan.positions.items())
        size = [recipe.augment.crop] * 2
        recorded["macs"] = {"image_size": size, "dense": job.plan.dense_macs, "kept": left}
    mask = Mask(
        masks,
        model=clip.name,
        pretrained=clip.pretrained,
        weights_sha256=clip.weights_sha256,
        method=recipe.prune.method,
        recipe=recorded,
    )
    return PruneResult(mask, weights, rounds)


def _recalibrate(
    clip: Clip, weights: dict[str, Tensor], images: BatchStream, recipe: PruneRecipe, device: torch.device
) -> dict[str, Tensor]:
    """Return pruned weights with BatchNorm statistics of what the image encoder computes with them."""
    encoder = copy.deepcopy(clip.visual)
    encoder.load_state_dict(weights)
    sever_encoders(recipe.prune.severed, encoder)
    to_device(encoder, device)
    mean, std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (clip.mean, clip.std))
    batches = recipe.training.bn_recalibrate
    with (
        contextlib.closing(images.stream(0, batches)) as views,
        pick_precision(recipe.training.precision, device).autocast(),
    ):
        recalibrate_norms(encoder, ((images_to_device(each.images, device) - mean) / std for each in views))
    logger.info("BatchNorm statistics recomputed on %d batches of %d images", batches, recipe.training.batch)
    return {key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()}


def _make_loss(
    clip: Clip, recipe: PruneRecipe, dataset: Dataset | None, device: torch.device
) -> tuple[Distillation, BatchStream | None]:
    """Return the distillation loss and the images that it sees; no images without a dataset."""
    data, augment, loss_name = recipe.data, recipe.augment, recipe.distill.loss
    if dataset is None:
        return Distillation(), None
    views: dict[str, Any] = {
        "batch": recipe.training.batch,
        "size": augment.crop,
        "seed": recipe.run.seed,
        "min_crop": augment.min_crop,
        "flip": augment.flip,
        "workers": data.workers,
    }
    if not recipe.prune.steps or loss_name not in SEGMENT_LOSSES:
        loss = make_distillation(loss_name, clip, recipe.distill.options) if recipe.prune.steps else Distillation()
        return loss, Images(dataset, limit=data.images, cache=data.cache, **views)
    from ovstrans.pruning.labelled import LabelledViews
    from ovstrans.training.batches import Labelled
    from ovstrans.training.teacher_targets import TeacherTargets, warn_of_captions

    labelled = Labelled(dataset, limit=data.images, cache=data.cache)
    # Head and losses are those of GKC, so names are put into its prompts.
    vocabulary = registry.with_prompts(labelled.vocabulary, "gkc", recipe.distill.options)
    loss = make_distillation(loss_name, clip, recipe.distill.options, embed_vocabulary(clip, vocabulary))
    requirements = loss.target_requirements
    warn_of_captions(labelled, requirements, "distill.grounding_weight=0")
    precision = pick_precision(recipe.training.precision, device)
    targets = TeacherTargets(clip, requirements, vocabulary, device=device, precision=precision, seed=recipe.run.seed)
    return loss, LabelledViews(
        labelled,
        requirements=requirements,
        uses_names=loss.uses_names,
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
