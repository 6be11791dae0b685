"""Fine-tuning a framework on a CLIP under a mask and a freeze plan, from the inputs to the checkpoint."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints.file import Checkpoint, save_checkpoint
from ovstrans.clip.load import Clip
from ovstrans.costs.estimate import DryRun, check_drawing
from ovstrans.datasets.label_counts import warn_of_labels
from ovstrans.datasets.sample import Dataset
from ovstrans.environment import environment, pick_device, pick_precision, to_device
from ovstrans.errors import InputError, OvstransError
from ovstrans.files import OUTPUT_DIR
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Batch, Framework, TargetRequirements
from ovstrans.frameworks.registry import with_prompts
from ovstrans.masks.file import pruned_weights_path, save_mask
from ovstrans.masks.mask import Mask
from ovstrans.progress import Forecast, ProgressCallback, ProgressReporter
from ovstrans.recipes.load import Settings, explain_recorded
from ovstrans.recipes.options import accepts_options
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.spectrum.analysis import Analysis, analyze
from ovstrans.spectrum.plan import FreezePlan
from ovstrans.training import distributed
from ovstrans.training.batches import Labelled, training_batches
from ovstrans.training.distributed import World, is_worker_rank
from ovstrans.training.estimate import describe_run, estimate_finetune
from ovstrans.training.freeze import check_plan, freeze, recalibrate, train_mode
from ovstrans.training.initial_weights import initial_image_encoder, text_encoder
from ovstrans.training.inputs import (
    Inputs,
    open_clip_of,
    open_mask_of,
    open_training_set,
    planned_layers,
    require_same,
    take_inputs,
)
from ovstrans.training.loop import Step, drop_frozen, load_state, make_optimizer, save_state, seed_step, stopping, train
from ovstrans.training.resolve import PathLike, choose_recipe, resume_recipe
from ovstrans.training.run_folder import Run, RunFolder
from ovstrans.training.stages import split_run
from ovstrans.training.teacher_targets import make_teacher_targets, warn_of_captions
from ovstrans.version import __version__

logger = logging.getLogger(__name__)


@overload
def finetune(framework: str | None = ..., *, dry_run: Literal[True], **options: Any) -> DryRun: ...


@overload
def finetune(
    framework: str | None = ...,
    *,
    clip: Clip | str | None = ...,
    pretrained: PathLike | None = ...,
    mask: Mask | PathLike | Literal[False] | None = ...,
    plan: FreezePlan | Analysis | PathLike | Literal[False] | None = ...,
    weights: Mapping[str, Tensor] | PathLike | None = ...,
    data: Dataset | str | None = ...,
    data_root: PathLike | None = ...,
    recipe: FinetuneRecipe | PathLike | None = ...,
    settings: Settings = ...,
    out: PathLike = ...,
    resume: bool = ...,
    force: bool = ...,
    dry_run: Literal[False] = ...,
    device: torch.device | str = ...,
    progress: ProgressCallback | None = ...,
    **options: Any,
) -> Run: ...


@accepts_options(FinetuneRecipe, after="data_root")
def finetune(
    framework: str | None = None,
    *,
    clip: Clip | str | None = None,
    pretrained: PathLike | None = None,
    mask: Mask | PathLike | Literal[False] | None = None,
    plan: FreezePlan | Analysis | PathLike | Literal[False] | None = None,
    weights: Mapping[str, Tensor] | PathLike | None = None,
    data: Dataset | str | None = None,
    data_root: PathLike | None = None,
    recipe: FinetuneRecipe | PathLike | None = None,
    settings: Settings = (),
    out: PathLike = OUTPUT_DIR / "run",
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    device: torch.device | str = "auto",
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Run | DryRun:
    """Train a framework on a CLIP, with a mask and a freeze plan in force, and leave a run folder.

    The mask is in force from the first step to the last: masked weights are exactly zero after every optimizer step and
    in the checkpoint. Frozen layers get no gradient and no optimizer state, and do not change.

    SIGINT and SIGTERM save the state at the end of the step and are then delivered. With `resume` the run goes on as if
    it had not been interrupted: on a CPU with the same number of threads, the result is the same to the last bit. What
    is given as an object, and not as a name or path, is recorded in the run folder (see `training.inputs`). So the
    folder is all that resuming needs; only a dataset without a name has to be given again.

    Under torchrun every process calls this, and rank 0 writes.

    Args:
        framework: Name of the framework; default deeplabv3, or that of the recipe.
        clip: The CLIP, or the name of an open_clip model; default the one that the mask was made from,
            or that of a recipe that is given. A Clip object is not changed.
        pretrained: Weights of a model given by name: an open_clip tag or a file.
        mask: Mask, or its file; default that of the recipe, if any. False trains the dense model.
        plan: Freeze plan, analysis with its default plan, or alpha file; default that of the recipe, if any. False
            freezes nothing.
        weights: Pruned weights for `init="pruned"`: state dict of the image encoder, or a file; default the file that
            `prune` wrote beside the mask.
        data: Dataset, or its name `NAME[:SPLIT]` or `folder:PATH[:SPLIT]`; default that of the recipe.
        data_root: Folder of the published datasets.
        recipe: Recipe, or the name of a shipped one, or a file; default `FRAMEWORK-mini`.
        settings: Changes to the recipe by key: `["optimizer.lr=0.001"]` or `{"optimizer.lr": 0.001}`.
        out: The run folder to write.
        resume: Continue the interrupted run in `out`. What else is given must be as it was.
        force: Replace what is in `out`.
        dry_run: Train nothing and write nothing; return what the run would do and take.
        device: Device to train on.
        progress: Receives the progress, by step.
        **options: Changes to the recipe by name: `init` ("pretrained", "pruned" or "random"), `steps`, `plan_after`
            (train everything for so many steps, then analyse and freeze), `freeze` (its rule), `seed`, and others of
            `recipes.schema.FinetuneRecipe`.

    Returns:
        The finished run; of a dry run its settings, MACs, memory and time. With `resume`, a run that is finished
        already is returned as it is.

    Raises:
        InputError: A name, file, value or combination does not work, or a step needs more memory than is free; nothing
            is trained or written then.
        MismatchError: Mask, plan, weights and model do not fit each other.
    """
    if dry_run and resume:
        raise InputError("`dry_run=True`: tells of a run from its start; leave out `resume=True`")
    folder = RunFolder(Path(out))
    recipe = recipe if recipe is None or isinstance(recipe, FinetuneRecipe) else os.fspath(recipe)
    inputs, recorded = take_inputs(
        folder, clip=clip, pretrained=pretrained, mask=mask, plan=plan, weights=weights, data=data
    )
    if resume:  # objects are compared with those of the run, by `require_same`
        recorded = {name: value for name, value in recorded.items() if name not in inputs.names}
    elif options.get("init") == "pruned" and weights is None and inputs.mask is not None and inputs.mask.path:
        recorded["weights"] = str(pruned_weights_path(inputs.mask.path))
    given = {**options, **recorded, "framework": framework, "recipe": recipe, "settings": settings}
    chosen = resume_recipe(folder.path, **given) if resume else choose_recipe(made_with=inputs.mask, **given)
    if chosen is None:
        logger.info("%s: this run is finished; nothing to resume", folder.path)
        return Run.open(folder.path)
    source = folder.recipe if resume else recipe
    recorded_in = str(source) if isinstance(source, (str, Path)) and Path(source).is_file() else ""
    with distributed.process_group(pick_device(device)) as world:
        result = _train(
            chosen,
            folder,
            inputs,
            world,
            recorded={name: recorded_in for name, value in recorded.items() if value is None and recorded_in},
            root=None if data_root is None else Path(data_root),
            resume=resume,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    if isinstance(result, DryRun):
        return result
    if is_worker_rank():  # rank 0 wrote the folder, maybe on another machine
        return Run(folder.path, chosen, FreezePlan("", None, tuple(result)) if result else None)
    return Run.open(folder.path)


def _train(
    recipe: FinetuneRecipe,
    folder: RunFolder,
    inputs: Inputs,
    world: World,
    *,
    recorded: Mapping[str, str],
    root: Path | None,
    resume: bool,
    force: bool,
    dry_run: bool,
    progress: ProgressCallback | None,
) -> list[str] | DryRun:
    """Train what a recipe says; returns the names of the layers that are frozen at the end. Or tell of a dry run."""
    training, seed = recipe.training, recipe.run.seed
    state = load_state(folder.state, world.device) if resume else None
    if state is None and world.main and not dry_run:
        files.check_output(folder.path, force=force, directory=True)

    # Images, CLIP, mask and plan. Whatever cannot work ends here.
    precision = pick_precision(training.precision, world.device)
    if world.share(training.batch) < 2:
        raise InputError(
            f"`training.batch={training.batch}`: gives a process one image, but BatchNorm needs two at least"
        )

    def explained(key: str, option: str) -> AbstractContextManager[None]:
        return explain_recorded(recorded.get(option, ""), key, "" if resume else option)

    with explained("data.dataset", "data"):
        source = open_training_set(recipe, inputs, root)
    check_drawing(recipe.data)
    dataset = Labelled(source, limit=recipe.data.images, cache=recipe.data.cache)
    if world.main and state is None:
        warn_of_labels(source, len(dataset))
    with explained("model.pretrained", "pretrained"):
        clip = open_clip_of(recipe, folder, inputs, resuming=state is not None)
    with explained("run.mask", "mask"):
        mask = open_mask_of(recipe, folder, inputs, resuming=state is not None)
    frozen: list[str]
    if state is not None:
        encoder, frozen = clip.visual, state["frozen"]
        require_same(inputs, folder, frozen)
    else:
        with explained("run.weights", "weights"):
            encoder = initial_image_encoder(clip, recipe, inputs.weights, mask)
        with explained("run.plan", "plan"):
            frozen = planned_layers(recipe, inputs)
    check_plan(frozen, encoder, recipe.run.plan or str(folder.state))

    # The framework with its weights under the mask, and its frozen layers without gradients.
    vocabulary = with_prompts(dataset.vocabulary, recipe.model.framework, recipe.model.options)
    seed_step(seed, -1)
    framework = registry.build(
        recipe.model.framework,
        encoder=encoder,
        mean=clip.mean,
        std=clip.std,
        text=registry.framework_class(recipe.model.framework).embed_vocabulary(clip, vocabulary, {}),
        options=recipe.model.options,
    )
    if state is not None:
        framework.load_state_dict(state["model"])
    if mask is not None:
        registry.check_severed(mask, framework)
        mask.apply(framework)
    to_device(framework, world.device)
    freeze(framework, frozen, norms=training.freeze_norms)
    framework.start_training(clip, resumed=state is not None)
    run = estimate_finetune(
        framework,
        recipe,
        world,
        title=describe_run(recipe, clip, mask, framework, frozen),
        images=len(dataset),
        set_mode=partial(
            train_mode, framework, frozen=frozen, norms=training.norms, freeze_norms=training.freeze_norms
        ),
        timed=dry_run,
    )
    if dry_run:
        return run
    if state is None and training.bn_recalibrate:
        recalibrate(framework, islice(training_batches(dataset, recipe, world), training.bn_recalibrate), precision)

    # What the losses need beyond the data. It belongs to the run and stays out of the framework and its checkpoint.
    run_stages = framework.training_stages(training.steps)
    targets = make_teacher_targets(
        [each.requirements for each in run_stages], clip, vocabulary, seed=seed, world=world, precision=precision
    )

    def batches(start: int, requirements: TargetRequirements) -> Iterator[Batch]:
        """Return the batches from step `start` on."""
        found = training_batches(
            dataset, recipe, world, start=start, requirements=requirements, region_size=clip.image_size
        )
        return found if targets is None else targets.attach(found, start, requirements)

    # The optimizer has the parameters that may change and no others.
    optimizer = make_optimizer(framework, recipe.optimizer)
    scaler = precision.scaler()
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    done, elapsed = (state["step"], state["elapsed"]) if state is not None else (0, 0.0)

    if world.main:
        if state is None:
            folder.begin(recipe, environment(world.device, processes=world.size), force=True)
            inputs.save(folder, recipe)
            if mask is not None:
                save_mask(folder.mask, mask)
        else:
            folder.rewind_log(done)
        logger.info("%s", run.headline(f"continues after step {done}" if done else ""))
        warn_of_captions(dataset, framework.target_requirements, "model.grounding_weight=0")
    world.barrier()

    def snapshot(step: int) -> dict[str, Any]:
        """Return the state after `step` steps."""
        return {
            "step": step,
            "elapsed": elapsed,
            "frozen": frozen,
            "planned": planned,
            "model": framework.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }

    planned = state["planned"] if state is not None else not training.plan_after
    held = mask.held(optimizer, framework) if mask is not None else contextlib.nullcontext()
    task = f"finetune {recipe.model.framework}"
    reporter = ProgressReporter(progress if world.main else None, task, training.steps, done=done)
    forecast = Forecast(task, training.steps - done)
    with folder.guarded(world.main), held, stopping() as stop:
        for part in split_run(run_stages, done, None if planned else training.plan_after):
            framework.stage = part.stage.name
            train_mode(framework, frozen=frozen, norms=training.norms, freeze_norms=training.freeze_norms)
            for step in train(
                distributed.parallel(framework, world),
                batches(done, part.stage.requirements),
                optimizer,
                steps=range(done, part.end),
                rate=partial(part.rate, recipe),
                precision=precision,
                scaler=scaler,
                clip_norm=recipe.optimizer.clip_norm,
                mask=mask,
                world=world,
                seed=seed,
            ):
                done, elapsed = step.number, elapsed + step.seconds
                reporter.advance(loss=step.loss)
                if world.main:
                    forecast.note()
                    folder.append(_log_entry(step, training.batch, elapsed))
                stopped = world.any(stop.requested)
                if world.main and (stopped or (done % training.save_every == 0 and done < training.steps)):
                    save_state(folder.state, snapshot(done))
                if stopped:
                    world.barrier()
                    stop.now()
            if not planned and done == training.plan_after:
                frozen, planned = _make_plan(recipe, folder, framework, clip, world), True
                freeze(framework, frozen, norms=training.freeze_norms)
                train_mode(framework, frozen=frozen, norms=training.norms, freeze_norms=training.freeze_norms)
                drop_frozen(optimizer)

    if world.main:
        _finish(recipe, folder, framework, clip, mask, frozen)
    world.barrier()
    return frozen


def _make_plan(recipe: FinetuneRecipe, folder: RunFolder, framework: Framework, clip: Clip, world: World) -> list[str]:
    """Analyse the backbone as the first steps left it (OpenTrans sec. 6.1) and write alpha.json.

    Returns:
        The layers to freeze.
    """
    frozen: list[str] = []
    if world.main:
        analysis = analyze(framework, freeze=recipe.training.freeze, device="cpu", seed=recipe.run.seed)
        analysis.model = clip.name
        analysis.save(folder.alpha)
        frozen = list(analysis.default_plan.frozen)
        logger.info(
            "plan: %d layers frozen from step %d on (%s)", len(frozen), recipe.training.plan_after, folder.alpha
        )
    return world.broadcast(frozen)


def _finish(
    recipe: FinetuneRecipe, folder: RunFolder, framework: Framework, clip: Clip, mask: Mask | None, frozen: list[str]
) -> None:
    """Check the mask, write the checkpoint and remove the state."""
    if mask is not None and (broken := mask.violations(framework)):
        raise OvstransError(f"{broken[0][0]}: {broken[0][1]} masked weights are not zero after training")
    framework.eval()
    framework.finish_training()
    text = framework.text.to("cpu")
    save_checkpoint(
        folder.checkpoint,
        Checkpoint(
            framework=framework.name,
            options=framework.options,
            state={key: value.detach().cpu().contiguous() for key, value in framework.state_dict().items()},
            mask=mask,
            text_embeddings=text.embeddings,
            text_owner=text.owner,
            vocabulary=text.vocabulary,
            clip=clip.describe(),
            recipe=recipe.to_table(),
            provenance={
                "created_by": f"ovstrans {__version__}",
                "data": recipe.data.dataset,
                "steps": recipe.training.steps,
                "init": recipe.run.init,
                "seed": recipe.run.seed,
                "frozen": frozen,
            },
            text_encoder=text_encoder(clip),
        ),
    )
    folder.end()
    logger.info("wrote %s", folder.checkpoint)


def _log_entry(step: Step, batch: int, elapsed: float) -> dict[str, Any]:
    """Return the line of the log for a step."""
    return {
        "step": step.number,
        "loss": step.loss,
        **{f"loss/{name}": value for name, value in step.losses.items()},
        "lr": step.rate,
        "grad_norm": step.grad_norm if math.isfinite(step.grad_norm) else None,
        "images_per_second": round(batch / step.seconds, 2),
        "processor_seconds": round(step.processor, 3),
        "elapsed": round(elapsed, 3),
    }
